"""The loss of mixed and smoothed classes against its closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training import soft_labels


def test_the_gradient_is_the_softmax_less_the_soft_class():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(4, 1, 5))
  targets, other = np.array([0, 3, 2, 4]), np.array([1, 3, 0, 4])
  share, mask = np.array([0.3, 1.0, 0.6, 0.5]), np.array([1.0, 1.0, 1.0, 0.0])
  batch = {
    'ids': np.zeros((4, 2), np.int32),
    'documents': np.ones((4, 1), np.int32),
    **{
      name: x[:, None]
      for name, x in {
        'targets': targets,
        'other': other,
        'share': share.astype(np.float32),
        'mask': mask.astype(np.float32),
      }.items()
    },
  }
  objective = soft_labels.SoftLabels(smoothing=0.2)

  def loss(logits, batch=batch):
    sums = objective(lambda *_: logits, None, batch)
    return sums.loss, sums

  run = jax.jit(jax.grad(loss, has_aux=True))
  grads, sums = jax.device_get(run(jnp.asarray(logits, jnp.float32)))
  p = np.exp(logits[:, 0]) / np.exp(logits[:, 0]).sum(-1, keepdims=True)
  wanted = np.full((4, 5), 0.2 / 5)
  rows = np.arange(4)
  wanted[rows, targets] += 0.8 * share
  np.add.at(wanted, (rows, other), 0.8 * (1 - share))
  np.testing.assert_allclose(
    grads[:, 0], mask[:, None] * (p - wanted), atol=1e-6
  )
  nats = -np.sum(wanted * np.log(p), axis=-1)
  assert float(sums.loss) == pytest.approx(np.sum(mask * nats), rel=1e-5)
  assert float(sums.count) == 3
  own = -np.log(p[rows, targets])
  assert float(sums.metrics['nats']) == pytest.approx(np.sum(mask * own))
  alone = {name: x for name, x in batch.items() if name != 'other'}
  _, alone = jax.device_get(
    jax.jit(jax.grad(functools.partial(loss, batch=alone), has_aux=True))(
      jnp.asarray(logits, jnp.float32)
    )
  )
  soft = 0.8 * own - 0.2 * np.mean(np.log(p), axis=-1)
  assert float(alone.loss) == pytest.approx(np.sum(mask * soft), rel=1e-5)
  wrong = p.argmax(-1) != targets
  assert float(sums.metrics['error']) == np.sum(mask * wrong)


def test_bad_smoothing_is_named():
  with pytest.raises(ValueError, match=r'smoothing=1 must be in \[0, 1\)'):
    soft_labels.SoftLabels(smoothing=1)
