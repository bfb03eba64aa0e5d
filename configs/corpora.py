"""Corpora that commands build stores of: a run's, another config's, files."""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from absl import flags

from configs import base
from configs import neighbours
from configs import restore
from data import codec
from data import sources
from data import text
from samplers import ngram_tables
from training import processes

# Names and texts.
Documents = Iterable[tuple[str, bytes | np.ndarray]]


class Flags(NamedTuple):
  """The flags that name a run, a corpus and what is made of them."""

  checkpoint: flags.FlagHolder[str | None]
  out: flags.FlagHolder[str | None]
  config: flags.FlagHolder[str | None]
  split: flags.FlagHolder[str]
  files: flags.FlagHolder[str | None]
  max_bytes: flags.FlagHolder[int | None]


def define_flags(
  own: flags.FlagValues, checkpoint: str, out: str
) -> Flags:
  """To be called before flags are parsed.

  checkpoint, out: help of these, which depends on the command.
  """
  string = functools.partial(flags.DEFINE_string, flag_values=own)
  return Flags(
    string('checkpoint', None, checkpoint),
    string('out', None, out),
    string('config', None, "Experiment file whose data it is; or the run's."),
    flags.DEFINE_enum(
      'split', 'train', text.SPLITS, 'Of these data.', flag_values=own
    ),
    string('files', None, "Files instead, one document each, as '**/*.txt'."),
    flags.DEFINE_integer(
      'max_bytes',
      None,
      'Of the corpus, from its start.',
      lower_bound=1,
      flag_values=own,
    ),
  )


def check(given: Flags, kind: str) -> None:
  """ValueError for flags that are missing or contradict each other.

  kind: of what --out is.
  """
  for flag, what in ((given.checkpoint, 'a directory'), (given.out, kind)):
    if not flag.value:
      raise ValueError(f'--{flag.name} is missing; give it {what}')
  if given.files.value and given.config.value:
    raise ValueError('--files and --config exclude each other; drop one')


def read(run: restore.Run, given: Flags) -> Documents:
  """The documents that the flags name, with no more bytes than these allow."""
  return first_bytes(_all(run, given), given.max_bytes.value)


def _all(run: restore.Run, given: Flags) -> Documents:
  if given.files.value:
    source = sources.TextFiles(given.files.value)
    return ((item.name, item.text) for item in source.documents())
  config = run.config
  if given.config.value:
    config = base.load(given.config.value)
  processes.first('prepare the data', config.data.prepare)
  corpus = config.data.open(given.split.value)
  return zip(corpus.names, corpus, strict=True)


def first_bytes(documents: Documents, count: int | None) -> Documents:
  """Documents of so many bytes in all, the last one cut."""
  for name, document in documents:
    if count is not None:
      if not count:
        return
      document = document[:count]
      count -= len(document)
    yield name, document


def spelled(
  spelling: codec.Codec, documents: Documents
) -> Iterator[tuple[str, np.ndarray]]:
  """The ids of every document, with the one that ends it."""
  for name, document in documents:
    yield name, np.append(spelling.encode(document), spelling.stops[0])


def vocabulary(spelling: codec.Codec) -> ngram_tables.Vocabulary:
  """What the ids of a codec mean."""
  told = json.dumps(neighbours.identity(spelling))
  return ngram_tables.Vocabulary(
    spelling.vocabulary_size, hashlib.sha256(told.encode()).hexdigest()
  )
