"""AdamW against a reference in float64, written from the paper."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training import optimizer

SHAPES = {
  'block_0': {'query': {'kernel': (3, 4)}, 'norm': {'scale': (4,)}},
  'embed': {'embedding': (5, 3)},
  'ngram_embed': {'table_3': (6, 2)},
  'head': {'kernel': (2, 5), 'bias': (5,)},
}


def is_shape(x):
  return isinstance(x, tuple)


def draw(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: scale * rng.normal(size=shape), SHAPES, is_leaf=is_shape
  )


def flat(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(x)
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def rate(config, count, steps):
  """Linear to the peak at `warmup_steps`, then a half cosine to the floor."""
  warmup = config.warmup_steps
  if count < warmup:
    return config.learning_rate * count / warmup
  done = (count - warmup) / (steps - warmup)
  floor = config.final_ratio
  wave = (1 + math.cos(math.pi * done)) / 2
  return config.learning_rate * (floor + (1 - floor) * wave)


def reference(config, params, gradients, steps, *, decayed, factors):
  """AdamW with decoupled decay (arXiv 1711.05101, algorithm 2)."""
  params = dict(flat(params))
  mean = {name: np.zeros_like(x) for name, x in params.items()}
  square = {name: np.zeros_like(x) for name, x in params.items()}
  for count, gradient in enumerate(gradients):
    gradient = flat(gradient)
    norm = math.sqrt(sum(np.sum(g**2) for g in gradient.values()))
    shrink = 1.0
    if config.clip is not None and norm > config.clip:
      shrink = config.clip / norm
    for name, x in params.items():
      g = shrink * gradient[name]
      mean[name] = config.b1 * mean[name] + (1 - config.b1) * g
      square[name] = config.b2 * square[name] + (1 - config.b2) * g**2
      first = mean[name] / (1 - config.b1 ** (count + 1))
      second = square[name] / (1 - config.b2 ** (count + 1))
      update = first / (np.sqrt(second) + config.epsilon)
      if name in decayed:
        update = update + config.weight_decay * x
      params[name] = x - factors[name] * rate(config, count, steps) * update
  return params


KERNELS = {'block_0/query/kernel', 'head/kernel'}
TABLES = (('table_', 0.5), (r'^(ngram_)?embed/', 3.0))


@pytest.mark.parametrize(
  'config, decayed, factors',
  [
    (optimizer.AdamW(learning_rate=0.02, warmup_steps=3), KERNELS, {}),
    (
      optimizer.AdamW(
        learning_rate=0.05, warmup_steps=0, final_ratio=0.5, clip=None,
        b1=0.8, b2=0.9, epsilon=0.1, weight_decay=0.7,
      ),
      KERNELS, {},
    ),
    (
      optimizer.AdamW(warmup_steps=1, clip=0.3, decay_rule='^head/', b1=0.5),
      {'head/kernel', 'head/bias'}, {},
    ),
    (
      optimizer.AdamW(learning_rate=0.01, multipliers=TABLES, warmup_steps=2),
      KERNELS, {'ngram_embed/table_3': 0.5, 'embed/embedding': 3.0},
    ),
  ],
  ids=['default', 'unclipped', 'clipped', 'multipliers'],
)  # fmt: skip
def test_steps_agree_with_the_reference(config, decayed, factors):
  steps = 8
  start = draw(0)
  # Both sides of the clipping bound.
  gradients = [draw(i, scale=0.03 * 3.0 ** (i % 4)) for i in range(1, steps)]
  transformation = config.build(steps)
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start)
  state = transformation.init(params)

  @jax.jit
  def step(params, state, gradient):
    updates, state = transformation.update(gradient, state, params)
    return jax.tree.map(jnp.add, params, updates), state

  for gradient in gradients:
    gradient = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradient)
    params, state = step(params, state, gradient)
  factors = dict.fromkeys(flat(start), 1.0) | factors
  wanted = reference(
    config, start, gradients, steps, decayed=decayed, factors=factors
  )
  for name, x in flat(params).items():
    assert np.abs(x - flat(start)[name]).max() > 1e-4, name
    np.testing.assert_allclose(x, wanted[name], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize('warmup', [0, 1, 7])
@pytest.mark.parametrize('final_ratio', [0.0, 0.1, 1.0])
def test_schedule_is_a_ramp_and_a_half_cosine(warmup, final_ratio):
  config = optimizer.AdamW(
    learning_rate=0.25, warmup_steps=warmup, final_ratio=final_ratio
  )
  schedule = config.schedule(40)
  rates = [float(schedule(count)) for count in range(41)]
  wanted = [rate(config, count, 40) for count in range(41)]
  np.testing.assert_allclose(rates, wanted, rtol=1e-5, atol=1e-8)
  np.testing.assert_allclose(max(rates), rates[warmup], rtol=1e-6)
  np.testing.assert_allclose(rates[warmup], 0.25, rtol=1e-6)
  np.testing.assert_allclose(rates[40], 0.25 * final_ratio, atol=1e-8)


@pytest.mark.parametrize('steps', [1, 2, 5])
def test_run_shorter_than_its_warmup_has_finite_rates(steps):
  schedule = optimizer.AdamW(warmup_steps=100).schedule(steps)
  rates = np.array([schedule(count) for count in range(steps)])
  assert np.all(np.isfinite(rates))
  assert rates[-1] == pytest.approx(1e-3)


def test_decay_and_moments_skip_nothing_of_a_stack_of_layers():
  config = optimizer.AdamW(weight_decay=0.5, warmup_steps=0)
  params = {'blocks': {'query': {'kernel': jnp.ones((2, 3, 3))}}}
  zeros = jax.tree.map(jnp.zeros_like, params)
  transformation = config.build(4)
  updates, _ = transformation.update(zeros, transformation.init(params), params)
  kernel = updates['blocks']['query']['kernel']
  np.testing.assert_allclose(kernel, np.full((2, 3, 3), -5e-4), rtol=1e-5)


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'learning_rate': 0.0}, r'learning_rate=0\.0 must be positive'),
    ({'learning_rate': -1e-3}, 'learning_rate=-0.001 must be positive'),
    ({'warmup_steps': -1}, 'warmup_steps=-1 not negative'),
    ({'clip': 0.0}, r'clip=0\.0 must be positive, or None'),
    ({'decay_rule': '(kernel'}, r"optimizer: '\(kernel' is not a regular"),
    ({'multipliers': (('*', 2.0),)}, r"optimizer: '\*' is not a regular"),
  ],
)
def test_bad_fields_are_named(fields, words):
  with pytest.raises(ValueError, match=words):
    optimizer.AdamW(**fields)
