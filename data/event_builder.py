"""The TFDS builder that writes prepared events as array_record.

An example is an entity with all its events, in the order of the split; anybody
reads them by `tfds.builder_from_directory(folder).as_data_source()`.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data import builder
from data import event_corpus


@dataclasses.dataclass(eq=False)
class EventsConfig(tfds.core.BuilderConfig):
  """Splits of one source; they share a tokenizer."""

  corpora: Mapping[str, event_corpus.EventCorpus] = dataclasses.field(
    default_factory=dict
  )


class PatchworkEvents(tfds.core.GeneratorBasedBuilder):
  """Entities as ids, standardised numbers and times of their events."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    tokenizer = self._tokenizer
    shape = None, len(tokenizer.columns)
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'entity': tfds.features.Text(),
          'ids': tfds.features.Tensor(shape=shape, dtype=np.int32),
          'values': tfds.features.Tensor(shape=shape, dtype=np.float32),
          'times': tfds.features.Tensor(shape=(None,), dtype=np.int64),
          'scored': tfds.features.Tensor(shape=(None,), dtype=np.bool_),
        }
      ),
      metadata=tfds.core.MetadataDict({'tokenizer': tokenizer.to_json()}),
      disable_shuffling=True,
    )

  @property
  def _tokenizer(self) -> Any:
    return next(iter(self.builder_config.corpora.values())).tokenizer

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager  # There is nothing to download.
    return {
      split: self._generate_examples(split)
      for split in self.builder_config.corpora
    }

  def _generate_examples(
    self, split: str
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    corpus = self.builder_config.corpora[split]
    names = corpus.table.column(self._tokenizer.entity)
    for index in range(len(corpus)):
      start, stop = (int(x) for x in corpus.offsets_N1[index : index + 2])
      yield (
        index,
        {
          'entity': str(names[start].as_py()),
          'ids': corpus.ids_EC[start:stop].astype(np.int32),
          'values': np.asarray(corpus.values_EC[start:stop]),
          'times': np.asarray(corpus.times_E[start:stop]),
          'scored': np.asarray(corpus.scored_E[start:stop]),
        },
      )

  # TFDS prints these two to stdout, where scripts print their results.
  def _log_download_bytes(self) -> None:
    pass

  def _log_download_done(self) -> None:
    pass


def write(
  corpora: Mapping[str, event_corpus.EventCorpus],
  folder: pathlib.Path,
  name: str,
) -> pathlib.Path:
  """Writes splits below a folder; returns the dataset's own folder."""
  return builder.prepare(
    PatchworkEvents, EventsConfig(name=name, corpora=corpora), folder
  )
