"""Text corpora: prepared once, split by groups, read as one flat array."""

import array
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import platform
import shutil
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from data import arrays
from data import codec as codec_lib
from data import folders
from data import json_text
from data import sources

SPLITS = ('train', 'validation', 'test')
# Part of every folder's name; raised when the files below it change meaning.
_LAYOUT = 1
_BUCKETS = 2**16


@dataclasses.dataclass(frozen=True)
class Corpus:
  """One split on disk: its documents back to back, without special ids.

  Arrays aligned with `bytes` or with the documents may be stored in `path`.

  codec: how its bytes become ids.
  """

  path: pathlib.Path
  codec: codec_lib.Codec = dataclasses.field(default_factory=codec_lib.Bytes)

  @functools.cached_property
  def bytes(self) -> np.ndarray:
    """All bytes of all documents (uint8), mapped, not loaded."""
    return mapped(self.path / 'bytes.bin', np.uint8)

  @functools.cached_property
  def offsets(self) -> np.ndarray:
    """Document i is bytes[offsets[i] : offsets[i + 1]] (int64, N + 1)."""
    return arrays.offsets(self.path / 'offsets.npy')

  @functools.cached_property
  def stream(self) -> codec_lib.Stream:
    """The ids of all documents, prepared first where needed."""
    return self.codec.stream(self)

  @property
  def bytes_per_id(self) -> float:
    """Mean over the split, counting a document's end as one byte and one id."""
    ends = len(self)
    return (len(self.bytes) + ends) / (len(self.stream.stored) + ends)

  @functools.cached_property
  def names(self) -> list[str]:
    """Names of the documents: paths, file:line or split/index."""
    way_out = f'remove {self.path.parent} to have it prepared again'
    return json_text.load(self.path / 'names.json', list, way_out)

  @functools.cached_property
  def metadata(self) -> dict[str, Any]:
    """Source, Python version, content hash, and documents and bytes by split.

    The entry 'split' is this one's name.
    """
    folder = self.path.parent
    way_out = f'remove {folder} to have it prepared again'
    stored = json_text.load(folder / 'metadata.json', dict, way_out)
    return stored | {'split': self.path.name}

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, index: int) -> np.ndarray:
    """The bytes (uint8) of one document."""
    if not -len(self) <= index < len(self):
      raise IndexError(f'document {index} of {len(self)}')
    index %= len(self)
    return self.bytes[self.offsets[index] : self.offsets[index + 1]]


