import itertools
import math

import numpy as np
import pytest

from data import rating_stream
from data import rating_world
from evals import rating_filter

WORLD = rating_world.World()


def enumerate_user(user, last, *, revealed):
  """P(rating `last` | past, item) and nats of all columns, over all paths."""
  gap, item, rating = ([int(x) for x in column] for column in user)
  total = np.zeros(rating_world.RATINGS)
  for bias in range(5):
    for path in itertools.product(range(2), repeat=last + 1):
      p = WORLD.bias_U[bias] * WORLD.first_mood_M[path[0]]
      for t, mood in enumerate(path):
        if t:
          p *= WORLD.mood_MM[path[t - 1], mood] * WORLD.gap_MG[mood, gap[t]]
        p *= WORLD.item_I[item[t]]
        law_R = WORLD.rating_UMIR[bias, mood, item[t]]
        if t < last and revealed:
          p *= law_R[rating[t] - 1]
      total += p * law_R
  return total / total.sum(), -math.log(total.sum())


@pytest.mark.parametrize('revealed', [False, True])
def test_filter_is_the_sum_over_all_paths(revealed):
  stream = rating_stream.RatingStream(events=5)
  ratings, _ = stream.draw(0, 3)
  found = rating_filter.run(WORLD, ratings, revealed=revealed)
  for number in range(3):
    user = rating_world.Ratings(*(column[number] for column in ratings))
    law_R, nats = enumerate_user(user, 4, revealed=revealed)
    np.testing.assert_allclose(found.rating_NTR[number, -1], law_R, rtol=1e-9)
    nats_TK = found.nats_NTK[number].copy()
    nats_TK[-1 if revealed else slice(None), -1] = 0
    np.testing.assert_allclose(nats_TK.sum(), nats, rtol=1e-9)


def test_probabilities_are_calibrated_and_the_past_helps():
  stream = rating_stream.RatingStream()
  ratings, latents = stream.draw(0, 512)
  seen = rating_filter.run(WORLD, ratings)
  good_NT = ratings.rating >= rating_world.GOOD
  order = np.argsort(seen.good_NT, axis=None)
  for p_E, y_E in zip(
    np.array_split(seen.good_NT.ravel()[order], 8),
    np.array_split(good_NT.ravel()[order], 8),
    strict=True,
  ):
    spread = np.sqrt((p_E * (1 - p_E)).sum())
    assert abs((y_E - p_E).sum()) < 3 * spread
  hidden = rating_filter.run(WORLD, ratings, revealed=False)
  nats, blind = (f.nats_NTK[..., 2].mean() for f in (seen, hidden))
  assert nats < blind - 0.05
  # Gaps tell of the mood: they are longer in bad ones.
  gap_NT, mood_NT = ratings.gap[:, 1:], latents.mood[:, 1:]
  assert gap_NT[mood_NT == 0].mean() > 1.5 * gap_NT[mood_NT == 1].mean()


def test_stream_is_prepared_as_events(tmp_path):
  stream = rating_stream.RatingStream(
    users=10, events=6, directory=str(tmp_path)
  )
  corpus = stream.open('test')
  ratings, _ = stream.drawn('test')
  assert corpus.tokenizer.names == ('time:gap', 'item', 'rating')
  label_E = np.asarray(corpus.ids_EC[:, -1]).astype(int)
  label_E -= corpus.tokenizer.label.code.first
  np.testing.assert_array_equal(label_E + 1, ratings.rating.ravel())
  days_E = np.diff(corpus.times_E[:6]) // 86_400
  np.testing.assert_array_equal(days_E, ratings.gap[0, 1:])
  cut, _ = stream.draw(8, 2)
  for column, other in zip(ratings, cut, strict=True):
    assert column.tobytes() == other.tobytes()
