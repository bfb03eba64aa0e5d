"""The objective over columns against its gradient on paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training import column_nats
from training import step


def apply(params, ids, documents, *, target, value):
  """Every cell has the same softmax, whatever stands before it."""
  del ids, documents, value
  return jax.nn.log_softmax(params)[target]


def test_gradient_is_that_of_weighted_softmaxes():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=5).astype(np.float32)
  targets = rng.integers(0, 4, (4, 6)).astype(np.int32)
  mask = (rng.random((4, 6)) < 0.7).astype(np.float32)
  label = np.tile([0.0, 0.0, 1.0], (4, 2)).astype(np.float32)
  # What does not count may be impossible.
  params = jnp.asarray(np.append(logits, -np.inf))
  targets = np.where(mask > 0, targets, 5)
  batch = {
    'ids': targets,
    'documents': np.ones_like(targets),
    'targets': targets,
    'mask': mask,
    'label': label,
    'value': mask,
  }
  sums, gradient = step.gradients(
    column_nats.ColumnNats(label_weight=3.0), apply, params, batch, 2
  )
  p = np.exp(logits) / np.exp(logits).sum()
  nats = -np.log(np.append(p, 1.0))[targets]
  weight = mask * (1 + 2 * label)
  np.testing.assert_allclose(sums.loss, (weight * nats).sum(), rtol=1e-5)
  np.testing.assert_allclose(sums.count, mask.sum())
  means = {'nats': mask * nats, 'label_nats': mask * label * nats}
  for name, value in means.items():
    np.testing.assert_allclose(sums.metrics[name], value.sum(), rtol=1e-5)
  counts = np.bincount(targets.ravel(), weight.ravel(), 6)[:5]
  expected = (weight.sum() * p - counts) / mask.sum()
  np.testing.assert_allclose(gradient[:5], expected, rtol=1e-4, atol=1e-6)


def test_negative_weight_is_refused():
  with pytest.raises(ValueError, match=r'label_weight=-1 must not be negative'):
    column_nats.ColumnNats(label_weight=-1)
