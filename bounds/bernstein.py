"""Bounds that gain from a small empirical variance."""

import dataclasses
import math

import numpy as np

from bounds import bound

# Shares of the largest step allowed, from 0.0002 to 0.94, evenly in log odds.
RATES = tuple(1 / (1 + 2.0 ** (k * 16 / 63 - 4)) for k in range(64))


@dataclasses.dataclass(frozen=True)
class EmpiricalBernstein:
  """risk <= mean loss + (reach / l) (psi(l) mean(((x - y) / reach)**2) + cost).

  x are the losses, psi(l) = -ln(1 - l) - l, and l the best of the fixed
  `rates`, whose index is added to the description. Random: the stream.
  Predictable: the centres y. To be fixed with the file: `reach`, in bits, above
  x - y for every possible loss x.
  From exp(l u - psi(l) u**2) <= 1 + l u at u = (y - x) / reach >= -1. Fan,
  Grama and Liu (arXiv 1311.6273); Howard et al. (arXiv 1810.08240).
  """

  delta: float = 0.05
  rates: tuple[float, ...] = RATES

  def __post_init__(self) -> None:
    _check(self.delta, self.rates)

  def __call__(
    self,
    losses_N: np.ndarray,
    description_bits: float,
    *,
    centres_N: np.ndarray | float,
    reach: float,
  ) -> bound.Bound:
    losses_N = bound.as_losses(losses_N)
    steps_N = _steps(losses_N, centres_N, reach)
    bits = description_bits + math.log2(len(self.rates))
    cost = bound.cost(bits, self.delta, len(losses_N))
    square = float(np.mean(steps_N**2))
    gap, rate = min(
      (reach / r * ((-math.log1p(-r) - r) * square + cost), r)
      for r in self.rates
    )
    risk = float(losses_N.mean())
    terms = {'empirical_risk': risk, 'gap': gap, 'cost': cost, 'rate': rate}
    return bound.Bound(risk + gap, terms | {'mean_square': square * reach**2})


@dataclasses.dataclass(frozen=True)
class Freedman:
  """risk <= mean loss + (reach / s) (cost + mean(s a - ln(1 + s a))).

  a = (y - x) / reach for losses x, and s the best of the fixed `rates`, whose
  index is added to the description. Random, predictable and fixed as for
  `EmpiricalBernstein`. From 1 + s E[a] <= exp(s E[a]); arXiv 2504.15208. At a
  constant centre it is never below the betting bound with ceiling
  y + reach / s, and equal at the best s.
  """

  delta: float = 0.05
  rates: tuple[float, ...] = RATES

  def __post_init__(self) -> None:
    _check(self.delta, self.rates)

  def __call__(
    self,
    losses_N: np.ndarray,
    description_bits: float,
    *,
    centres_N: np.ndarray | float,
    reach: float,
  ) -> bound.Bound:
    losses_N = bound.as_losses(losses_N)
    steps_N = _steps(losses_N, centres_N, reach)
    bits = description_bits + math.log2(len(self.rates))
    cost = bound.cost(bits, self.delta, len(losses_N))
    gap, rate = min(
      (reach / r * (cost + np.mean(r * steps_N - np.log1p(r * steps_N))), r)
      for r in self.rates
    )
    risk = float(losses_N.mean())
    terms = {'empirical_risk': risk, 'gap': gap, 'cost': cost, 'rate': rate}
    return bound.Bound(float(risk + gap), terms)


def running_means(losses_N: np.ndarray, first: float) -> np.ndarray:
  """Mean of `first` and the losses before each one: a predictable centre."""
  losses_N = bound.as_losses(losses_N)
  sums_N = first + np.concatenate([[0.0], np.cumsum(losses_N[:-1])])
  return sums_N / np.arange(1, len(losses_N) + 1)


def _check(delta: float, rates: tuple[float, ...]) -> None:
  bound.check_delta(delta)
  bound.check_grid('rates', rates)
  if max(rates) >= 1:
    raise ValueError(f'rates up to {max(rates)} must be below 1')


def _steps(
  losses_N: np.ndarray, centres_N: np.ndarray | float, reach: float
) -> np.ndarray:
  """(centre - loss) / reach, checked to be at least -1."""
  centres_N = bound.as_row('centres_N', centres_N, len(losses_N))
  most = float((losses_N - centres_N).max())
  if not max(most, 0) <= reach < math.inf or reach == 0:
    raise ValueError(
      f'reach={reach} must be finite, above 0 and at least the largest possible'
      f' loss minus its centre; {most} was seen'
    )
  return (centres_N - losses_N) / reach
