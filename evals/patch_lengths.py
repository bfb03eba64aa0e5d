"""How long patches are, and the threshold that gives a wanted mean length.

Everything is exact for the ids at hand: lengths are counted, and thresholds
are found among the numbers that the rule compares with them.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

# Mean patch lengths in bytes; 4.5 is that of the published models.
WANTED = (2.0, 3.0, 4.0, 4.5, 6.0, 8.0)


class Statistics(NamedTuple):
  """Of patches that hold bytes; begin and end marks are not counted.

  mean, median, longest: bytes per patch, 0 where there is no patch.
  single, cut: shares of patches of one byte, and of those that ended only
    because of the rule's max_length.
  histogram: (shortest, longest, patches) for lengths from 1 upwards.
  """

  bytes: int
  patches: int
  mean: float
  median: float
  longest: int
  single: float
  cut: float
  histogram: tuple[tuple[int, int, int], ...]


class Choice(NamedTuple):
  """A threshold for a wanted mean length, and the mean that it gives.

  value: None if no threshold gives it; mean is then the nearest possible.
  """

  wanted: float
  value: float | None
  mean: float


def numbers(closes_BT: np.ndarray, documents_BT: np.ndarray) -> np.ndarray:
  """The patch of every id, counted from 0 over all rows (int64 [B, T]).

  A patch starts with a document, with a row and after a close; padding
  (document 0) has no patch of its own.
  """
  starts_BT = np.ones(closes_BT.shape, bool)
  starts_BT[:, 1:] = closes_BT[:, :-1]
  starts_BT[:, 1:] |= documents_BT[:, 1:] != documents_BT[:, :-1]
  starts_BT &= documents_BT > 0
  number_N = np.cumsum(starts_BT.ravel(), dtype=np.int64) - 1
  return number_N.reshape(closes_BT.shape)


def lengths(
  closes_BT: np.ndarray, documents_BT: np.ndarray, is_byte_BT: np.ndarray
) -> np.ndarray:
  """Bytes of each patch that holds any (int64 [P]), in reading order."""
  number_BT = numbers(closes_BT, documents_BT)
  held_P = np.bincount(number_BT[is_byte_BT & (documents_BT > 0)])
  return held_P[held_P > 0]


def mean(lengths_P: np.ndarray) -> float:
  """Bytes per patch, 0 without patches."""
  return float(np.sum(lengths_P)) / max(len(lengths_P), 1)


def statistics(lengths_P: np.ndarray, cut: int) -> Statistics:
  """Of patches of these lengths, `cut` of which a maximum has ended."""
  count = len(lengths_P)
  longest = int(lengths_P.max(initial=0))
  return Statistics(
    bytes=int(lengths_P.sum()),
    patches=count,
    mean=mean(lengths_P),
    median=float(np.median(lengths_P)) if count else 0.0,
    longest=longest,
    single=int(np.sum(lengths_P == 1)) / max(count, 1),
    cut=cut / max(count, 1),
    histogram=tuple(
      (low, high, int(np.sum((lengths_P >= low) & (lengths_P <= high))))
      for low, high in _bins(longest)
    ),
  )


def _bins(longest: int) -> Iterable[tuple[int, int]]:
  """1 to 16 one by one, then 17-32, 33-64, ... as far as needed."""
  yield from ((length, length) for length in range(1, min(longest, 16) + 1))
  low = 17
  while low <= longest:
    yield low, 2 * low - 2
    low = 2 * low - 1


def described(found: Statistics) -> list[tuple[str, str]]:
  """Statistics as names and values for a reader."""
  return [
    ('bytes', f'{found.bytes}'),
    ('patches', f'{found.patches}'),
    ('mean length', f'{found.mean:.3f} bytes'),
    ('median length', f'{found.median:g} bytes'),
    ('longest', f'{found.longest} bytes'),
    ('patches of one byte', f'{found.single:.2%}'),
    ('cut by max_length', f'{found.cut:.2%}'),
  ]


def choose(
  wanted: Iterable[float],
  scores: np.ndarray,
  mean_at: Callable[[float], float],
) -> list[Choice]:
  """For each wanted mean length the threshold that comes nearest to it.

  scores: float32, what the rule compares; a patch ends where a score is above
    the threshold. Others may be among them.
  mean_at: mean length under the rule with a threshold; it never falls as the
    threshold rises, also where patches have a greatest length.
  """
  # Thresholds between neighbours of this list are all the same to the rule.
  score_N = np.unique(np.asarray(scores, np.float32).ravel()).astype(np.float64)
  if not len(score_N):
    return [Choice(each, None, 0.0) for each in wanted]
  edges = np.concatenate([[score_N[0] - 1], score_N, [score_N[-1] + 1]])
  means: dict[int, float] = {}

  def at(step: int) -> float:
    if step not in means:
      means[step] = mean_at(between(edges[step], edges[step + 1]))
    return means[step]

  return [_choice(each, edges, at) for each in wanted]


def _choice(
  wanted: float, edges: np.ndarray, at: Callable[[int], float]
) -> Choice:
  """Bisection: the first step whose mean is not below `wanted`, or before."""
  low, high = 0, len(edges) - 2
  for end, is_beyond in ((low, at(low) > wanted), (high, at(high) < wanted)):
    if is_beyond:
      return Choice(wanted, None, at(end))
  while low < high:
    middle = (low + high) // 2
    if at(middle) < wanted:
      low = middle + 1
    else:
      high = middle
  if low and wanted - at(low - 1) < at(low) - wanted:
    low -= 1
  return Choice(wanted, between(edges[low], edges[low + 1]), at(low))


def between(low: float, high: float) -> float:
  """A number of few digits that float32 takes as one in [low, high)."""
  middle = (low + high) / 2
  for digits in range(2, 12):
    value = float(f'{middle:.{digits}f}')
    if low <= np.float32(value) < high:
      return value
  return float(low)
