"""Which passages of a key store a prompt calls for, found once per prompt.

Two ways to look are added up: BM25 over the 4-grams of bytes, which need no
words and no vocabulary (Robertson and Zaragoza 2009, The Probabilistic
Relevance Framework), and how near the mean key of a passage is to that of the
prompt's end. Each is scaled to between 0 and 1 over all passages first.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import key_files
from samplers import passages

_GRAM = 4  # bytes, which fill a uint32


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """How passages are chosen.

  passages: that are kept, b. dense: share of the mean keys in a score, the
  rest being BM25's. k1, b: of BM25, how fast repetitions count less and how
  much long passages are held against them.
  """

  passages: int = 40
  dense: float = 0.3
  k1: float = 0.9
  b: float = 0.4

  def __post_init__(self) -> None:
    if self.passages < 1:
      raise ValueError(
        f'retrieval passages={self.passages} must be at least 1; 40 is usual'
      )
    if not 0 <= self.dense <= 1:
      raise ValueError(
        f'retrieval dense={self.dense} must lie in [0, 1]; 0.3 is usual, 0 is'
        ' BM25 alone'
      )
    if not (self.k1 >= 0 and 0 <= self.b <= 1):
      raise ValueError(
        f'retrieval k1={self.k1} must be at least 0 and b={self.b} lie in'
        ' [0, 1]; 0.9 and 0.4 are usual'
      )


class Index(NamedTuple):
  """Which passages have which 4-grams, and how often.

  Gram i is in passage_J[starts[i] : starts[i + 1]], count_J times each.
  """

  grams: np.ndarray  # sorted
  starts: np.ndarray
  passage_J: np.ndarray
  count_J: np.ndarray
  size_P: np.ndarray  # grams per passage


def index(texts: Sequence[bytes]) -> Index:
  """Of the bytes of every passage."""
  found, owners, counts = [], [], []
  sizes = np.zeros(len(texts), np.int64)
  for i, text in enumerate(texts):
    grams, count = np.unique(_grams(text), return_counts=True)
    found.append(grams)
    owners.append(np.full(len(grams), i, np.uint32))
    counts.append(count)
    sizes[i] = count.sum()
  grams_J = np.concatenate(found)
  order = np.argsort(grams_J, kind='stable')
  grams, starts = np.unique(grams_J[order], return_index=True)
  return Index(
    grams,
    np.append(starts, len(grams_J)).astype(np.int64),
    np.concatenate(owners)[order],
    np.concatenate(counts)[order].astype(np.uint32),
    sizes,
  )


def bm25(held: Index, text: bytes, k1: float, b: float) -> np.ndarray:
  """[P]: sum over the 4-grams of a text of idf * tf / (tf + k1 * length)."""
  total = len(held.size_P)
  mean = max(held.size_P.mean(), 1e-9)
  grams, times_G = np.unique(_grams(text), return_counts=True)
  place_G = np.searchsorted(held.grams, grams)
  is_held_G = place_G < len(held.grams)
  is_held_G[is_held_G] = held.grams[place_G[is_held_G]] == grams[is_held_G]
  place_G, times_G = place_G[is_held_G], times_G[is_held_G]
  first_G = held.starts[place_G]
  count_G = held.starts[place_G + 1] - first_G
  idf_G = np.log1p((total - count_G + 0.5) / (count_G + 0.5))
  # What belongs to these grams, one after the other.
  gram_J = np.repeat(np.arange(len(place_G)), count_G)
  shift_G = first_G - np.cumsum(count_G) + count_G
  index_J = np.arange(len(gram_J)) + shift_G[gram_J]
  passage_J = held.passage_J[index_J]
  tf_J = held.count_J[index_J].astype(np.float64)
  length_J = 1 - b + b * held.size_P[passage_J] / mean
  weight_J = (times_G * idf_G)[gram_J]
  score_J = weight_J * tf_J / (tf_J + k1 * length_J)
  return np.bincount(passage_J, score_J, minlength=total)


def nearness(mean_PD: np.ndarray, query_D: np.ndarray) -> np.ndarray:
  """[P]: minus the squared distance between mean keys and a query."""
  mean_PD, query_D = mean_PD.astype(np.float32), query_D.astype(np.float32)
  square_P = np.einsum('PD,PD->P', mean_PD, mean_PD)
  return 2 * (mean_PD @ query_D) - square_P - query_D @ query_D


def choose(
  store: key_files.Store, held: Index, text: bytes, query_D: np.ndarray,
  rule: Retrieval,
) -> np.ndarray:  # fmt: skip
  """The passages with the highest scores, best first, fewer if there are.

  text: the prompt. query_D: mean key of its end.
  """
  sparse_P = _scaled(bm25(held, text, rule.k1, rule.b))
  dense_P = _scaled(nearness(store.mean_PD, query_D))
  score_P = rule.dense * dense_P + (1 - rule.dense) * sparse_P
  return np.argsort(-score_P, kind='stable')[: rule.passages]


def read_index(store: key_files.Store) -> Index:
  """What was written of it with the store."""
  return Index(*(store.array(name) for name in Index._fields))


def load(
  store: key_files.Store, chosen: Sequence[np.ndarray], count: int, tail: int
) -> passages.Loaded:
  """The passages of every row, on the device.

  count: M, of which the last ones are empty where fewer were chosen. tail:
  ids that may follow a passage.
  """
  settings, (ids_N, offsets) = store.settings, store.texts
  size = settings.passage
  shape = len(chosen), count
  # The CPU has no arithmetic of short numbers.
  is_cpu = jax.default_backend() == 'cpu'
  dtype = np.float32 if is_cpu else jnp.dtype(settings.dtype)
  key_BMPD = np.zeros((*shape, size, settings.width), dtype)
  real_BMP = np.zeros((*shape, size), bool)
  id_BML = np.full((*shape, size + tail), -1, np.int32)
  document_BM, offset_BM = (np.full(shape, -1, np.int32) for _ in range(2))
  for row, numbers in enumerate(chosen):
    for place, number in enumerate(numbers):
      document, start, length = (x[number] for x in store.passages)
      end = offsets[document + 1]
      seen = min(size + tail, end - start)
      key_BMPD[row, place, :length] = store.keys.read(start, start + length)
      real_BMP[row, place, :length] = True
      id_BML[row, place, :seen] = ids_N[start : start + seen]
      document_BM[row, place] = document
      offset_BM[row, place] = start - offsets[document]
  key_BCD = key_BMPD.reshape(len(chosen), -1, settings.width)
  arrays = (
    key_BCD,
    np.sum(key_BCD.astype(np.float32) ** 2, axis=2),
    real_BMP.reshape(len(chosen), -1),
    id_BML,
    document_BM,
    offset_BM,
  )
  return passages.Loaded(*map(jnp.asarray, arrays))


def finder(
  store: key_files.Store, rule: Retrieval, tail: int
) -> Callable[[Sequence[bytes], np.ndarray], passages.Loaded]:
  """From prompts and the mean keys [B, D] of their ends to passages."""
  held = read_index(store)

  def find(texts: Sequence[bytes], query_BD: np.ndarray) -> passages.Loaded:
    chosen = [
      choose(store, held, text, query_D, rule)
      for text, query_D in zip(texts, query_BD, strict=True)
    ]
    return load(store, chosen, rule.passages, tail)

  return find


def _grams(text: bytes) -> np.ndarray:
  """Its 4-grams as uint32, in their order."""
  bytes_N = np.frombuffer(text, np.uint8).astype(np.uint32)
  if len(bytes_N) < _GRAM:
    return bytes_N[:0]
  windows_NG = np.lib.stride_tricks.sliding_window_view(bytes_N, _GRAM)
  return windows_NG @ (np.uint32(256) ** np.arange(_GRAM, dtype=np.uint32))


def _scaled(score_P: np.ndarray) -> np.ndarray:
  """From 0 for the lowest to 1 for the highest; 0 if all are equal."""
  low, high = score_P.min(), score_P.max()
  if low == high:
    return np.zeros(len(score_P))
  return (score_P.astype(np.float64) - low) / (float(high) - float(low))
