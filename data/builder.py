"""The TFDS builder that writes documents as array_record."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from data import sources


@dataclasses.dataclass(eq=False)
class CorpusConfig(tfds.core.BuilderConfig):
  """One corpus; its name is derived from the source and its fingerprint.

  splits: names of the splits that hold documents; TFDS refuses empty ones.
  assign: the split of a document.
  """

  source: Any = None
  splits: tuple[str, ...] = ()
  assign: Callable[[sources.Document], str] | None = None
  metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


class PatchworkText(tfds.core.GeneratorBasedBuilder):
  """Documents in the order of their source, as bytes of any encoding."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'name': tfds.features.Text(),
          'group': tfds.features.Text(),
          'text': tfds.features.Text(),
        }
      ),
      metadata=tfds.core.MetadataDict(self.builder_config.metadata),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager  # There is nothing to download.
    return {
      split: self._generate_examples(split)
      for split in self.builder_config.splits
    }

  def _generate_examples(
    self, split: str
  ) -> Iterator[tuple[int, dict[str, bytes]]]:
    config = self.builder_config
    for index, document in enumerate(config.source.documents()):
      if config.assign(document) == split:
        yield (
          index,
          {
            'name': document.name.encode('utf-8', 'surrogateescape'),
            'group': document.group.encode('utf-8', 'surrogateescape'),
            'text': document.text,
          },
        )

  # TFDS prints these two to stdout, where scripts print their results.
  def _log_download_bytes(self) -> None:
    pass

  def _log_download_done(self) -> None:
    pass


def write(config: CorpusConfig, folder: pathlib.Path) -> pathlib.Path:
  """Prepares the corpus below a folder; returns the dataset's own folder."""
  return prepare(PatchworkText, config, folder)


def prepare(
  kind: type[tfds.core.GeneratorBasedBuilder],
  config: tfds.core.BuilderConfig,
  folder: pathlib.Path,
) -> pathlib.Path:
  """Writes a dataset of any builder as array_record."""
  tfds.disable_progress_bar()
  with _without_warnings():
    builder = kind(data_dir=folder, config=config, file_format='array_record')
    builder.download_and_prepare(
      download_dir=folder / 'downloads',
      download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )
  return pathlib.Path(builder.data_dir)


def read(folder: pathlib.Path, split: str) -> Iterator[dict[str, bytes]]:
  """The examples of a split in order, from a dataset's own folder."""
  examples = tfds.builder_from_directory(folder).as_data_source(split=split)
  for index in range(len(examples)):
    yield examples[index]


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
  """Silences TFDS, which warns of every configuration it does not list."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)
