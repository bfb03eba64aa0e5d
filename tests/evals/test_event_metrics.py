import numpy as np
import pytest

from evals import event_metrics


@pytest.fixture(scope='module')
def some():
  """Probabilities with ties, labels that follow them, entities of 4 events."""
  rng = np.random.default_rng(0)
  probability_E = np.round(rng.beta(0.5, 2, 240), 1).clip(0.01, 0.99)
  label_E = (rng.random(240) < probability_E).astype(float)
  return probability_E, label_E, np.arange(240) // 4


def at_threshold(p_E, y_E, threshold):
  called_E = p_E >= threshold
  hits, alarms = y_E[called_E].sum(), (1 - y_E[called_E]).sum()
  return hits / y_E.sum(), alarms / (1 - y_E).sum(), hits / called_E.sum()


def test_scores_by_their_definitions(some):
  p_E, y_E, entity_E = some
  found = event_metrics.Scores(p_E, y_E, entity_E, 0.3).metrics()
  pairs = [(a > b) + (a == b) / 2 for a in p_E[y_E == 1] for b in p_E[y_E == 0]]
  assert found['auc'] == pytest.approx(np.mean(pairs))
  points = [at_threshold(p_E, y_E, t) for t in sorted(set(p_E))[::-1]]
  before, area = 0.0, 0.0
  for recall, _, precision in points:
    area += (recall - before) * precision
    before = recall
  assert found['average_precision'] == pytest.approx(area)
  for name, rate in (('0.1%', 0.001), ('1%', 0.01)):
    best = max([0.0, *(r for r, alarms, _ in points if alarms <= rate)])
    assert found[f'recall_at_fpr_{name}'] == pytest.approx(best)
  recall, _, precision = at_threshold(p_E, y_E, 0.3)
  f1 = 2 * recall * precision / (recall + precision)
  assert found['f1'] == pytest.approx(f1)
  losses = [-np.log(p if y else 1 - p) for p, y in zip(p_E, y_E, strict=True)]
  assert found['log_loss'] == pytest.approx(np.mean(losses))
  assert found['brier'] == pytest.approx(np.mean((p_E - y_E) ** 2))


def test_calibration_error_of_distinct_probabilities():
  rng = np.random.default_rng(1)
  p_E = np.sort(rng.random(150))
  y_E = (rng.random(150) < p_E**2).astype(float)
  found = event_metrics.Scores(p_E, y_E, np.arange(150)).metrics()
  bins = np.split(p_E - y_E, 15)
  assert found['ece'] == pytest.approx(np.mean([abs(b.mean()) for b in bins]))


def test_weights_count_events_several_times(some):
  p_E, y_E, entity_E = some
  weight_E = np.random.default_rng(2).integers(0, 3, len(p_E))
  weighted = event_metrics.Scores(p_E, y_E, entity_E, 0.3).metrics(weight_E)
  repeated = event_metrics.Scores(
    *(np.repeat(x, weight_E) for x in some), threshold=0.3
  ).metrics()
  del weighted['ece'], repeated['ece']  # Its bins are of the sample.
  assert weighted == pytest.approx(repeated)


def test_order_of_users_does_not_matter(some):
  order = np.random.default_rng(3).permutation(240)
  shuffled = event_metrics.Scores(*(x[order] for x in some)).metrics()
  assert event_metrics.Scores(*some).metrics() == pytest.approx(shuffled)


def test_error_is_that_of_entities_not_of_events():
  rng = np.random.default_rng(4)
  # All 10 events of an entity are alike: as many facts as entities.
  p_E = np.repeat(rng.random(300), 10)
  y_E = np.repeat((rng.random(300) < 0.5).astype(float), 10)
  scores = event_metrics.Scores(p_E, y_E, np.arange(3000) // 10)
  found = scores.report(400)
  error_N = ((p_E - y_E) ** 2)[::10]
  expected = error_N.std() / np.sqrt(300)
  assert found['brier_stderr'] == pytest.approx(expected, rel=0.15)
  assert found['brier_low'] < found['brier'] < found['brier_high']
  width = found['brier_high'] - found['brier_low']
  assert width == pytest.approx(2 * 1.96 * expected, rel=0.2)


def test_pairs_cancel_what_is_common(some):
  p_E, y_E, entity_E = some
  ours = event_metrics.Scores(p_E, y_E, entity_E)
  worse = event_metrics.Scores(np.clip(p_E + 0.01, 0, 0.99), y_E, entity_E)
  found = event_metrics.compare(worse, ours, 50)
  assert found['auc'] == found['auc_stderr'] == 0
  assert 0 < found['log_loss_stderr'] < ours.report(50)['log_loss_stderr'] / 3
  with pytest.raises(ValueError, match='score different events'):
    event_metrics.compare(ours, event_metrics.Scores(p_E, 1 - y_E, entity_E))


def test_regret_is_above_the_ceiling(some):
  p_E, y_E, entity_E = some
  best_E = np.where(y_E == 1, 0.9, 0.1)
  scores = event_metrics.Scores(p_E, y_E, entity_E, ceiling_E=best_E)
  found = scores.metrics()
  assert found['regret'] == pytest.approx(found['log_loss'] + np.log(0.9))


def test_best_threshold_has_the_highest_f1(some):
  p_E, y_E, entity_E = some
  best = event_metrics.best_threshold(p_E, y_E)
  scores = {
    t: event_metrics.Scores(p_E, y_E, entity_E, t).metrics()['f1']
    for t in set(p_E)
  }
  assert scores[best] == max(scores.values())


def test_errors(some):
  p_E, y_E, entity_E = some
  with pytest.raises(ValueError, match='240 events are all of one class'):
    event_metrics.Scores(p_E, np.zeros(240), entity_E)
  with pytest.raises(ValueError, match='label_E has 239 events and'):
    event_metrics.Scores(p_E, y_E[1:], entity_E)
  with pytest.raises(ValueError, match='not finite'):
    event_metrics.Scores(np.where(p_E > 0.5, np.nan, p_E), y_E, entity_E)
