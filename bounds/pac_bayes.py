"""Betting bounds for random weights: the price of a draw is a density ratio.

Weights h are drawn from a posterior Q that depends on the stream; the prior P
is fixed before it. Everything that P and Q need at the decoder (scales per
tensor, say) is in the description. Trying n seeds adds log2(n) bits to it.
"""

import dataclasses
import math

import numpy as np

from bounds import betting
from bounds import bound


@dataclasses.dataclass(frozen=True)
class Disintegrated:
  """`betting.Betting` for one draw h, at cost (ln dQ/dP(h) + ...) / N.

  cost = (log_ratio + description_bits ln 2 + ln 1/delta) / N, in nats, with
  log_ratio = ln dQ/dP(h), which may be negative. Random: the stream and one
  draw of h, with randomness of its own. Predictable: as for `Betting`. Markov's
  inequality for dP/dQ(h) times the wealth of h, whose mean over h ~ Q is at
  most that of the wealth over h ~ P (Rivasplata et al., arXiv 2006.13057).
  """

  delta: float = 0.05
  slacks: tuple[float, ...] = betting.SLACKS

  def __post_init__(self) -> None:
    betting.check(self.delta, self.slacks)

  def __call__(
    self,
    losses_N: np.ndarray,
    log_ratio: float,
    *,
    ceilings_N: np.ndarray | float,
    description_bits: float = 0.0,
  ) -> bound.Bound:
    losses_N = bound.as_losses(losses_N)
    if not math.isfinite(log_ratio):
      raise ValueError(
        f'log_ratio={log_ratio} must be finite: the prior has a density'
        ' wherever the posterior has one'
      )
    count = len(losses_N)
    bits = description_bits + math.log2(len(self.slacks))
    cost = bound.cost(bits, self.delta, count) + log_ratio / count
    return betting.certify(
      losses_N, cost, ceilings_N=ceilings_N, slacks=self.slacks
    )


@dataclasses.dataclass(frozen=True)
class Gibbs:
  """risk of Q <= E mean(B) - exp(E mean(ln(B - x)) - cost), E over h ~ Q.

  Q gives weight_S to S predictors and cost is (KL(Q || P) + description_bits
  ln 2 + ln 1/delta) / N, in nats. It bounds the Q-average of the risks and, as
  -log is convex, the risk of the Q-averaged prediction. Random: the stream.
  Predictable: as for `Betting`, for each predictor. Donsker and Varadhan's
  inequality for the logarithm of the wealth.
  """

  delta: float = 0.05
  slacks: tuple[float, ...] = betting.SLACKS

  def __post_init__(self) -> None:
    betting.check(self.delta, self.slacks)

  def __call__(
    self,
    losses_SN: np.ndarray,
    weight_S: np.ndarray,
    *,
    divergence: float,
    ceilings_SN: np.ndarray | float,
    description_bits: float = 0.0,
  ) -> bound.Bound:
    losses_SN = np.asarray(losses_SN, np.float64)
    weight_S = np.asarray(weight_S, np.float64)
    if losses_SN.ndim != 2 or weight_S.shape != losses_SN.shape[:1]:
      raise ValueError(
        f'losses of shape {losses_SN.shape} need one weight for each row, not'
        f' {weight_S.shape}'
      )
    if (weight_S < 0).any() or abs(weight_S.sum() - 1) > 1e-12:
      raise ValueError(f'weights {weight_S} must be >= 0 and sum to 1')
    if not 0 <= divergence < math.inf:
      raise ValueError(f'divergence={divergence} must be finite and >= 0, nats')
    ceilings_SN = np.broadcast_to(
      np.asarray(ceilings_SN, np.float64), losses_SN.shape
    )
    count = losses_SN.shape[1]
    bits = description_bits + math.log2(len(self.slacks))
    cost = bound.cost(bits, self.delta, count) + divergence / count
    return min(
      (
        self._at(slack, losses_SN, weight_S, cost, ceilings_SN)
        for slack in self.slacks
      ),
      key=lambda result: result.value,
    )

  def _at(
    self,
    slack: float,
    losses_SN: np.ndarray,
    weight_S: np.ndarray,
    cost: float,
    ceilings_SN: np.ndarray,
  ) -> bound.Bound:
    """The bound at one slack, from that of each predictor."""
    risk = ceiling = logarithm = 0.0
    for losses_N, ceilings_N, weight in zip(
      losses_SN, ceilings_SN, weight_S, strict=True
    ):
      if not weight:
        continue
      one = betting.certify(
        bound.as_losses(losses_N), 0.0, ceilings_N=ceilings_N, slacks=(slack,)
      )
      risk += weight * one.terms['empirical_risk']
      ceiling += weight * one.terms['ceiling']
      price = one.terms['price']
      logarithm += weight * (math.log(price) if price > 0 else -math.inf)
    price = math.exp(logarithm - cost)
    terms = {'empirical_risk': risk, 'gap': ceiling - price - risk}
    terms |= {'cost': cost, 'ceiling': ceiling, 'slack': slack, 'price': price}
    return bound.Bound(ceiling - price, terms)


def gaussian_divergence(
  mean_N: np.ndarray, *, scale: float, prior_scale: float
) -> float:
  """KL(N(mean, scale**2) || N(0, prior_scale**2)) of independent weights, nats.

  Per weight ln(sp/sq) + (w**2 + sq**2) / (2 sp**2) - 1/2. It is the mean of
  `gaussian_log_ratio` over draws.
  """
  _check_scales(scale, prior_scale)
  mean_N = np.asarray(mean_N, np.float64)
  quadratic_N = (mean_N**2 + scale**2) / prior_scale**2 - 1
  count = mean_N.size
  return float(count * math.log(prior_scale / scale) + quadratic_N.sum() / 2)


def gaussian_log_ratio(
  draw_N: np.ndarray, mean_N: np.ndarray, *, scale: float, prior_scale: float
) -> float:
  """ln dQ/dP at a draw, Q = N(mean, scale**2), P = N(0, prior_scale**2)."""
  _check_scales(scale, prior_scale)
  draw_N = np.asarray(draw_N, np.float64)
  noise_N = (draw_N - np.asarray(mean_N, np.float64)) / scale
  quadratic = float(((draw_N / prior_scale) ** 2 - noise_N**2).sum())
  return draw_N.size * math.log(prior_scale / scale) + quadratic / 2


def _check_scales(scale: float, prior_scale: float) -> None:
  if not (0 < scale < math.inf and 0 < prior_scale < math.inf):
    raise ValueError(
      f'scale={scale} and prior_scale={prior_scale} must be finite and positive'
    )
