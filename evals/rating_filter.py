"""The exact Bayes filter of synthetic raters: the best possible scores."""

from typing import NamedTuple

import numpy as np

from data import rating_world

COLUMNS = ('gap', 'item', 'rating')


class Filtered(NamedTuple):
  """Exact probabilities of every event.

  rating_NTR: of each rating, given the past and the event's gap and item.
  nats_NTK: -log of the probability of each of COLUMNS given the past and the
    columns before it; the first gap, which is always 0, has none.
  """

  rating_NTR: np.ndarray
  nats_NTK: np.ndarray

  @property
  def good_NT(self) -> np.ndarray:
    """P(the rating is at least rating_world.GOOD)."""
    return self.rating_NTR[:, :, rating_world.GOOD - 1 :].sum(2)


def run(
  world: rating_world.World,
  ratings: rating_world.Ratings,
  *,
  revealed: bool = True,
) -> Filtered:
  """Filters bias (U) and mood (M) of users from their first event on.

  revealed: whether the ratings of the past are known.
  """
  users, events = ratings.gap.shape
  state_NUM = np.tile(world.bias_U[:, None] * world.first_mood_M, (users, 1, 1))
  rating_TNR, nats_TNK = [], []
  for t in range(events):
    before_N = state_NUM.sum((1, 2))
    if t:
      gap_NM = world.gap_MG[:, ratings.gap[:, t]].T
      state_NUM = state_NUM * gap_NM[:, None]
    gap_N = state_NUM.sum((1, 2)) / before_N
    state_NUM = state_NUM / state_NUM.sum((1, 2), keepdims=True)
    law_UMNR = world.rating_UMIR[:, :, ratings.item[:, t]]
    law_NR = np.einsum('num,umnr->nr', state_NUM, law_UMNR)
    seen_N = ratings.rating[:, t].astype(int) - 1
    place_N = np.arange(users)
    if revealed:
      state_NUM = state_NUM * np.moveaxis(law_UMNR[:, :, place_N, seen_N], 2, 0)
    state_NUM = state_NUM @ world.mood_MM
    state_NUM /= state_NUM.sum((1, 2), keepdims=True)
    rating_TNR.append(law_NR)
    item_N = world.item_I[ratings.item[:, t]]
    law_NK = np.stack([gap_N, item_N, law_NR[place_N, seen_N]], 1)
    nats_TNK.append(-np.log(law_NK))
  return Filtered(np.stack(rating_TNR, 1), np.stack(nats_TNK, 1))
