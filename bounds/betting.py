"""The geometric-mean betting bound: the main certificate, and its curve.

A gambler who bets against the predictor multiplies its wealth by
(B - x) / (B - E[x]) at a symbol of loss x and ceiling B. The game is fair, so
by Ville's inequality the wealth ever reaches 1/delta with probability delta at
most. Since Jensen's inequality is the only other step, no variance is estimated
and the value never exceeds the mean ceiling.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from bounds import bound

# Bits above the least possible ceiling; an index into it costs 5 bits.
SLACKS = (0.0, *(2.0 ** (k / 2 - 3) for k in range(31)))


@dataclasses.dataclass(frozen=True)
class Betting:
  """risk <= mean(B) - exp(mean(ln(B - x)) - cost), ceilings B, losses x.

  B is `ceilings_N` plus the best of the fixed `slacks`, in bits, whose index is
  added to the description. Random: the stream. Predictable: ceilings_N, which
  are at least every loss that is possible at their symbol, for example
  log2(V / alpha). A ceiling that depends on its own symbol voids the bound.
  Proof: the product of (B - x) / (B - E[x]) is a nonnegative martingale, so
  mean(ln(B - E[x])) >= mean(ln(B - x)) - cost with probability 1 - delta, and
  ln(mean(B) - risk) >= mean(ln(B - E[x])) by Jensen. Compare the capital of
  Waudby-Smith and Ramdas (arXiv 2010.09686). The term `price` is the derivative
  by cost: one more bit of file costs price ln(2) / N bits per symbol.
  """

  delta: float = 0.05
  slacks: tuple[float, ...] = SLACKS

  def __post_init__(self) -> None:
    check(self.delta, self.slacks)

  def __call__(
    self,
    losses_N: np.ndarray,
    description_bits: float,
    *,
    ceilings_N: np.ndarray | float,
  ) -> bound.Bound:
    losses_N = bound.as_losses(losses_N)
    bits = description_bits + math.log2(len(self.slacks))
    cost = bound.cost(bits, self.delta, len(losses_N))
    return certify(losses_N, cost, ceilings_N=ceilings_N, slacks=self.slacks)


@dataclasses.dataclass(frozen=True)
class Curve:
  """`Betting` for every prefix of the stream, all at once, at one delta.

  value_N[t-1] bounds the mean over the first t symbols of E[loss | past], with
  cost (K ln 2 + ln 1/delta) / t: for a fixed file and slack the wealth stays
  below 1/delta forever with probability 1 - delta. It needs all that `Betting`
  needs, and a ceiling rule that does not know the length of the stream.
  """

  delta: float = 0.05
  slacks: tuple[float, ...] = SLACKS

  def __post_init__(self) -> None:
    check(self.delta, self.slacks)

  def __call__(
    self,
    losses_N: np.ndarray,
    description_bits: float,
    *,
    ceilings_N: np.ndarray | float,
  ) -> np.ndarray:
    losses_N = bound.as_losses(losses_N)
    bits = description_bits + math.log2(len(self.slacks))
    steps_N = np.arange(1, len(losses_N) + 1)
    cost_N = bound.cost(bits, self.delta, 1) / steps_N
    value_N = np.full(len(losses_N), np.inf)
    rooms = _rooms(losses_N, ceilings_N, self.slacks)
    means_N = np.cumsum(losses_N) / steps_N
    for _, room_N in rooms:
      log_N = np.cumsum(_log(room_N)) / steps_N
      ceiling_N = means_N + np.cumsum(room_N) / steps_N
      np.minimum(value_N, ceiling_N - np.exp(log_N - cost_N), out=value_N)
    return value_N


def check(delta: float, slacks: tuple[float, ...]) -> None:
  """Raises ValueError unless these are the fields of a betting bound."""
  bound.check_delta(delta)
  if not slacks or not all(0 <= slack < math.inf for slack in slacks):
    raise ValueError(
      f'slacks={slacks!r} must be a tuple of finite numbers >= 0, fixed before'
      ' the stream is seen; (0.0,) raises no ceiling'
    )


def certify(
  losses_N: np.ndarray,
  cost: float,
  *,
  ceilings_N: np.ndarray | float,
  slacks: tuple[float, ...],
) -> bound.Bound:
  """The bound of `Betting` at a cost in nats that has paid for the slacks."""
  risk = float(losses_N.mean())
  best, value, room = 0.0, math.inf, 0.0
  for slack, room_N in _rooms(losses_N, ceilings_N, slacks):
    mean = float(room_N.mean())
    candidate = risk + mean - math.exp(float(_log(room_N).mean()) - cost)
    if candidate < value:
      best, value, room = slack, candidate, mean
  terms = {
    'empirical_risk': risk,
    'gap': value - risk,
    'cost': cost,
    'ceiling': risk + room,
    'slack': best,
    'price': risk + room - value,
  }
  return bound.Bound(value, terms)


def loss_weights(
  losses_N: np.ndarray, certificate: bound.Bound, *, ceilings_N: np.ndarray
) -> np.ndarray:
  """N times the derivative of the bound by each loss: (mean B - R) / (B - x).

  For training on the certificate itself; ceilings_N as given to `Betting`. All
  are 0 if one loss is on its ceiling, where the bound is the mean ceiling.
  """
  losses_N = bound.as_losses(losses_N)
  terms = certificate.terms
  _, room_N = next(_rooms(losses_N, ceilings_N, (terms['slack'],)))
  return terms['price'] / np.where(room_N > 0, room_N, np.inf)


def _rooms(
  losses_N: np.ndarray,
  ceilings_N: np.ndarray | float,
  slacks: tuple[float, ...],
) -> Iterator[tuple[float, np.ndarray]]:
  """Each slack with what the ceilings, so raised, leave above the losses."""
  ceilings_N = bound.as_row('ceilings_N', ceilings_N, len(losses_N))
  room_N = ceilings_N - losses_N
  if room_N.min() < 0:
    worst = int(room_N.argmin())
    raise ValueError(
      f'loss {losses_N[worst]} of symbol {worst} exceeds its ceiling'
      f' {ceilings_N[worst]}; a ceiling is at least every possible loss, such'
      ' as log2(V / alpha) of a smoothed predictor'
    )
  for slack in slacks:
    yield slack, room_N + slack


def _log(room_N: np.ndarray) -> np.ndarray:
  # A loss on its ceiling takes all wealth: the value is then the mean ceiling.
  with np.errstate(divide='ignore'):
    return np.log(room_N)
