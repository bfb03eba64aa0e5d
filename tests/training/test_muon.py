"""Muon against singular value decompositions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import linear
from models import lm
from models import structured
from training import optimizer
from training import transfer

SHAPES = {
  'query': {'kernel': (6, 4)},
  'up': {'core_0_kernel': (3, 4, 8), 'core_1_kernel': (8, 3, 5)},
  'head': {'kernel': (4, 7)},
  'norm': {'scale': (4,)},
}


def drawn(seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
    SHAPES,
    is_leaf=lambda x: isinstance(x, tuple),
  )


@pytest.fixture(scope='module')
def stepped():
  """Parameters and the update of two steps, the gradient the same."""
  config = optimizer.Muon(
    learning_rate=0.5, warmup_steps=0, final_ratio=1.0, clip=None,
    weight_decay=0.1, others=0.2,
  )  # fmt: skip
  params, gradient = drawn(0), drawn(1)
  transformation = config.build(9)
  update = jax.jit(transformation.update)
  state = transformation.init(params)
  _, state = update(gradient, state, params)
  return params, gradient, update(gradient, state, params)[0]


def test_every_block_takes_a_step_of_the_norm_that_its_shape_asks_for(stepped):
  params, gradient, updates = stepped
  for layer, name in (
    ('query', 'kernel'), ('up', 'core_0_kernel'), ('up', 'core_1_kernel'),
  ):  # fmt: skip
    found, theirs, decayed = (
      np.asarray(tree[layer][name], np.float64).reshape(
        -1, *SHAPES[layer][name][-2:]
      )
      for tree in (updates, gradient, params)
    )
    fan_in, fan_out = found.shape[1:]
    steps = -(found + 0.5 * 0.1 * decayed) / (0.5 * (fan_out / fan_in) ** 0.5)
    for step, block in zip(steps, theirs, strict=True):
      left, _, right = np.linalg.svd(block, full_matrices=False)
      polar = left @ right
      # Newton and Schulz leave singular values between these bounds, and the
      # singular vectors as they are.
      values = np.diag(left.T @ step @ right.T)
      assert np.abs(values - 0.95).max() < 0.3
      off = left.T @ step @ right.T - np.diag(values)
      assert np.abs(off).max() < 1e-4
      assert np.sum(step * polar) > 0


def test_heads_and_norms_are_left_to_adam(stepped):
  _, gradient, updates = stepped
  for layer, name in (('head', 'kernel'), ('norm', 'scale')):
    # Of a constant gradient, Adam's step is its sign.
    np.testing.assert_allclose(
      updates[layer][name], -0.5 * 0.2 * np.sign(gradient[layer][name]),
      rtol=1e-4,
    )


def model(width, layer):
  return lm.ByteLM(
    width=width, layers=1, heads=2, key_value_heads=1, hidden=2 * width,
    linear=layer,
  )  # fmt: skip


def test_only_cores_and_the_head_have_other_rates():
  wide = model(64, structured.BlockTensorTrain(cores=3))
  params = jax.eval_shape(
    wide.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32)
  )['params']
  base = transfer.base_shapes(model(16, linear.Dense()))
  found = optimizer.Muon()._rates(params, base)
  assert found['block_0/attention/query/core_1_kernel'] == pytest.approx(1 / 3)
  assert found['head/kernel'] == 1 / 4
  assert found['embed/embedding'] == 1.0


def moved(layer, width):
  """Largest change of any unit input's output by one step of Muon, by RMS."""
  layer = layer.copy(features=width)
  chain = layer.chain(width, width)
  rng = np.random.default_rng(0)
  params = {
    structured.kernel_name(i): jnp.asarray(
      rng.standard_normal(shape) * structured.deviation(shape), jnp.float32
    )
    for i, shape in enumerate(chain.shapes)
  }
  gradient = jax.tree.map(
    lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32), params
  )
  config = optimizer.Muon(
    learning_rate=0.01, warmup_steps=0, clip=None, weight_decay=0.0
  )
  muon = config.build(3)
  updates, _ = jax.jit(muon.update)(gradient, muon.init(params), params)
  new = jax.tree.map(jnp.add, params, updates)
  before, after = (
    np.asarray(structured.to_dense(layer, p, d_in=width, d_out=width))
    for p in (params, new)
  )
  return np.linalg.norm(after - before, ord=2)


def test_a_step_moves_outputs_as_far_at_every_width():
  layer = structured.BlockTensorTrain(rank=2)
  changes = [moved(layer, width) for width in (16, 256)]
  assert min(changes) > 0.004 and max(changes) < 0.08, changes
  assert max(changes) / min(changes) < 2, changes


def test_bad_fields_are_named():
  with pytest.raises(ValueError, match=r'momentum=1\.5 .*others=0\.1 positi'):
    optimizer.Muon(momentum=1.5)
  with pytest.raises(ValueError, match=r'optimizer\.others=0 positive'):
    optimizer.Muon(others=0)
