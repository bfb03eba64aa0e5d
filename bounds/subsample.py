"""Bounds whose empirical risk is itself estimated, from n of N symbols.

The n indices are uniform, with or without replacement, and drawn independently
of everything after the file is fixed. So these bounds hold for that one file:
choosing among several by one draw adds log2(files) bits to `choice_bits`.
delta is split into r delta for the stream and (1 - r) delta for the draw, with
r = n / (n + N) (arXiv 2312.17173).
"""

import dataclasses
import math

import numpy as np

from bounds import betting
from bounds import bound

# All above 0, for a ceiling that no loss reaches.
SLACKS = betting.SLACKS[1:]


@dataclasses.dataclass(frozen=True)
class SampledAzuma:
  """risk <= mean of the n losses + (high - low) (stream term + draw term).

  Stream term sqrt((K ln 2 + ln 1/(r delta)) / (2 N)); draw term
  sqrt((choice_bits ln 2 + ln 1/((1 - r) delta)) / (2 n)), times
  sqrt(1 - (n - 1) / N) if `without_replacement` (Serfling 1974). Random: the
  stream and the draw. Fixed with the file: `low` and `high`, in bits.
  """

  delta: float = 0.05
  without_replacement: bool = False

  def __post_init__(self) -> None:
    bound.check_delta(self.delta)

  def __call__(
    self,
    losses_n: np.ndarray,
    description_bits: float,
    *,
    stream_length: int,
    low: float,
    high: float,
    choice_bits: float = 0.0,
  ) -> bound.Bound:
    losses_n = bound.as_losses(losses_n)
    bound.check_within(losses_n, low, high)
    count = len(losses_n)
    stream, draw = split_delta(self.delta, count, stream_length)
    if self.without_replacement and count > stream_length:
      raise ValueError(f'{count} draws leave none of {stream_length} symbols')
    cost = bound.cost(description_bits, stream, stream_length)
    draw_cost = bound.cost(choice_bits, draw, count)
    if self.without_replacement:
      draw_cost *= 1 - (count - 1) / stream_length
    risk = float(losses_n.mean())
    sampling = (high - low) * math.sqrt(draw_cost / 2)
    gap = (high - low) * math.sqrt(cost / 2) + sampling
    terms = {'empirical_risk': risk, 'gap': gap, 'cost': cost}
    return bound.Bound(risk + gap, terms | {'sampling': sampling})


@dataclasses.dataclass(frozen=True)
class SampledBetting:
  """risk <= B - exp(L - cost), L a lower bound on the mean of ln(B - x).

  `betting.Betting` for a constant ceiling, where the draw bounds the mean over
  all N symbols of ln(B - x), which lies between ln(slack) and ln(B - low), by a
  betting bound of its own. It serves draws without replacement too (theorem 4
  of Hoeffding 1963). Random: the stream and the draw. Fixed with the file:
  `low` and `ceiling`, in bits, between which every possible loss lies.
  """

  delta: float = 0.05
  slacks: tuple[float, ...] = SLACKS

  def __post_init__(self) -> None:
    betting.check(self.delta, self.slacks)
    bound.check_grid('slacks', self.slacks)

  def __call__(
    self,
    losses_n: np.ndarray,
    description_bits: float,
    *,
    stream_length: int,
    low: float,
    ceiling: float,
    choice_bits: float = 0.0,
  ) -> bound.Bound:
    losses_n = bound.as_losses(losses_n)
    bound.check_within(losses_n, low, ceiling)
    stream, draw = split_delta(self.delta, len(losses_n), stream_length)
    grid_bits = math.log2(len(self.slacks))
    cost = bound.cost(description_bits + grid_bits, stream, stream_length)
    # The slack is chosen by the draw too, so the draw pays for it once more.
    meta = betting.Betting(draw)
    risk = float(losses_n.mean())
    best = bound.Bound(math.inf, {})
    for slack in self.slacks:
      top = ceiling + slack
      most = math.log(top - low)
      width = most - math.log(slack)
      low_n = np.clip(most - np.log(top - losses_n), 0.0, width)
      mean = meta(low_n, choice_bits + grid_bits, ceilings_N=width)
      value = top - math.exp(most - mean.value - cost)
      if value < best.value:
        terms = {'empirical_risk': risk, 'gap': value - risk, 'cost': cost}
        best = bound.Bound(value, terms | {'slack': slack, 'ceiling': top})
    return best


def split_delta(
  delta: float, count: int, stream_length: int
) -> tuple[float, float]:
  """delta for the stream, n / (n + N) of it, and for the draw of n symbols."""
  if stream_length < 1:
    raise ValueError(f'stream_length={stream_length} must be at least 1')
  share = count / (count + stream_length)
  return share * delta, (1 - share) * delta
