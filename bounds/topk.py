"""How often the true symbol is not among the k likeliest."""

import dataclasses
import math

import numpy as np

from bounds import bound
from bounds import catoni


@dataclasses.dataclass(frozen=True)
class TopK:
  """error <= inf over tilts of (1 - exp(-t e - cost)) / (1 - exp(-t)).

  e is the share of symbols whose rank, from 0, is k or more: `catoni.Catoni` on
  losses 0 and 1, where the betting bound is the same. Errors need no smoothing;
  chance level is 1 - k / V. Random: the stream. Fixed with the file: the order
  of symbols at each context, ties broken without looking at the true one.
  `together` certificates at once, of several k or next to one in bits, each pay
  log2(together) bits.
  """

  k: int = 1
  delta: float = 0.05
  together: int = 1
  tilts: tuple[float, ...] = catoni.TILTS

  def __post_init__(self) -> None:
    bound.check_delta(self.delta)
    if self.k < 1 or self.together < 1:
      raise ValueError(
        f'k={self.k} and together={self.together} must be at least 1'
      )

  def __call__(
    self, ranks_N: np.ndarray, description_bits: float
  ) -> bound.Bound:
    ranks_N = np.asarray(ranks_N)
    if ranks_N.dtype.kind not in 'iu' or (ranks_N < 0).any():
      raise ValueError(
        f'ranks of {ranks_N.dtype} must be integers >= 0, 0 for the likeliest'
      )
    errors_N = (ranks_N >= self.k).astype(np.float64)
    bits = description_bits + math.log2(self.together)
    rule = catoni.Catoni(self.delta, self.tilts)
    return rule(errors_N, bits, low=0.0, high=1.0)
