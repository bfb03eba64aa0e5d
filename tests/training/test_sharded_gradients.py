"""Every mesh over eight devices computes the gradients of one device.

Gradients agree within 2e-5 of the largest of their array, losses within 1e-5.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import masks
from models import window_attention
from tests.training import sharded_cases
from training import optimizer
from training import sharding
from training import step as step_lib

# Half the compile time; the partitioner is not affected.
QUICK = {'xla_backend_optimization_level': 0}
# data, fsdp, tensor, sequence, expert.
MESHES = (
  (8, 1, 1),
  (4, 2, 1),
  (1, 8, 1),
  (2, 2, 2),
  (4, 1, 2),
  (1, 4, 2),
  (1, 1, 2),
  (2, 1, 1, 4),
  (1, 2, 2, 2),
  (2, 2, 1, 1, 2),
  (1, 2, 2, 1, 2),
  (1, 2, 1, 2, 2),
)
# What runs by default: every model and every axis; the product of all is slow.
CHOSEN = {
  ('unrolled', (2, 2, 2)),
  ('scanned', (1, 2, 2, 2)),
  ('windowed', (2, 1, 1, 4)),
  ('lambda_rotary', (1, 2, 2, 2)),
  ('byte_latent', (1, 4, 2)),
  ('card_events', (2, 2, 2)),
  ('structured_image', (2, 2, 2)),
  ('structured_events', (4, 2, 1)),
  ('block_train', (1, 2, 2, 1, 2)),
  ('expert_layers', (1, 2, 1, 2, 2)),
}
PRODUCT = [
  pytest.param(
    name,
    shape,
    marks=() if (name, shape) in CHOSEN else pytest.mark.slow,
    id=f'{name}-{"x".join(map(str, shape))}',
  )
  for name in sharded_cases.CASES
  for shape in MESHES
]


def make_mesh(shape):
  shape = sharding.MeshShape(*shape)
  sizes = [getattr(shape, axis) for axis in ('data', 'fsdp', 'tensor')]
  used = int(np.prod([*sizes, shape.sequence, shape.expert]))
  return shape.build(jax.devices()[:used])


@functools.cache
def unsharded(name):
  """Loss and gradients on one device, without a mesh."""
  run = jax.jit(sharded_cases.gradient(name), compiler_options=QUICK)
  batch = sharded_cases.make_batch(name)
  return jax.device_get(run(sharded_cases.params(name), batch))


def assert_close(got, want, *, atol=2e-5, still=()):
  leaves = jax.tree_util.tree_leaves_with_path(got)
  for (path, a), b in zip(leaves, jax.tree.leaves(want), strict=True):
    scale = np.abs(b).max()
    if still and sharding.name(path).startswith(still):
      assert scale == 0, path
      continue
    assert scale > 1e-6, f'{path}: a gradient of zero proves nothing'
    np.testing.assert_allclose(
      np.asarray(a) / scale, b / scale, rtol=0, atol=atol, err_msg=str(path)
    )


@pytest.fixture
def plans(monkeypatch):
  """Of all attention that goes from block to block, as it is traced."""
  found, scan = [], window_attention._scan

  def noted(setting, case):
    found.append(setting[1])
    return scan(setting, case)

  monkeypatch.setattr(window_attention, '_scan', noted)
  return found


@pytest.mark.parametrize(('name', 'shape'), PRODUCT)
def test_sharded_gradients_equal_unsharded_ones(name, shape, plans):
  loss, grads = unsharded(name)
  plans.clear()
  case, params = sharded_cases.CASES[name], sharded_cases.params(name)
  mesh = make_mesh(shape)
  places = sharding.shard_tree(params, mesh, case.rules)
  with jax.set_mesh(mesh):
    # Accumulation cuts the batch, which lies over the devices, too.
    accumulate = 2 if name.endswith(('scanned', 'events')) else 1
    run = jax.jit(
      sharded_cases.gradient(name, accumulate),
      out_shardings=(None, places),
      compiler_options=QUICK,
    )
    batch = sharding.put_batch(
      sharded_cases.make_batch(name), sharding.batch_sharding(mesh)
    )
    found = jax.device_get(run(jax.device_put(params, places), batch))
  np.testing.assert_allclose(found[0], loss, rtol=1e-5)
  assert_close(found[1], grads, still=case.still)
  blocks = {3} if case.length == sharded_cases.LONG else set()
  assert {plan.blocks for plan in plans} == blocks


@pytest.mark.parametrize('name', ['windowed', 'card_events'])
def test_windows_end_within_the_documents_of_long_rows(name):
  cells_BT = sharded_cases.make_batch(name)['documents']
  documents_BT = cells_BT[:, :: cells_BT.shape[1] // sharded_cases.LONG]
  found_BT = masks.row_tokens(jnp.asarray(documents_BT)).position_BT
  assert np.mean(found_BT >= sharded_cases.WINDOW) > 0.2


# Of the kinds of models that they train.
SHIPPED = {
  'unlimited': 'lambda_rotary',
  'events_card': 'card_events',
  'events_csv': 'card_events',
  'cifar10': 'structured_image',
  'cifar10_dense': 'image',
  'blt_1b': 'byte_latent',
  'btt': 'monarch',
}


@pytest.mark.parametrize('name', SHIPPED)
def test_configs_ship_the_rules_that_are_compared(name):
  config = importlib.import_module(f'configs.{name}').get_config()
  assert config.shardings == sharded_cases.CASES[SHIPPED[name]].rules


def test_rules_of_events_fit_the_model_that_is_shipped():
  config = importlib.import_module('configs.events_card').get_config()
  model = config.model.clone(columns=(9, 5, 300, 3), numbers=(1,))
  ids_BT = jnp.zeros((1, 4), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), ids_BT)['params']
  for shape in MESHES:
    sharding.shard_tree(shapes, make_mesh(shape), config.shardings)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'shape'),
  [
    ('llama', (4, 1, 1)),
    ('llama', (1, 4, 1)),
    ('llama', (2, 1, 2)),
    ('llama', (1, 1, 1, 4)),
    ('expert_layers', (1, 1, 1, 1, 4)),
  ],
  ids=str,
)
def test_four_devices_share_the_work_along_every_axis(name, shape):
  case, params = sharded_cases.CASES[name], sharded_cases.params(name)
  batch, run = sharded_cases.make_batch(name), sharded_cases.gradient(name)
  alone = jax.jit(run, compiler_options=QUICK).lower(params, batch).compile()
  mesh = make_mesh(shape)
  places = sharding.shard_tree(params, mesh, case.rules)
  with jax.set_mesh(mesh):
    rows = jax.device_put(batch, sharding.batch_sharding(mesh))
    split = jax.jit(run, out_shardings=(None, places), compiler_options=QUICK)
    split = split.lower(jax.device_put(params, places), rows).compile()
  # A quarter is ideal; what gathers and sorts is done by all.
  share = split.cost_analysis()['flops'] / alone.cost_analysis()['flops']
  assert share < 0.5


# Adam's first step has the sign of the gradient where epsilon is small, and
# Muon makes small singular values large: rounding shows.
OPTIMIZERS = {
  'adam': (optimizer.AdamW(warmup_steps=0, epsilon=1e-3), 1e-4),
  'momentum': (optimizer.SGD(warmup_steps=0), 1e-4),
  'muon': (optimizer.Muon(warmup_steps=0, epsilon=1e-3), 5e-3),
  'frozen': (optimizer.Muon(warmup_steps=0, frozen=('^embed/',)), 5e-3),
}


@functools.cache
def stepped(kind, shape):
  """What a step changes of the scanned model's parameters."""
  transform = OPTIMIZERS[kind][0].build(10)
  case, params = sharded_cases.CASES['scanned'], sharded_cases.params('scanned')
  batch = sharded_cases.make_batch('scanned')
  state = step_lib.create(params, transform, jax.random.key(0))
  run = functools.partial(
    step_lib.train_step,
    objective=case.objective,
    apply=sharded_cases.forward.counted(case.model),
    optimizer=transform,
  )
  if shape is None:
    new, _ = jax.jit(run, compiler_options=QUICK)(state, batch)
  else:
    mesh = make_mesh(shape)
    places = sharding.shard_tree(state, mesh, case.rules)
    with jax.set_mesh(mesh):
      batch = sharding.put_batch(batch, sharding.batch_sharding(mesh))
      new, _ = jax.jit(
        run, out_shardings=(places, None), compiler_options=QUICK
      )(jax.device_put(state, places), batch)
  return jax.tree.map(lambda a, b: np.asarray(a) - b, new.params, params)


@pytest.mark.slow
@pytest.mark.parametrize('kind', OPTIMIZERS)
@pytest.mark.parametrize('shape', [(1, 8, 1), (2, 2, 2), (1, 2, 2, 2)], ids=str)
def test_sharded_optimizers_take_the_unsharded_step(kind, shape):
  still = ('embed/',) if kind == 'frozen' else ()
  assert_close(
    stepped(kind, shape),
    stepped(kind, None),
    atol=OPTIMIZERS[kind][1],
    still=still,
  )
