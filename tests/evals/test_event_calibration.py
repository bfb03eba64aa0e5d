"""Calibration against another optimiser, and by the truth of drawn classes."""

import numpy as np
import scipy.optimize

from evals import event_calibration


def draw(events, seed=0):
  """Logits that are twice too sure and favour the first class."""
  rng = np.random.default_rng(seed)
  log_q_EK = 2 * rng.normal(size=(events, 3)) + np.array([1.0, 0, 0])
  p_EK = np.exp((log_q_EK - np.array([1.0, 0, 0])) / 2)
  p_EK /= p_EK.sum(1, keepdims=True)
  class_E = (p_EK.cumsum(1) < rng.random((events, 1))).sum(1)
  return log_q_EK, class_E, p_EK


def test_the_fit_is_the_best_one():
  log_q_EK, class_E, _ = draw(200)
  found = event_calibration.fit(log_q_EK, class_E)

  def loss(x):
    logits_EK = x[0] * log_q_EK + x[1:]
    nats_E = scipy.special.logsumexp(logits_EK, axis=1)
    nats_E -= logits_EK[np.arange(len(class_E)), class_E]
    prior = (x[0] - 1) ** 2 + np.sum(x[1:] ** 2)
    return nats_E.sum() + prior / 2

  best = scipy.optimize.minimize(loss, np.zeros(4)).x
  np.testing.assert_allclose([found.slope, *found.shifts], best, atol=1e-3)


def test_what_was_too_sure_is_mended():
  log_q_EK, class_E, p_EK = draw(20_000)
  found = event_calibration.fit(log_q_EK[:10_000], class_E[:10_000])
  mended_EK = np.exp(found(log_q_EK[10_000:]))
  np.testing.assert_allclose(mended_EK.sum(1), 1)
  assert np.abs(mended_EK - p_EK[10_000:]).mean() < 0.01
  assert abs(found.slope - 0.5) < 0.03


def test_no_event_changes_nothing_and_few_are_survived():
  log_q_EK = np.log(np.array([[0.9, 0.1, 0.0], [1.0, 0, 0]]).clip(1e-300))
  none = event_calibration.fit(log_q_EK[:0], np.zeros(0, int))
  assert none == event_calibration.Calibration(1.0, (0.0, 0.0, 0.0))
  np.testing.assert_allclose(
    np.exp(none(log_q_EK))[0], [0.9, 0.1, 0], atol=1e-9
  )
  one = event_calibration.fit(log_q_EK, np.array([2, 2]))
  assert np.isfinite(one(log_q_EK)).all()
  assert np.exp(one(log_q_EK))[0, 2] > 0.1
