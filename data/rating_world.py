"""The laws of synthetic users who rate items, of whom everything is known.

A user has a bias that never changes and a mood that is a Markov chain over
events; an item has a quality. Ratings follow an ordered logit of their sum,
gaps depend on the mood, items on nothing. Axes: N users, T events, U biases,
M moods, I items, G gaps in days, R ratings.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

ITEMS = 500
MAX_GAP = 90
RATINGS = 5
# From here on a rating is good, which is the task.
GOOD = 4
_BIASES = (-2.0, -1.0, 0.0, 1.0, 2.0)
_CUTS = (-2.5, -1.5, -0.5, 1.0)
_MEAN_GAPS = (12.0, 5.0)


class Ratings(NamedTuple):
  """Events of users, every array (N, T) of integers.

  gap: days since the event before, 0 in the first column; item: in
  [0, ITEMS); rating: 1 to RATINGS.
  """

  gap: np.ndarray
  item: np.ndarray
  rating: np.ndarray


@dataclasses.dataclass(frozen=True)
class World:
  """Every law, from one seed that all splits share."""

  seed: int = 0

  @property
  def bias_U(self) -> np.ndarray:
    """Probabilities of the biases."""
    return np.array([0.1, 0.2, 0.4, 0.2, 0.1])

  @property
  def mood_MM(self) -> np.ndarray:
    """P(next mood | mood), bad and good; applied after every event."""
    return np.array([[0.85, 0.15], [0.08, 0.92]])

  @property
  def first_mood_M(self) -> np.ndarray:
    """Probabilities of the first mood, those of the chain at rest."""
    return np.array([0.08, 0.15]) / 0.23

  @functools.cached_property
  def item_I(self) -> np.ndarray:
    """P(item): Zipf of exponent 0.8."""
    law_I = np.arange(1.0, ITEMS + 1) ** -0.8
    return law_I / law_I.sum()

  @functools.cached_property
  def gap_MG(self) -> np.ndarray:
    """P(gap | mood): geometric, cut at MAX_GAP."""
    law_MG = np.exp(-np.arange(MAX_GAP + 1) / np.array(_MEAN_GAPS)[:, None])
    return law_MG / law_MG.sum(1, keepdims=True)

  @functools.cached_property
  def rating_UMIR(self) -> np.ndarray:
    """P(rating - 1 | bias, mood, item)."""
    rng = np.random.default_rng([self.seed, 72_020])
    quality_I = rng.normal(0, 1, ITEMS)
    mood_M = np.array([-1.2, 0.6])
    sum_UMI = np.array(_BIASES)[:, None, None] + mood_M[:, None] + quality_I
    below_UMIK = 1 / (1 + np.exp(sum_UMI[..., None] - np.array(_CUTS)))
    edges = (
      np.zeros((*sum_UMI.shape, 1)),
      below_UMIK,
      np.ones_like(sum_UMI[..., None]),
    )
    return np.diff(np.concatenate(edges, -1), axis=-1)
