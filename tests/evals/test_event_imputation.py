"""Columns read after all others, and what the laws of card users say."""

import jax.numpy as jnp
import numpy as np
import pytest

from data import event_source
from evals import card_filter
from evals import event_imputation
from evals import event_scores

EVENTS = 4


@pytest.fixture(scope='module')
def stream(tmp_path_factory):
  folder = tmp_path_factory.mktemp('cards')
  return event_source.CardStream(
    users=1000, events=EVENTS, bins=4, directory=str(folder)
  )


def last_is_known(params, ids, documents, *, target, value, rank):
  """1.5 nats for what is read last but a label at the end, 9 for all else."""
  del params, documents, value
  label_BT = jnp.repeat(rank[:, 7::8], 8, axis=1)
  nats_BT = jnp.where((rank == 6) & (label_BT == 7), 1.5, 9.0)
  return jnp.broadcast_to(-nats_BT[..., None], target.shape)


def test_each_column_is_scored_where_it_is_read_after_all_others(stream):
  corpus = stream.open('test')
  evaluator = event_imputation.EventImputation(
    entities=20, window=8, context=4
  )
  report = evaluator.run(last_is_known, None, corpus)
  names = ('time:gap', 'merchant', 'amount', 'channel', 'city', 'error')
  for name in names:
    np.testing.assert_allclose(report[f'impute/nats_of_{name}'], 1.5)
    c = corpus.tokenizer.names.index(name)
    best_E = event_imputation.exact(corpus, c, 20 * EVENTS)
    np.testing.assert_allclose(
      report[f'impute/regret_of_{name}'], 1.5 - np.nanmean(best_E)
    )
  assert len(report) == 4 * len(names)
  assert evaluator.run(last_is_known, None, corpus, max_bytes=100) == {}


def test_exact_nats_are_those_of_the_laws(stream):
  corpus = stream.open('test')
  cards, _ = stream.cards('test')
  names = corpus.tokenizer.names
  nats = {
    name: event_imputation.exact(corpus, names.index(name), 50 * EVENTS)
    for name in ('time:gap', 'amount', 'city')
  }
  nats_NT = {name: x.reshape(-1, EVENTS) for name, x in nats.items()}
  # Nobody's home is known at first, and only who is online has no city.
  offline_N = cards.city[:50, 0] >= 0
  expected = np.where(offline_N, np.log(20), 0)
  np.testing.assert_allclose(nats_NT['city'][:, 0], expected, atol=1e-9)
  assert np.isnan(nats_NT['time:gap'][:, 0]).all()
  assert (nats_NT['time:gap'][:, 1:] >= -1e-9).all()
  # Of four bins of about equal mass.
  assert 0.3 < nats['amount'].mean() < 2.0


def test_scores_stand_beside_what_is_best_possible(stream):
  def one_percent(params, ids, documents, *, target, value):
    """What is fraud in one of a hundred events, whatever they are."""
    del params, ids, documents, value
    is_label = target >= sum(corpus.tokenizer.sizes_C[:-1])
    is_fraud = target == sum(corpus.tokenizer.sizes_C) - 1
    log_p = jnp.where(is_fraud, jnp.log(0.01), jnp.log(0.99))
    return jnp.where(is_label, log_p, -3.0)

  corpus = stream.open('test')
  evaluator = event_scores.EventScores(window=8, context=4, replicates=3)
  report = evaluator.run(one_percent, None, corpus)
  found = {name.removeprefix('hidden/'): x for name, x in report.items()}
  cards, _ = stream.cards('test')
  exact = card_filter.run(stream.world, cards)
  p_E, label_E = exact.fraud_NT.reshape(-1), cards.fraud.reshape(-1)
  best = -np.log(np.where(label_E, p_E, 1 - p_E)).mean()
  loss = -np.log(np.where(label_E, 0.01, 0.99)).mean()
  np.testing.assert_allclose(found['ceiling_log_loss'], best, rtol=1e-6)
  np.testing.assert_allclose(found['regret'], loss - best, rtol=1e-5)
  np.testing.assert_allclose(found['regret_of_fraud'], loss - best, rtol=1e-5)
  city = exact.nats_NTK[..., card_filter.COLUMNS.index('city')].mean()
  np.testing.assert_allclose(found['regret_of_city'], 3 - city, rtol=1e-5)


def test_other_data_have_no_exact_nats(stream):
  corpus = stream.fresh(0, 2)
  names = corpus.tokenizer.names
  assert event_imputation.exact(corpus, names.index('city'), 8) is None