@dataclasses.dataclass(frozen=True)
class Text:
  """A corpus made from a source, split by a hash of the documents' groups.

  Groups are put in the order of the SHA-256 of their names and laid out over
  the corpus's ids; a group whose middle lies in the last `test_fraction` goes
  to test, in the `validation_fraction` before that to validation. So a group
  is never cut, and one that is larger than a fraction overshoots it. A side
  that gets no group this way takes the nearest one if there are enough.

  directory: where prepared corpora are kept, each in a folder named by its
    source and fingerprint, so a changed source is prepared anew.
  codec: how bytes become ids.
  """

  source: sources.Source = dataclasses.field(
    default_factory=sources.StandardLibrary
  )
  directory: str = '~/.cache/patchwork'
  validation_fraction: float = 0.05
  test_fraction: float = 0.05
  codec: codec_lib.Codec = dataclasses.field(default_factory=codec_lib.Bytes)

  def __post_init__(self) -> None:
    held_out = self.validation_fraction, self.test_fraction
    if min(held_out) < 0 or sum(held_out) >= 1:
      raise ValueError(
        f'data.validation_fraction={held_out[0]} and'
        f' data.test_fraction={held_out[1]} must be >= 0 and leave room for'
        ' train, so their sum must be below 1.'
      )

  def prepare(self) -> pathlib.Path:
    """Makes the corpus unless it is there; returns its folder.

    Processes that prepare at the same time wait for the first one. The folder
    appears complete or not at all.
    """
    return folders.make_once(self._folder(), self._build)

  def trained(self) -> 'Text':
    """This corpus with its codec trained, prepared for training.

    What is returned needs the train split no more to encode and decode.
    """
    train = self._open('train')
    trained = self.codec.trained(train)
    _ = dataclasses.replace(train, codec=trained).stream
    return dataclasses.replace(self, codec=trained)

  def untrained(self) -> 'Text':
    """This corpus as a config file names it, its codec not yet trained."""
    return dataclasses.replace(self, codec=self.codec.untrained())

  def open(self, split: str) -> Corpus:
    """One split, prepared first where needed; ValueError if it is empty."""
    if split not in SPLITS:
      raise ValueError(f'split {split!r} is unknown; choose one of {SPLITS}.')
    corpus = self._open(split)
    if self.codec.is_trained:
      return dataclasses.replace(corpus, codec=self.codec)
    trained = self.codec.trained(self._open('train'))
    return dataclasses.replace(corpus, codec=trained)

  def _open(self, split: str) -> Corpus:
    corpus = Corpus(self.prepare() / split)
    if not len(corpus):
      raise ValueError(
        f'split {split!r} of {self.source} has no document with'
        f' data.validation_fraction={self.validation_fraction} and'
        f' data.test_fraction={self.test_fraction}; a fraction above 0 and at'
        ' least 3 groups (files, or different texts) fill all splits, so raise'
        ' it or cut the text into more of them.'
      )
    if len(corpus.bytes) != corpus.offsets[-1]:
      raise ValueError(
        f'{corpus.path} is damaged: {len(corpus.bytes)} bytes where its index'
        f' says {corpus.offsets[-1]}; remove {corpus.path.parent} to have it'
        ' prepared again.'
      )
    return corpus

  def _folder(self) -> pathlib.Path:
    identity = {
      'layout': _LAYOUT,
      'source': _described(self.source),
      'fingerprint': self.source.fingerprint(),
      'fractions': [self.validation_fraction, self.test_fraction],
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    return (
      pathlib.Path(self.directory).expanduser() / f'text-{key.hexdigest()[:16]}'
    )

  def _build(self, folder: pathlib.Path) -> None:
    # Imported here: who only reads a prepared corpus does not pay for TFDS.
    from data import builder

    logging.info('Preparing %s in %s', self.source, folder)
    survey = _survey(self.source)
    borders = _borders(
      survey, validation=self.validation_fraction, test=self.test_fraction
    )
    metadata = self._metadata(survey, borders)
    config = builder.CorpusConfig(
      name=folder.stem,
      source=self.source,
      splits=tuple(s for s in SPLITS if metadata['splits'][s]['documents']),
      assign=borders.side,
      metadata=metadata,
    )
    records = builder.write(config, folder)
    shutil.rmtree(folder / 'downloads', ignore_errors=True)
    for split in SPLITS:
      examples = ()
      if split in config.splits:
        examples = builder.read(records, split)
      _write_flat(folder / split, examples)
      _check(Corpus(folder / split), metadata['splits'][split], self.source)
    (folder / 'metadata.json').write_text(json.dumps(metadata, indent=2))
    logging.info('Prepared %s', metadata['splits'])

  def _metadata(self, survey: '_Survey', borders: '_Borders') -> dict[str, Any]:
    splits = {s: {'documents': 0, 'bytes': 0} for s in SPLITS}
    for document in self.source.documents():
      count = splits[borders.side(document)]
      count['documents'] += 1
      count['bytes'] += len(document.text)
    return {
      'source': _described(self.source),
      'python_version': platform.python_version(),
      'content_sha256': survey.content_sha256,
      'fractions': {
        'validation': self.validation_fraction,
        'test': self.test_fraction,
      },
      'splits': splits,
    }


class _Survey(NamedTuple):
  """First pass over a source: the weight of every bucket of groups.

  weights: ids per bucket of the documents whose side is free.
  named: the splits that the source names itself.
  """

  weights: np.ndarray
  named: frozenset[str]
  content_sha256: str


class _Borders(NamedTuple):
  """First buckets of validation and of test; train is below both."""

  validation: int
  test: int

  def side(self, document: sources.Document) -> str:
    """The split of a document."""
    if document.split:
      return document.split
    bucket = _bucket(document.group)
    if bucket >= self.test:
      return 'test'
    return 'validation' if bucket >= self.validation else 'train'


def _bucket(group: str) -> int:
  name = group.encode('utf-8', 'surrogateescape')
  return int.from_bytes(hashlib.sha256(name).digest()[:2], 'big')


def _survey(source: sources.Source) -> _Survey:
  weights = np.zeros(_BUCKETS, np.int64)
  named = set()
  digest = hashlib.sha256()
  documents = size = 0
  for document in source.documents():
    sources.add_to_digest(digest, document)
    documents += 1
    size += len(document.text)
    if document.split:
      named.add(document.split)
    else:
      weights[_bucket(document.group)] += len(document.text) + 2
  if not size:
    raise ValueError(
      f'{source} holds no text: {documents} documents, 0 bytes; point'
      ' data.source at files that are not empty.'
    )
  return _Survey(weights, frozenset(named), digest.hexdigest())


def _borders(survey: _Survey, *, validation: float, test: float) -> _Borders:
  """Where the sides begin; sides named by the source get nothing more."""
  validation = 0.0 if 'validation' in survey.named else validation
  test = 0.0 if 'test' in survey.named else test
  occupied = np.flatnonzero(survey.weights)
  weights = survey.weights[occupied]
  middles = (np.cumsum(weights) - weights / 2) / max(weights.sum(), 1)
  first_test = int(np.sum(middles < 1 - test))
  first_validation = int(np.sum(middles < 1 - test - validation))
  needed = int(validation > 0), int(test > 0)
  if len(occupied) > sum(needed):  # One for train, too.
    first_test = min(first_test, len(occupied) - needed[1])
    first_validation = max(1, min(first_validation, first_test - needed[0]))
    first_test = max(first_test, first_validation + needed[0])
  # A border behind the last bucket leaves its side empty.
  starts = np.append(occupied, _BUCKETS)
  return _Borders(int(starts[first_validation]), int(starts[first_test]))


def _described(source: sources.Source) -> dict[str, Any]:
  cls = type(source)
  return {
    'class': f'{cls.__module__}.{cls.__qualname__}',
    'fields': dataclasses.asdict(source),
  }


def _write_flat(folder: pathlib.Path, examples: Any) -> None:
  """The files of a Corpus, from examples as TFDS stores them."""
  folder.mkdir()
  offsets = array.array('q', [0])
  names = []
  with (folder / 'bytes.bin').open('wb') as file:
    for example in examples:
      file.write(example['text'])
      offsets.append(offsets[-1] + len(example['text']))
      names.append(os.fsdecode(example['name']))
  np.save(folder / 'offsets.npy', np.array(offsets, np.int64))
  (folder / 'names.json').write_text(json.dumps(names), 'utf-8')


def _check(
  corpus: Corpus, count: dict[str, int], source: sources.Source
) -> None:
  """What was written is what the first pass saw."""
  written = {'documents': len(corpus), 'bytes': int(corpus.offsets[-1])}
  if written != count:
    raise ValueError(
      f'{source} changed while it was read: split {corpus.path.name!r} had'
      f' {count}, then {written}; run again when its files are at rest.'
    )


def mapped(path: pathlib.Path, dtype: type | str) -> np.ndarray:
  """A read-only map of a file; an empty file cannot be mapped."""
  if not path.stat().st_size:
    return np.zeros(0, dtype)
  return np.memmap(path, dtype, mode='r')
