"""Azuma's inequality: the published token-level bound (arXiv 2407.18158)."""

import dataclasses
import math

import numpy as np

from bounds import bound

# Multipliers in 1/bits for `TokenwiseAzuma`: neighbours are 22 % apart, which
# costs at most 0.5 % of the gap.
RATES = tuple(2.0 ** (k * 18 / 63 - 14) for k in range(64))


@dataclasses.dataclass(frozen=True)
class Azuma:
  """risk <= mean loss + (high - low) sqrt(cost / 2).

  Random: the stream. To be fixed with the file: `low` and `high`, in bits,
  between which every possible loss lies. A smoothing strength that varies with
  the context takes the widest interval, or `TokenwiseAzuma`.
  Hoeffding's lemma and Markov's inequality; theorem 3.1 of arXiv 2407.18158.
  """

  delta: float = 0.05

  def __post_init__(self) -> None:
    bound.check_delta(self.delta)

  def __call__(
    self,
    losses_N: np.ndarray,
    description_bits: float,
    *,
    low: float,
    high: float,
  ) -> bound.Bound:
    losses_N = bound.as_losses(losses_N)
    bound.check_within(losses_N, low, high)
    cost = bound.cost(description_bits, self.delta, len(losses_N))
    risk = float(losses_N.mean())
    gap = (high - low) * math.sqrt(cost / 2)
    terms = {'empirical_risk': risk, 'gap': gap, 'cost': cost}
    return bound.Bound(risk + gap, terms)


@dataclasses.dataclass(frozen=True)
class TokenwiseAzuma:
  """risk <= mean loss + rate/8 mean(width**2) + cost / rate.

  Random: the stream, and with it the widths. Predictable: the width of the
  interval of each loss, in bits. The sum of random widths must not tune the
  rate (1/bits) for free: it is the best of the fixed `rates`, and its index is
  added to the description. Azuma's supermartingale exp(rate (risk - loss) -
  rate**2 width**2 / 8) at each rate, and a union bound.
  """

  delta: float = 0.05
  rates: tuple[float, ...] = RATES

  def __post_init__(self) -> None:
    bound.check_delta(self.delta)
    bound.check_grid('rates', self.rates)

  def __call__(
    self,
    losses_N: np.ndarray,
    description_bits: float,
    *,
    lows_N: np.ndarray | float,
    highs_N: np.ndarray | float,
  ) -> bound.Bound:
    losses_N = bound.as_losses(losses_N)
    count = len(losses_N)
    lows_N = bound.as_row('lows_N', lows_N, count)
    highs_N = bound.as_row('highs_N', highs_N, count)
    if ((losses_N < lows_N) | (losses_N > highs_N)).any():
      raise ValueError(
        'some losses leave their interval; lows_N and highs_N must enclose'
        ' every loss that could have occurred, not only those that did'
      )
    bits = description_bits + math.log2(len(self.rates))
    cost = bound.cost(bits, self.delta, count)
    square = float(np.mean((highs_N - lows_N) ** 2))
    gap, rate = min((r / 8 * square + cost / r, r) for r in self.rates)
    risk = float(losses_N.mean())
    terms = {'empirical_risk': risk, 'gap': gap, 'cost': cost, 'rate': rate}
    return bound.Bound(risk + gap, terms)
