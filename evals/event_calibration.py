"""Probabilities of classes that agree with how often the classes come.

Vector scaling (Guo et al., arXiv 1706.04599) with one slope; of two classes it
is Platt's. Letters: E events, K classes.
"""

import dataclasses

import numpy as np

_STEPS, _HALVINGS = 50, 30
_CLOSE = 1e-10
_LEAST = -100.0  # nats; what is impossible stays finite


@dataclasses.dataclass(frozen=True)
class Calibration:
  """log p = slope log q + shift of the class, less what makes it sum to 1."""

  slope: float
  shifts: tuple[float, ...]

  def __call__(self, log_q_EK: np.ndarray) -> np.ndarray:
    """Log-probabilities (float64) of the classes."""
    return _law(np.array([self.slope, *self.shifts]), _bounded(log_q_EK))


def fit(log_q_EK: np.ndarray, class_E: np.ndarray) -> Calibration:
  """The likeliest calibration of events that were not trained on.

  A normal prior of deviation 1 about no change at all makes it unique, and
  keeps it small where there are few events.
  """
  log_q_EK = _bounded(log_q_EK)
  events, classes = log_q_EK.shape
  start = np.append(1.0, np.zeros(classes))
  found, loss = start, _loss(start, start, log_q_EK, class_E)
  for _ in range(_STEPS):
    p_EK = np.exp(_law(found, log_q_EK))
    excess_EK = p_EK.copy()
    excess_EK[np.arange(events), class_E] -= 1
    gradient = np.append(np.sum(excess_EK * log_q_EK), excess_EK.sum(0))
    gradient += found - start
    mean_E = np.sum(p_EK * log_q_EK, axis=1)
    cross_K = np.sum(p_EK * (log_q_EK - mean_E[:, None]), axis=0)
    curvature = np.eye(classes + 1)
    curvature[0, 0] += np.sum(p_EK * log_q_EK**2) - np.sum(mean_E**2)
    curvature[0, 1:] += cross_K
    curvature[1:, 0] += cross_K
    curvature[1:, 1:] += np.diag(p_EK.sum(0)) - p_EK.T @ p_EK
    step = np.linalg.solve(curvature, gradient)
    if gradient @ step < _CLOSE * events:
      break
    for _ in range(_HALVINGS):
      nearer = _loss(found - step, start, log_q_EK, class_E)
      if nearer < loss:
        break
      step = step / 2
    else:
      break
    found, loss = found - step, nearer
  return Calibration(float(found[0]), tuple(map(float, found[1:])))


def _bounded(log_q_EK: np.ndarray) -> np.ndarray:
  return np.maximum(np.asarray(log_q_EK, np.float64), _LEAST)


def _law(found: np.ndarray, log_q_EK: np.ndarray) -> np.ndarray:
  logits_EK = found[0] * log_q_EK + found[1:]
  highest_E1 = logits_EK.max(axis=1, keepdims=True)
  sum_E1 = np.exp(logits_EK - highest_E1).sum(axis=1, keepdims=True)
  return logits_EK - highest_E1 - np.log(sum_E1)


def _loss(
  found: np.ndarray,
  start: np.ndarray,
  log_q_EK: np.ndarray,
  class_E: np.ndarray,
) -> float:
  log_p_EK = _law(found, log_q_EK)
  nats = -log_p_EK[np.arange(len(class_E)), class_E].sum()
  return float(nats + np.sum((found - start) ** 2) / 2)
