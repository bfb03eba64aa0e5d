"""Scores of events by a model that says what is expected of it."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from data import event_codes
from evals import event_scores
from models import masks
from tests.data import event_tables

COLUMNS = event_tables.COLUMNS
SIZES = (1, 7, 3, 12, 5, 5, 2, 6, 9)
YES = 10 + 4


def counting(params, ids_BT, documents_BT, *, target, value):
  """P(yes) rises with the events seen; a label that is shown makes it 1/2."""
  del params, value
  age_BT = masks.row_tokens(documents_BT).position_BT // COLUMNS
  p_BT = 0.1 + 0.05 * age_BT
  label_BT = ids_BT >= 10
  shown_BT = label_BT & (ids_BT != 10 + event_codes.MASK)
  p_BT = jnp.where(shown_BT, 0.5, p_BT)[..., None]
  log_p = jnp.where(target == YES, jnp.log(p_BT), jnp.log(1 - p_BT))
  return jnp.where(label_BT[..., None], log_p, -2.0)


def age_in(corpus):
  sizes = np.diff(corpus.offsets_N1)
  return np.concatenate([np.arange(size) for size in sizes])


def test_every_event_is_scored_after_its_whole_history():
  corpus = event_tables.draw(SIZES, unlabelled=0.2)
  evaluator = event_scores.EventScores(window=16, context=4, batch_size=3)
  report = evaluator.run(counting, None, corpus)
  label = corpus.ids_EC[:, -1].astype(int)
  counts = corpus.scored_E & (label != event_codes.NULL)
  p = 0.1 + 0.05 * age_in(corpus)
  nats = -np.log(np.where(label == 4, p, 1 - p))[counts]
  found = {name.removeprefix('hidden/'): x for name, x in report.items()}
  np.testing.assert_allclose(found['log_loss'], nats.mean(), rtol=1e-5)
  np.testing.assert_allclose(found['label_rate'], (label == 4)[counts].mean())
  total = nats.sum() + 2.0 * 2 * corpus.scored_E.sum()
  scored = corpus.scored_E.sum()
  np.testing.assert_allclose(found['nats_per_event'], total / scored, rtol=1e-5)
  np.testing.assert_allclose(found['nats_of_place'], 2.0, rtol=1e-5)
  assert found['nats_of_place_stderr'] < 1e-6 < found['nats_of_fraud_stderr']
  assert (found['events'], found['entities']) == (scored, len(SIZES))
  # By pairs: how often a yes has the higher probability.
  yes, no = p[counts & (label == 4)], p[counts & (label == 3)]
  wins = (yes[:, None] > no) + 0.5 * (yes[:, None] == no)
  np.testing.assert_allclose(found['auc'], wins.mean(), rtol=1e-5)
  assert found['auc_stderr'] > 0


def test_long_histories_are_read_in_windows():
  corpus = event_tables.draw((20, 4))
  evaluator = event_scores.EventScores(window=8, context=5, batch_size=2)
  found = evaluator.score(counting, None, corpus, entities=2)
  p = np.exp(found.log_p_EK[:, 1])
  seen = np.round((p - 0.1) / 0.05)
  age = age_in(corpus)
  assert (seen <= age).all()
  assert (seen >= np.minimum(age, 5)).all()
  assert (seen[age < 8] == age[age < 8]).all()


def test_revealed_labels_are_shown():
  corpus = event_tables.draw((4, 4))
  evaluator = event_scores.EventScores(labels='revealed', window=8, context=5)
  found = evaluator.score(counting, None, corpus, entities=2)
  np.testing.assert_allclose(np.exp(found.log_p_EK), 0.5)


def test_a_part_of_a_corpus_is_whole_entities():
  corpus = event_tables.draw(SIZES)
  evaluator = event_scores.EventScores(window=16, context=4)
  report = evaluator.run(counting, None, corpus, max_bytes=COLUMNS * 24)
  assert report['hidden/entities'] == 4
  assert report['hidden/events'] == corpus.scored_E[:23].sum()
  assert 'hidden/auc' in report
  assert 'hidden/auc_stderr' not in report


def test_labels_that_are_all_alike_have_a_loss_only(caplog):
  corpus = event_tables.draw((3, 4))
  corpus.ids_EC[:, -1] = 3
  evaluator = event_scores.EventScores(window=16, context=4)
  report = evaluator.run(counting, None, corpus)
  p = 0.1 + 0.05 * age_in(corpus)[corpus.scored_E]
  np.testing.assert_allclose(
    report['hidden/log_loss'], -np.log(1 - p).mean(), rtol=1e-5
  )
  assert report['hidden/label_rate'] == 0 and 'hidden/auc' not in report
  assert "in split 'train' are alike; only their log-loss" in caplog.text
  corpus.ids_EC[:, -1] = event_codes.NULL
  report = evaluator.run(counting, None, corpus)
  assert 'hidden/log_loss' not in report
  assert report['hidden/nats_of_place'] == 2.0


class Validated:
  """A source of events whose validation split is known."""

  def __init__(self, corpus):
    self.corpus = corpus

  def open(self, split):
    assert split == 'validation'
    return self.corpus


def test_probabilities_are_calibrated_by_the_validation_split():
  rng = np.random.default_rng(0)
  both = [event_tables.draw((9,) * 150, seed=seed) for seed in (1, 2)]
  for corpus in both:
    p = truly(corpus)
    corpus.ids_EC[:, -1] = 3 + (rng.random(len(p)) < p)
  other, test = both
  test = dataclasses.replace(test, split='test', stream=Validated(other))
  evaluator = event_scores.EventScores(window=18, context=9, replicates=2)
  report = evaluator.run(counting, None, test)
  assert report['hidden/ece'] > 0.15
  assert report['hidden/calibrated_ece'] < 0.06
  truth = (test.ids_EC[:, -1] == 4)[test.scored_E]
  p = truly(test)[test.scored_E]
  best = -np.log(np.where(truth, p, 1 - p)).mean()
  assert abs(report['hidden/calibrated_log_loss'] - best) < 0.02
  slope = evaluator.learned(counting, None, Validated(other)).calibration.slope
  assert abs(slope - 2) < 0.5


def truly(corpus):
  """Probabilities that the stub is wrong about."""
  p = 0.1 + 0.05 * age_in(corpus)
  return 1 / (1 + np.exp(-2 * np.log(p / (1 - p)) - 2))


def test_classes_are_joined_after_the_softmax():
  rng = np.random.default_rng(0)
  log_p = np.log(rng.dirichlet(np.ones(5), 7))
  good = np.array([False, False, False, True, True])
  joined = event_scores.consolidate(log_p, good)
  np.testing.assert_allclose(joined, np.exp(log_p[:, 3]) + np.exp(log_p[:, 4]))
  other = event_scores.consolidate(log_p, ~good)
  np.testing.assert_allclose(joined + other, 1.0)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'labels': 'seen'}, "labels='seen' must be"),
    ({'context': 128}, r'context=128 must be in 0\.\.window=128'),
    ({'positive': ('maybe',)}, r"positive=\['maybe'\] is no value"),
  ],
)
def test_what_cannot_be_is_named(fields, message):
  with pytest.raises(ValueError, match=message):
    evaluator = event_scores.EventScores(**fields)
    evaluator.run(counting, None, event_tables.draw((3, 3)))
