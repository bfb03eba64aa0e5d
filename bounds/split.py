"""Bounds that spend a part of the stream, or all its past, on the prior."""

import dataclasses

import numpy as np

from bounds import betting
from bounds import bound


@dataclasses.dataclass(frozen=True)
class Split:
  """`betting.Betting` on the symbols from `start`, with a prior fitted before.

  The description is relative to a prior that may use symbols 0 to start - 1 in
  any way, and cost = (K ln 2 + ln 1/delta) / (N - start). Bounded is the risk
  over those N - start symbols only, which is no statement about the whole
  stream. With no description (a file fixed by the first part) it is a held-out
  test bound. Random: the symbols from `start`, given those before. `start` is
  fixed beforehand.
  """

  start: int
  delta: float = 0.05
  slacks: tuple[float, ...] = betting.SLACKS

  def __post_init__(self) -> None:
    betting.check(self.delta, self.slacks)
    if self.start < 0:
      raise ValueError(f'start={self.start} must be at least 0')

  def __call__(
    self,
    losses_N: np.ndarray,
    description_bits: float,
    *,
    ceilings_N: np.ndarray | float,
  ) -> bound.Bound:
    losses_N = bound.as_losses(losses_N)
    if self.start >= len(losses_N):
      raise ValueError(
        f'start={self.start} leaves none of the {len(losses_N)} symbols; the'
        ' prior may use all but those that are bounded'
      )
    ceilings_N = bound.as_row('ceilings_N', ceilings_N, len(losses_N))
    rule = betting.Betting(self.delta, self.slacks)
    return rule(
      losses_N[self.start :],
      description_bits,
      ceilings_N=ceilings_N[self.start :],
    )


@dataclasses.dataclass(frozen=True)
class Progressive:
  """`betting.Betting` for predictors that change along the stream, K = 0.

  Loss i is that of the predictor as it was before it saw symbol i, at any size.
  Bounded is the average risk of those predictors, each at its own symbol: of
  one drawn at random among them, not of the last. Random: the stream.
  Predictable: the predictor and the ceiling at every symbol.
  """

  delta: float = 0.05
  slacks: tuple[float, ...] = betting.SLACKS

  def __post_init__(self) -> None:
    betting.check(self.delta, self.slacks)

  def __call__(
    self, losses_N: np.ndarray, *, ceilings_N: np.ndarray | float
  ) -> bound.Bound:
    rule = betting.Betting(self.delta, self.slacks)
    return rule(losses_N, 0.0, ceilings_N=ceilings_N)
