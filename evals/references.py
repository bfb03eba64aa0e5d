"""What compressors and a k-gram model need for the same bytes.

All figures are bits per byte over one stream: the documents of a split, one
after the other, as a file holding them would be compressed.
"""

import gzip
import lzma

import numpy as np


def references(
  bytes_N: np.ndarray, prime_M: np.ndarray | None = None
) -> dict[str, float]:
  """Bits per byte of gzip -9, xz -9 and an adaptive order-3 k-gram model.

  With `prime_M`, a fourth figure: the same k-gram model that has read those
  bytes (the training split) first, as a trained model has.
  """
  result = {
    'gzip_9': gzip_bits_per_byte(bytes_N),
    'xz_9': xz_bits_per_byte(bytes_N),
    'kgram_3': float(kgram_code_lengths(bytes_N).mean()),
  }
  if prime_M is not None:
    lengths_N = kgram_code_lengths(bytes_N, prime_M=prime_M)
    result['kgram_3_primed'] = float(lengths_N.mean())
  return result


def gzip_bits_per_byte(bytes_N: np.ndarray) -> float:
  """Size of one stream by `gzip -9`, header included."""
  _check(bytes_N)
  return 8 * len(gzip.compress(bytes_N, 9, mtime=0)) / len(bytes_N)


def xz_bits_per_byte(bytes_N: np.ndarray) -> float:
  """Size of one stream by `xz -9`, header included."""
  _check(bytes_N)
  return 8 * len(lzma.compress(bytes_N, preset=9)) / len(bytes_N)


def kgram_code_lengths(
  bytes_N: np.ndarray, *, order: int = 3, prime_M: np.ndarray | None = None
) -> np.ndarray:
  """Code length of every byte, in bits, by an adaptive k-gram model.

  Each byte is predicted from the bytes before it only (those of `prime_M`
  come first) and then counted. Witten-Bell interpolation of the contexts of
  `order`, ..., 1, 0 bytes, down to the uniform 1/256: in a context seen n
  times with t distinct successors, p(byte) = (n(byte) + t p_shorter(byte)) /
  (n + t) (Witten and Bell 1991, method C).
  """
  _check(bytes_N)
  if prime_M is None:
    prime_M = np.zeros(0, np.uint8)
  stream_N = np.concatenate([prime_M, bytes_N])
  if len(stream_N) >= 2**31 or order > 3:
    raise ValueError(
      f'{len(stream_N)} bytes at order {order} exceed the k-gram model, which '
      'counts fewer than 2**31 bytes at orders up to 3; use a part of them'
    )
  probability_N = np.full(len(stream_N), 1 / 256)
  gram_N = np.zeros(len(stream_N), np.uint32)
  seen_N = np.arange(len(stream_N), dtype=np.int32)
  sorted_N = seen_N
  # Every array below starts at the first position with a context this long.
  for length in range(order + 1):
    new_N = stream_N[: len(stream_N) - length].astype(np.uint32)
    gram_N = gram_N | new_N << np.uint32(8 * length)
    hits_N, by_gram_N = _earlier(gram_N)
    kinds_N = _distinct_before(hits_N == 0, seen_N == 0, sorted_N)
    shorter_N = probability_N[length:]
    mixed_N = hits_N + kinds_N * shorter_N
    np.divide(mixed_N, seen_N + kinds_N, out=shorter_N, where=seen_N > 0)
    # What was a gram at one position is the next one's longer context.
    seen_N, gram_N = hits_N[:-1], gram_N[1:]
    sorted_N = by_gram_N[by_gram_N < len(seen_N)]
  return -np.log2(probability_N[len(prime_M) :])


def _earlier(gram_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """How often each gram occurred before, and positions by (gram, time)."""
  # Sorting distinct numbers is several times faster than a stable argsort.
  key_N = gram_N.astype(np.uint64) << np.uint64(32)
  key_N |= np.arange(len(gram_N), dtype=np.uint64)
  key_N.sort()
  sorted_N = key_N.astype(np.uint32).astype(np.int32)
  key_N >>= np.uint64(32)
  place_N = np.arange(len(gram_N), dtype=np.int32)
  start_N = place_N.copy()
  start_N[1:][key_N[1:] == key_N[:-1]] = 0
  hits_N = np.empty_like(place_N)
  hits_N[sorted_N] = place_N - np.maximum.accumulate(start_N)
  return hits_N, sorted_N


def _distinct_before(
  new_N: np.ndarray, fresh_N: np.ndarray, sorted_N: np.ndarray
) -> np.ndarray:
  """Distinct successors that each position's context had before.

  new_N: the byte is new in its context; fresh_N: the context itself is new;
  sorted_N: positions by (context, time).
  """
  new_N, fresh_N = new_N[sorted_N], fresh_N[sorted_N]
  before_N = np.cumsum(new_N, dtype=np.int32) - new_N
  before_N -= np.maximum.accumulate(before_N * fresh_N)
  kinds_N = np.empty_like(before_N)
  kinds_N[sorted_N] = before_N
  return kinds_N


def _check(bytes_N: np.ndarray) -> None:
  if bytes_N.dtype != np.uint8 or bytes_N.ndim != 1 or not len(bytes_N):
    raise ValueError(
      f'references need a non-empty row of uint8, not {bytes_N.dtype} of shape '
      f'{bytes_N.shape}'
    )
