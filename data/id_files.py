"""The ids of a split, encoded once and kept beside its bytes."""

import array
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

from data import arrays
from data import codec
from data import folders
from data import text as text_lib

_BATCH_BYTES = 2**20


def stream(spelling: Any, corpus: text_lib.Corpus) -> codec.Stream:
  """The ids of a split, kept in a folder of it named by the codec's digest.

  spelling: a codec with `digest`, `encode_all` and `describe`, as
    data.tokens.Bpe. Raises ValueError if the folder is damaged.
  """
  folder = corpus.path / f'ids-{spelling.digest[:16]}'
  folders.make_once(folder, functools.partial(_write, spelling, corpus))
  offsets = arrays.offsets(folder / 'offsets.npy')
  stored = text_lib.mapped(folder / 'ids.bin', _stored_type(spelling))
  if len(offsets) != len(corpus) + 1 or len(stored) != offsets[-1]:
    raise ValueError(
      f'{folder} is damaged: {len(stored)} ids of {len(offsets) - 1}'
      f' documents where its index says {offsets[-1]} and the corpus'
      f' {len(corpus)}; remove it to have it prepared again.'
    )
  return codec.Stream(stored, offsets)


def library() -> Any:
  """The package tokenizers, which only codecs of tokens need."""
  try:
    import tokenizers
  except ImportError as error:
    raise ValueError(
      'data.codec is one of tokens and needs the package tokenizers; install'
      " it with pip install '.[tokens]', or use data.codec.Bytes()."
    ) from error
  return tokenizers


def _stored_type(spelling: Any) -> str:
  return '<u2' if spelling.vocabulary_size <= 2**16 else '<u4'


def _write(
  spelling: Any, corpus: text_lib.Corpus, folder: pathlib.Path
) -> None:
  """The files of a stream; see codec.Stream."""
  logging.info('Encoding %s', corpus.path)
  offsets = array.array('q', [0])
  size = 0
  with (folder / 'ids.bin').open('wb') as file:
    for batch in _batches(corpus):
      for ids in spelling.encode_all(batch):
        file.write(ids.astype(_stored_type(spelling)).tobytes())
        offsets.append(offsets[-1] + len(ids))
        size += int(spelling.lengths_V[ids].sum())
        size -= len(spelling.lead) if len(ids) else 0
  assert size == len(corpus.bytes), 'a codec loses nothing'
  np.save(folder / 'offsets.npy', np.array(offsets, np.int64))
  counts = {'documents': len(corpus), 'bytes': size, 'ids': offsets[-1]}
  spelling.describe(folder, counts)


def _batches(corpus: text_lib.Corpus) -> Iterator[list[np.ndarray]]:
  """Documents in order, in lists of a megabyte or a single larger one."""
  batch, size = [], 0
  for document in corpus:
    batch.append(document)
    size += len(document)
    if size >= _BATCH_BYTES:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch
