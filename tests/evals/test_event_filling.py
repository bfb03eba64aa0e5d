"""Filling missing cells, and drawing new events, by models made to measure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import event_batches
from data import event_codes
from evals import event_filling
from evals import event_futures
from tests.data import event_tables

COLUMNS = event_tables.COLUMNS
SIZES = event_tables.TOKENIZER.sizes_C
SHUFFLED = event_batches.EventRows(shuffle=1.0, mask_all=0.0)


def follows(params, ids_BT, documents_BT, *, value, rank):
  """The place is b if the amount is UNDER, where the amount is read before."""
  del params, documents_BT, value
  shape = (*ids_BT.shape[:1], -1, COLUMNS)
  ids_BEC, rank_BEC = ids_BT.reshape(shape), rank.reshape(shape)
  under_BE = ids_BEC[..., 1] == SIZES[0] + event_codes.UNDER
  before_BE = rank_BEC[..., 1] < rank_BEC[..., 0]
  logit_BE = jnp.where(under_BE & before_BE, 2.0, -1.0)
  logits = jnp.zeros((*ids_BEC.shape, int(sum(SIZES))))
  # Special ids are the likeliest of all, and nothing to fill cells with.
  logits = logits.at[..., :3].set(9.0).at[..., 0, 3].set(logit_BE)
  logits = logits.at[..., 0, 2].set(0.0)
  return logits.reshape(*ids_BT.shape, -1)


def test_cells_are_filled_given_the_known_ones_of_their_event():
  corpus = event_tables.draw((3, 9, 2, 5))
  missing = np.zeros(corpus.ids_EC.shape, bool)
  missing[::2, 0] = True
  corpus.ids_EC[missing] = event_codes.NULL
  found = event_filling.fill(
    follows, None, corpus, missing, rows=SHUFFLED, window=6
  )
  np.testing.assert_array_equal(
    found.ids_EC[~missing], corpus.ids_EC[~missing]
  )
  under = corpus.ids_EC[:, 1] == event_codes.UNDER
  expected = np.where(under, 3, 2)[::2]
  np.testing.assert_array_equal(found.ids_EC[::2, 0], expected)
  p = 1 / (1 + np.exp(np.where(under, -2.0, -1.0)))
  np.testing.assert_allclose(found.probability_EC[::2, 0], p[::2], rtol=1e-5)
  assert np.isnan(found.probability_EC[~missing]).all()


@pytest.mark.parametrize(('mask_all', 'places'), [(1.0, 1), (0.0, 2)])
def test_a_hidden_label_is_read_last(mask_all, places):
  corpus = event_tables.draw((3, 2))
  missing = np.zeros(corpus.ids_EC.shape, bool)
  missing[0, 0] = True
  ranks = []

  def remember(params, ids_BT, documents_BT, *, value, rank):
    jax.debug.callback(lambda x: ranks.append(x[0, : 2 * COLUMNS]), rank)
    return follows(params, ids_BT, documents_BT, value=value, rank=rank)

  rows = event_batches.EventRows(shuffle=1.0, mask_all=mask_all)
  event_filling.fill(remember, None, corpus, missing, rows=rows, window=6)
  jax.effects_barrier()
  event, other = ranks[0].reshape(2, COLUMNS)
  assert event[0] == places and event[-1] == COLUMNS - places
  np.testing.assert_array_equal(other, np.arange(COLUMNS))


def test_numbers_are_filled_with_the_median():
  column = event_tables.TOKENIZER.columns[1]
  # NULL, UNDER, OVER, ZERO, [1, 2), [2, 4].
  p = np.array([[0.9, 0, 0, 0.04, 0.03, 0.03], [0, 0, 0, 0.2, 0.25, 0.55]])
  with np.errstate(divide='ignore'):
    ids, probability = event_filling.best(column, np.log(p))
  np.testing.assert_array_equal(ids, [4, 5])
  np.testing.assert_allclose(probability, [0.3, 0.55])


def test_one_order_fills_nothing():
  corpus = event_tables.draw((2,))
  rows = event_batches.EventRows()
  with pytest.raises(ValueError, match=r'EventRows\(shuffle=1\.0\)'):
    event_filling.fill(follows, None, corpus, None, rows=rows, window=6)


def test_values_are_drawn_as_often_as_they_should_be():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=5)
  possible = np.array([False, True, True, False, True])
  ids = event_futures.choose(np.tile(logits, (20_000, 1)), possible, rng)
  p = np.exp(logits) * possible
  shares = np.bincount(ids, minlength=5) / len(ids)
  np.testing.assert_allclose(shares, p / p.sum(), atol=0.015)


def test_special_ids_are_not_drawn():
  place, amount, fraud = event_tables.TOKENIZER.columns
  expected = ((place, [0, 2, 3]), (amount, [0, 3, 4, 5]), (fraud, [3, 4]))
  for column, ids in expected:
    possible = event_futures.possible(column)
    np.testing.assert_array_equal(np.flatnonzero(possible), ids)
