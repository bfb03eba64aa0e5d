"""Catoni's bound, whose best form is the inverse of a binary kl divergence.

Catoni (2007), chapter 1; for martingales Seldin et al. (arXiv 1110.6886).
"""

import dataclasses
import math

import numpy as np

from bounds import bound

# Neighbours are 30 % apart, which costs at most 1 % of the gap.
TILTS = tuple(2.0 ** (k * 12 / 31 - 7) for k in range(32))


@dataclasses.dataclass(frozen=True)
class Catoni:
  """risk <= low + (high - low) (1 - exp(-t z - cost)) / (1 - exp(-t)).

  z = (mean loss - low) / (high - low), and t the best of the fixed `tilts`,
  whose index is added to the description. Random: the stream. To be fixed with
  the file: `low` and `high`, in bits, between which every possible loss lies.
  By convexity E[exp(-t z_i)] <= 1 - (1 - exp(-t)) E[z_i] given the past; the
  concavity of ln(1 - (1 - exp(-t)) u) lets conditional means vary.
  The infimum over all t is `kl_inverse(z, cost)`, which is itself no bound for
  a dependent stream: there t would depend on it.
  """

  delta: float = 0.05
  tilts: tuple[float, ...] = TILTS

  def __post_init__(self) -> None:
    bound.check_delta(self.delta)
    bound.check_grid('tilts', self.tilts)

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
    bits = description_bits + math.log2(len(self.tilts))
    cost = bound.cost(bits, self.delta, len(losses_N))
    risk = float(losses_N.mean())
    share = (risk - low) / (high - low)
    certified, tilt = min((tilted(share, cost, t), t) for t in self.tilts)
    value = low + (high - low) * min(certified, 1.0)
    terms = {'empirical_risk': risk, 'gap': value - risk, 'cost': cost}
    return bound.Bound(value, terms | {'tilt': tilt})


def tilted(share: float, cost: float, tilt: float) -> float:
  """(1 - exp(-tilt share - cost)) / (1 - exp(-tilt))."""
  return math.expm1(-tilt * share - cost) / math.expm1(-tilt)


def kl_divergence(share: float, mean: float) -> float:
  """Between coins, in nats: a ln(a/b) + (1-a) ln((1-a)/(1-b))."""
  divergence = 0.0
  for a, b in ((share, mean), (1 - share, 1 - mean)):
    if a > 0:
      divergence += a * math.log(a / b) if b > 0 else math.inf
  return divergence


def kl_inverse(share: float, cost: float) -> float:
  """The largest mean >= share with kl_divergence(share, mean) <= cost.

  From above: the exact value is up to one rounding smaller.
  """
  if not 0 <= share <= 1 or not cost >= 0:
    raise ValueError(
      f'kl_inverse({share}, {cost}) needs a share in [0, 1] and a cost >= 0'
    )
  inside, outside = share, 1.0
  while True:
    middle = (inside + outside) / 2
    if not inside < middle < outside:
      return outside
    if kl_divergence(share, middle) <= cost:
      inside = middle
    else:
      outside = middle
