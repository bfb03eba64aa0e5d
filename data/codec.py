"""The byte vocabulary of the Byte Latent Transformer (arXiv 2412.09871)."""

import numpy as np

PADDING = 0
BOS = 1
EOS = 2
DELIMITER = 3
OFFSET = 4
VOCABULARY = 256 + OFFSET


def encode(text: bytes | np.ndarray) -> np.ndarray:
  """Ids (int32) of bytes or of a uint8 array, without BOS and EOS."""
  if isinstance(text, np.ndarray):
    if text.dtype != np.uint8:
      raise ValueError(
        f'encode got an array of {text.dtype}; bytes are uint8, so an array of'
        ' ids belongs to decode.'
      )
    return text.astype(np.int32) + OFFSET
  if not isinstance(text, bytes | bytearray | memoryview):
    raise ValueError(
      f'encode got {type(text).__name__}; it takes bytes, so call'
      " text.encode('utf-8') first."
    )
  return np.frombuffer(text, np.uint8).astype(np.int32) + OFFSET


def decode(ids: np.ndarray) -> bytes:
  """The bytes among the ids; padding, BOS, EOS and delimiters are dropped."""
  ids = np.asarray(ids).astype(np.int64).ravel()
  if ids.size and not 0 <= ids.min() <= ids.max() < VOCABULARY:
    raise ValueError(
      f'decode got ids from {ids.min()} to {ids.max()}; the vocabulary has ids'
      f' 0 to {VOCABULARY - 1}.'
    )
  return (ids[ids >= OFFSET] - OFFSET).astype(np.uint8).tobytes()
