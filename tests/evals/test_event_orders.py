"""One event in two orders: by a stub, and by a model after training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import event_batches
from evals import event_orders
from evals import event_scores
from models import event_lm
from models import forward
from models import stacks
from tests.data import event_tables
from training import column_nats
from training import optimizer
from training import step as step_lib

COLUMNS = event_tables.COLUMNS
SIZES = (6, 2, 5)


def by_place(params, ids, documents, *, target, value, rank):
  """2 nats for what is read first, 1 for all else; P(yes) by amount's place."""
  del params, documents, value
  place_of_amount = rank[:, 1::COLUMNS].repeat(COLUMNS, axis=1)
  p_yes = jnp.where(place_of_amount == 0, 0.2, 0.1)[..., None]
  label = (ids >= 10)[..., None]
  nats = jnp.where(rank == 0, 2.0, 1.0)[..., None]
  # Place 0 of the next column costs more, so that orders differ.
  nats += 0.5 * ((rank == 0) & (ids >= 4) & (ids < 10))[..., None]
  log_p = jnp.where(target == 14, jnp.log(p_yes), jnp.log(1 - p_yes))
  return jnp.where(label & (target >= 10), log_p, -nats)


def test_differences_by_hand():
  corpus = event_tables.draw(SIZES)
  evaluator = event_orders.EventOrders(
    orders=3, entities=2, window=8, context=4
  )
  found = evaluator.run(by_place, None, corpus)
  scored_E = corpus.scored_E[: sum(SIZES[:2])]
  yes_E = (corpus.ids_EC[: len(scored_E), -1] == 4)[scored_E]
  own = 3 - np.log(np.where(yes_E, 0.1, 0.9))
  other = 3.5 - np.log(np.where(yes_E, 0.2, 0.8))
  expected = {
    'orders/nats_per_event': own.mean(),
    'orders/excess': (other - own).mean(),
    'orders/difference': np.abs(other - own).mean() / own.mean(),
    'orders/label_difference': 0.1,
    'orders/label_share': 1.0,
  }
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
  assert evaluator.run(by_place, None, corpus, max_bytes=100) == {}


def test_hours_stay_behind_gaps():
  corpus = event_tables.draw(SIZES)
  place, amount, label = corpus.tokenizer.columns

  def score(kinds, chosen):
    """Every row with column 1 before column 0 costs 100 nats more."""
    columns = [(place, place, amount, label)[c] for c in chosen]
    tokenizer = dataclasses.replace(
      corpus.tokenizer,
      columns=tuple(
        dataclasses.replace(column, name=kind, kind=kind)
        for column, kind in zip(columns, kinds, strict=True)
      ),
    )
    index = [(0, 0, 1, 2)[c] for c in chosen]
    wide = dataclasses.replace(
      corpus, tokenizer=tokenizer, ids_EC=corpus.ids_EC[:, index],
      values_EC=corpus.values_EC[:, index],
    )  # fmt: skip

    def apply(params, ids, documents, *, target, value, rank):
      del params, ids, documents, value
      rank_BEC = rank.reshape(len(rank), -1, len(kinds))
      nats_BE = 1 + 100 * (rank_BEC[..., 1] < rank_BEC[..., 0])
      nats_BT = jnp.repeat(nats_BE, len(kinds), axis=1)
      return -jnp.broadcast_to(nats_BT[..., None], target.shape)

    evaluator = event_orders.EventOrders(orders=6, window=8, context=4)
    return evaluator.run(apply, None, wide)

  for derived in ('hour', 'weekday'):
    found = score(('gap', derived, 'number', 'label'), range(4))
    assert found['orders/difference'] == 0
  found = score(('bool', 'category', 'number', 'label'), range(4))
  assert found['orders/difference'] > 1
  # There is no other order.
  assert score(('gap', 'hour', 'label'), (0, 1, 3)) == {}


@pytest.mark.slow
def test_a_trained_model_of_shuffled_columns_is_consistent():
  corpus = event_tables.draw((8,) * 400, seed=1)
  ids_EC = np.array(corpus.ids_EC)
  rng = np.random.default_rng(2)
  # Amounts go with places and frauds with amounts.
  ids_EC[:, 0] = rng.integers(2, 4, len(ids_EC))
  amount_E = np.where(
    rng.random(len(ids_EC)) < 0.9, ids_EC[:, 0], rng.integers(2, 4, len(ids_EC))
  )
  ids_EC[:, 1] = amount_E + 2
  ids_EC[:, 2] = 3 + (rng.random(len(ids_EC)) < 0.1 + 0.6 * (amount_E == 3))
  values_EC = np.full(ids_EC.shape, np.nan, np.float32)
  corpus = corpus.__class__(
    **vars(corpus) | {'ids_EC': ids_EC, 'values_EC': values_EC}
  )
  model = event_lm.EventLM(
    trunk=stacks.Stack(width=16, layers=1, heads=2, hidden=32),
    columns=tuple(map(int, corpus.tokenizer.sizes_C)),
    cell_width=16,
    cell_hidden=32,
    waves=0,
    reach=2,
  )
  how = event_batches.EventRows(shuffle=1.0, keep_last=0.5)
  rows = event_batches.Rows(corpus, 8 * COLUMNS, how)
  transform = optimizer.AdamW(learning_rate=1e-2, final_ratio=0.01).build(1500)
  ids = jnp.zeros((1, 8 * COLUMNS), jnp.int32)
  params = jax.jit(model.init)(jax.random.key(0), ids)['params']
  state = step_lib.create(params, transform, jax.random.key(1))
  step = jax.jit(
    functools.partial(
      step_lib.train_step,
      objective=column_nats.ColumnNats(),
      apply=forward.counted(model),
      optimizer=transform,
    )
  )
  evaluator = event_orders.EventOrders(
    orders=3, entities=100, window=8, context=4
  )
  before = evaluator.run(forward.pure(model), state.params, corpus)
  for _ in range(1500):
    batch = [rows.vary(rows[i], rng) for i in rng.integers(len(rows), size=32)]
    state, _ = step(
      state, {name: np.stack([b[name] for b in batch]) for name in batch[0]}
    )
  after = evaluator.run(forward.pure(model), state.params, corpus)
  assert before['orders/difference'] > 0.05
  assert after['orders/difference'] < 0.05
  assert after['orders/label_share'] < 0.1
  scores = event_scores.EventScores(window=8, context=4, replicates=2)
  assert scores.run(forward.pure(model), state.params, corpus)[
    'hidden/auc'
  ] > 0.7
