"""Bits per byte by the position in a document, as far as documents go."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from data import codec
from evals import bits_per_byte


@dataclasses.dataclass(frozen=True)
class BitsByPosition:
  """-log2 p per byte of documents read from their start in one row each.

  Positions are grouped from 0 to `first` and then by doubling, the curve of
  LM-Infinite (arXiv 2308.16137, figure 3): flat where a model goes on to read
  well, rising where positions are beyond what it was trained on. A group's
  mean is over the documents that reach its end, so groups of a report are of
  different texts; `ratio` compares a group with the first one of the same
  documents.

  first: ids in the first group, as in a training row. longest: ids read of a
  document. most: documents read, the longest ones.
  """

  first: int = 512
  longest: int = 65_536
  most: int = 8

  def __post_init__(self) -> None:
    doublings = math.log2(max(self.longest / max(self.first, 1), 0.5))
    if self.first < 1 or doublings < 0 or doublings % 1 or self.most < 1:
      raise ValueError(
        f'evals: longest={self.longest} must be first={self.first} times a'
        f' power of two, and most={self.most} at least 1.'
      )

  def run(
    self,
    apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,
    documents: Sequence[np.ndarray],
    *,
    max_bytes: int | None = None,
  ) -> dict[str, float | int | None]:
    """Scores documents of uint8 arrays, as evals.bits_per_byte does.

    Returns `by_position/STOP/...` for groups that end at STOP and that some
    document fills: bits_per_byte with its standard error over documents,
    ratio, and the count of documents.
    """
    del max_bytes  # Documents that are cut short are what this is not about.
    spelling = getattr(documents, 'codec', codec.Bytes())
    sizes = np.array([len(documents[i]) for i in range(len(documents))])
    order = np.argsort(-sizes, kind='stable')[: self.most]
    groups: dict[int, list[tuple[float, float]]] = {}
    for i in order:
      text = np.asarray(documents[int(i)])
      bits_N, bytes_N = self._bits(apply, params, text, spelling)
      start, stop = 0, self.first
      first = None
      while stop <= len(bits_N):
        part = slice(start, stop)
        found = float(bits_N[part].sum() / bytes_N[part].sum())
        first = found if first is None else first
        groups.setdefault(stop, []).append((found, first))
        start, stop = stop, 2 * stop
    if not groups:
      raise ValueError(
        f'evals: no document of the split has first={self.first} ids; lower'
        ' it, or choose a split with longer documents.'
      )
    return {
      f'by_position/{stop}/{name}': value
      for stop, pairs in groups.items()
      for name, value in _summary(np.array(pairs)).items()
    }

  def _bits(
    self, apply: Any, params: Any, text: np.ndarray, spelling: Any
  ) -> tuple[np.ndarray, np.ndarray]:
    """Bits of as many ids as fill whole groups, and the bytes they are."""
    ids = spelling.encode(text)[: self.longest]
    length = self.first
    while 2 * length <= len(ids):
      length *= 2
    ids = ids[:length]
    if len(ids) < self.first:
      return np.zeros(0), np.zeros(0)
    row = codec.marked(spelling.bos, ids[:-1])
    nats_BT = bits_per_byte.score(
      apply, params, row[None], ids[None], np.ones_like(row)[None]
    )
    bits_N = np.asarray(nats_BT, np.float64)[0] / math.log(2)
    bytes_N = spelling.lengths_V[ids]
    bytes_N[0] -= len(spelling.lead)
    return bits_N, bytes_N


def _summary(pairs_N2: np.ndarray) -> dict[str, float | int | None]:
  """Of a group: bits per byte, and those of the first group, by document."""
  bits_N, first_N = pairs_N2.T
  spread = None
  if len(bits_N) > 1:
    spread = float(bits_N.std(ddof=1) / math.sqrt(len(bits_N)))
  return {
    'bits_per_byte': float(bits_N.mean()),
    'bits_per_byte_stderr': spread,
    'ratio': float(bits_N.mean() / first_N.mean()),
    'documents': len(bits_N),
  }
