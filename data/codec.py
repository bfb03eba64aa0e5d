"""The byte vocabulary of the Byte Latent Transformer (arXiv 2412.09871).

A codec turns bytes into ids and back. `Bytes` is this vocabulary,
`data.tokens.Bpe` a larger one in which the ids below OFFSET mean the same,
`data.tokenizer_json.TokenizerJson` that of a released model.
"""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

PADDING = 0
BOS = 1
EOS = 2
DELIMITER = 3
OFFSET = 4
VOCABULARY = 256 + OFFSET


class Stream(NamedTuple):
  """The ids of a split's documents back to back, without special ids.

  stored: the ids less `shift`, in a small integer type.
  offsets: document i is stored[offsets[i] : offsets[i + 1]] (int64, N + 1).
  """

  stored: np.ndarray
  offsets: np.ndarray
  shift: int = 0

  def read(self, start: int, stop: int) -> np.ndarray:
    """Ids start to stop - 1 of the stream (int32)."""
    return self.stored[start:stop].astype(np.int32) + self.shift


class Codec(Protocol):
  """From bytes to ids and back, losing nothing.

  vocabulary_size: every id is below it.
  is_trained: whether there is nothing to learn before it can be used.
  lengths_V: bytes that an id stands for (int32); 0 for special ids.
  bos: the id before a document; stops: those that end one, the first of which
    is what a document of a corpus ends with.
  lead: bytes that every text's ids stand for before the text itself, which
    `decode` leaves out; most codecs have none.
  """

  vocabulary_size: int
  is_trained: bool
  lengths_V: np.ndarray
  bos: int
  stops: tuple[int, ...]
  lead: bytes

  def encode(self, text: bytes | np.ndarray) -> np.ndarray:
    """Ids (int32) of bytes or of a uint8 array, without BOS and EOS."""

  def prompt(self, text: bytes) -> np.ndarray:
    """Ids (int32) of a text to continue, with the marks that come first."""

  def decode(self, ids: np.ndarray, *, begins: bool = True) -> bytes:
    """The bytes that the ids stand for; special ids are dropped.

    begins: whether they begin a text, and do not go on with one.
    """

  def trained(self, train: Any) -> 'Codec':
    """This codec, fitted to a train split (a data.text.Corpus) if need be."""

  def untrained(self) -> 'Codec':
    """This codec as a config file names it, without what it has learned."""

  def stream(self, corpus: Any) -> Stream:
    """The ids of a data.text.Corpus, prepared first where needed."""


@dataclasses.dataclass(frozen=True)
class Bytes:
  """Byte b is id b + 4. See Codec for the methods."""

  @property
  def vocabulary_size(self) -> int:
    return VOCABULARY

  bos: ClassVar[int] = BOS
  stops: ClassVar[tuple[int, ...]] = (EOS,)
  lead: ClassVar[bytes] = b''

  @property
  def is_trained(self) -> bool:
    return True

  @functools.cached_property
  def lengths_V(self) -> np.ndarray:
    return (np.arange(VOCABULARY) >= OFFSET).astype(np.int32)

  def encode(self, text: bytes | np.ndarray) -> np.ndarray:
    return encode(text)

  def prompt(self, text: bytes) -> np.ndarray:
    return marked(self.bos, encode(text))

  def decode(self, ids: np.ndarray, *, begins: bool = True) -> bytes:
    del begins  # The same anywhere.
    return decode(ids)

  def trained(self, train: Any) -> 'Bytes':
    del train  # There is nothing to learn.
    return self

  def untrained(self) -> 'Bytes':
    return self

  def stream(self, corpus: Any) -> Stream:
    return Stream(corpus.bytes, corpus.offsets, shift=OFFSET)


def encode(text: bytes | np.ndarray) -> np.ndarray:
  """Ids (int32) of bytes or of a uint8 array, without BOS and EOS."""
  return as_array(text).astype(np.int32) + OFFSET


def decode(ids: np.ndarray) -> bytes:
  """The bytes among the ids; padding, BOS, EOS and delimiters are dropped."""
  ids = as_ids(ids, VOCABULARY)
  return (ids[ids >= OFFSET] - OFFSET).astype(np.uint8).tobytes()


def marked(bos: int, ids: np.ndarray) -> np.ndarray:
  """The ids (int32) after a begin mark."""
  return np.concatenate([[bos], ids]).astype(np.int32)


def as_array(text: bytes | np.ndarray) -> np.ndarray:
  """The uint8 array of bytes; ValueError for text or ids."""
  if isinstance(text, np.ndarray):
    if text.dtype != np.uint8:
      raise ValueError(
        f'encode got an array of {text.dtype}; bytes are uint8, so an array of'
        ' ids belongs to decode.'
      )
    return text
  if not isinstance(text, bytes | bytearray | memoryview):
    raise ValueError(
      f'encode got {type(text).__name__}; it takes bytes, so call'
      " text.encode('utf-8') first."
    )
  return np.frombuffer(text, np.uint8)


def as_ids(ids: np.ndarray, vocabulary_size: int) -> np.ndarray:
  """The ids in one row (int64); ValueError if one is not in the vocabulary."""
  ids = np.asarray(ids).astype(np.int64).ravel()
  if ids.size and not 0 <= ids.min() <= ids.max() < vocabulary_size:
    raise ValueError(
      f'decode got ids from {ids.min()} to {ids.max()}; the vocabulary has ids'
      f' 0 to {vocabulary_size - 1}.'
    )
  return ids
