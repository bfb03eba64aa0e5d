"""Training on the certificate, against closed forms on one matrix."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bounds import betting
from bounds import codec
from bounds import quantise
from bounds import smoothing
from training import compression

RNG = np.random.default_rng(0)
CLASSES = 6
PARAMS = {
  'w': jnp.asarray(RNG.normal(0, 1.0, (CLASSES, CLASSES)), jnp.float32),
  'norm': jnp.ones((CLASSES,)),
}
SETTING = compression.Setting(symbols=20_000, classes=CLASSES, delta=0.05)


def apply(params, ids_BT, documents_BT):
  del documents_BT
  return params['w'][ids_BT] * params['norm'][None, None]


def measure(logits_BTV, targets_BT):
  p_BTV = jax.nn.softmax(logits_BTV)
  p_BT = jnp.take_along_axis(p_BTV, targets_BT[..., None], -1)[..., 0]
  return p_BT, -(p_BTV * jnp.log2(p_BTV)).sum(-1)


VALUE = functools.partial(
  compression.bound, apply=apply, measure=measure, setting=SETTING
)
TRUTH = RNG.dirichlet(np.full(CLASSES, 0.3), CLASSES)


def batch(seed):
  rng = np.random.default_rng(seed)
  ids_BT = rng.integers(CLASSES, size=(4, 64)).astype(np.int32)
  targets = [rng.choice(CLASSES, p=TRUTH[i]) for i in ids_BT.ravel()]
  return {
    'ids': ids_BT,
    'targets': np.array(targets, np.int32).reshape(4, 64),
    'documents': np.ones((4, 64), np.int32),
    'mask': np.ones((4, 64), np.float32),
  }


def test_value_is_that_of_the_bound_on_the_decoded_file():
  latent = compression.start(PARAMS, step=0.7)
  found = compression.symbols(latent)
  decoded = {
    name: quantise.Coded(found.symbols[name], found.codes[name]).decode()
    for name in PARAMS
  }
  data = batch(0)
  value, values = jax.jit(VALUE)(latent, data)
  p, entropy = measure(apply(decoded, data['ids'], None), data['targets'])
  base, slope, slack = (float(x) for x in latent.smoothing)
  alpha = smoothing.adaptive_alphas(np.ravel(entropy), 2.0**-base, slope)
  losses = smoothing.smoothed_losses(np.ravel(p), alpha, CLASSES)
  cost = (float(values.bits) * math.log(2) - math.log(0.05)) / SETTING.symbols
  expected = betting.certify(
    losses, cost,
    ceilings_N=smoothing.ceilings(alpha, CLASSES), slacks=(slack + 1e-3,),
  )  # fmt: skip
  assert float(value) == pytest.approx(expected.value, rel=1e-4)
  assert float(values.risk) == pytest.approx(losses.mean(), rel=1e-4)


def test_code_length_is_near_that_of_the_file():
  array = jnp.asarray(RNG.laplace(0, 1, (60, 50)), jnp.float32)
  latent = compression.start({'w': array}, step=0.8)
  found = compression.symbols(latent).symbols['w']
  bits = float(compression.total_bits(latent))
  assert bits == pytest.approx(codec.ideal_bits(found), rel=0.02)


def test_rate_draws_weights_to_likelier_symbols():
  array = jnp.concatenate([jnp.zeros(90), jnp.full(10, 0.8)])[None]
  log_step = jnp.zeros(())
  gradient = jax.grad(compression.code_length)(array, log_step)
  counts = np.array([90, 10]) + 0.05
  slope = math.log2(counts[0] / counts[1])
  np.testing.assert_allclose(gradient[0, 90:], slope, rtol=1e-3)


def test_gradient_of_a_step_is_the_rounding_error():
  # d(rounded)/d(log2 step) = step ln 2 (symbol - ratio) (arXiv 1902.08153).
  array, log_step = jnp.array([[0.3, -1.2, 2.6]]), jnp.float32(-0.5)
  rounded = functools.partial(jax.jacobian(compression._quantise, 1), array)
  step = 2**-0.5
  ratio = np.asarray(array) / step
  expected = step * math.log(2) * (np.rint(ratio) - ratio)
  np.testing.assert_allclose(rounded(log_step), expected, atol=1e-6)


def test_training_lowers_the_bound_and_price_the_bits():
  batches = [batch(seed) for seed in range(4)]
  run = functools.partial(
    compression.train, value=VALUE, learning_rate=2e-2, steps=60
  )

  def bound(latent):
    return np.mean([float(VALUE(latent, x)[0]) for x in batches])

  begin = compression.start(PARAMS, step=0.5)
  end = run(begin, itertools.cycle(batches)).latent
  assert bound(end) < bound(begin) - 0.2
  dear = functools.partial(VALUE, setting=SETTING._replace(price=1000.0))
  small = run(begin, itertools.cycle(batches), value=dear).latent
  assert compression.total_bits(small) < 0.7 * compression.total_bits(end)
  target = 0.8 * float(compression.total_bits(end))
  held = functools.partial(VALUE, setting=SETTING._replace(target_bits=target))
  found = run(begin, itertools.cycle(batches), value=held)
  assert float(found.values.bits) == pytest.approx(target, rel=0.04)


def test_worth_of_an_error_is_that_of_the_second_derivative():
  # At the truth the empirical Fisher information is the Hessian, whose
  # diagonal for a softmax is p (1 - p), times how often its row is met.
  params = {'w': jnp.log(jnp.asarray(TRUTH + 1e-3, jnp.float32))}

  def value(latent, data):
    p_BT, _ = measure(latent.weights['w'][data['ids']], data['targets'])
    bits = -jnp.log2(p_BT).mean()
    return bits, compression.Values(bits, bits, bits, jnp.float32(5.0))

  batches = [batch(seed) for seed in range(30)]
  trained = compression.train(
    compression.start(params, step=0.3), itertools.cycle(batches),
    value=value, learning_rate=0.0, steps=120,
  )  # fmt: skip
  found = compression.worth(trained, 20_000)['w']
  curvature = TRUTH * (1 - TRUTH) / CLASSES / math.log(2)
  step = quantise.scales(compression.symbols(trained.latent).codes['w'])[0]
  expected = curvature / 2 * step**2 * 20_000 / (5 * math.log(2))
  assert found.sum() == pytest.approx(expected.sum(), rel=0.3)
  assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.8


def test_divergence_is_named():
  bad = compression.start({'w': jnp.full(2, jnp.nan)}, step=0.5)

  def value(latent, data):
    del data
    bits = latent.weights['w'].sum()
    return bits, compression.Values(bits, bits, bits, bits)

  with pytest.raises(FloatingPointError, match='after 1 steps'):
    compression.train(
      bad, itertools.cycle([batch(0)]), value=value, learning_rate=1e-3,
      steps=1,
    )  # fmt: skip
  with pytest.raises(ValueError, match='some weights are NaN'):
    compression.symbols(bad)


def test_time_is_given_once():
  with pytest.raises(ValueError, match='seconds or in steps'):
    compression.train(
      compression.start(PARAMS, step=1.0), iter([]),
      value=VALUE, learning_rate=1.0,
    )  # fmt: skip
