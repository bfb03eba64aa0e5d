"""Every mesh over eight devices computes the gradients of one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from models import forward
from models import lm
from models import masks
from models import ngrams
from models import recall
from training import objectives
from training import optimizer
from training import sharding
from training import step as step_lib

# Half the compile time; the partitioner is not affected.
QUICK = {'xla_backend_optimization_level': 0}
SLOW = pytest.mark.slow
MESHES = [
  pytest.param((8, 1, 1), marks=SLOW),
  (4, 2, 1),
  pytest.param((1, 8, 1), marks=SLOW),
  (2, 2, 2),
  pytest.param((4, 1, 2), marks=SLOW),
  (1, 4, 2),
]
MODELS = {
  'unrolled': lm.ByteLM(
    width=16,
    layers=2,
    heads=4,
    key_value_heads=1,
    hidden=24,
    masks=(masks.Causal(window=4), masks.Causal()),
    ngrams=ngrams.NgramEmbedding(sizes=(3,), rows=64),
    recall=recall.RecallEmbedding(sizes=(2,), reach=8),
    query_key_norm=True,
  ),
  'scanned': lm.ByteLM(
    width=16,
    layers=2,
    heads=4,
    key_value_heads=2,
    hidden=24,
    ngrams=ngrams.NgramEmbedding(sizes=(3,), rows=64),
    recall=recall.RecallEmbedding(sizes=(2,), reach=8),
    tie_head=True,
    scan_layers=True,
    remat=True,
  ),
}


def make_mesh(data, fsdp, tensor):
  return sharding.MeshShape(data, fsdp, tensor).build()


def make_params(model):
  """Parameters moved off the zeros whose gradients would hide errors."""
  ids_BT = jnp.zeros((1, 8), jnp.int32)
  params = jax.jit(model.init)(jax.random.key(0), ids_BT)['params']
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(0)
  noisy = [
    np.asarray(x + rng.normal(0, 0.2, x.shape), np.float32) for x in leaves
  ]
  return jax.tree.unflatten(tree, noisy)


def make_batch(rows=16, length=12):
  """Words that recur, several documents per row, padding, uneven masks."""
  rng = np.random.default_rng(1)
  ids_BT = rng.integers(4, 8, (rows, length + 1)).astype(np.int32)
  starts_BT = rng.random((rows, length)) < 0.2
  documents_BT = 1 + np.cumsum(starts_BT, axis=1, dtype=np.int32)
  documents_BT[::5, -3:] = 0
  mask_BT = rng.random((rows, length)) < np.linspace(0.1, 1, rows)[:, None]
  return {
    'ids': ids_BT[:, :-1],
    'targets': ids_BT[:, 1:],
    'documents': documents_BT,
    'mask': (mask_BT & (documents_BT > 0)).astype(np.float32),
  }


@functools.cache
def unsharded(name):
  """Parameters, loss and gradients of a model on one device, without mesh."""
  model = MODELS[name]
  params = make_params(model)
  gradient = jax.jit(
    functools.partial(compute, model=model), compiler_options=QUICK
  )
  return params, jax.device_get(gradient(params, make_batch()))


def compute(params, batch, *, model, accumulate=1):
  objective = objectives.NextToken(z_loss=1e-3)
  sums, grads = step_lib.gradients(
    objective, forward.pure(model), params, batch, accumulate
  )
  return sums.loss, grads


def assert_gradients_close(got, want):
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
  ):
    scale = np.abs(b).max()
    assert scale > 1e-4, f'{path}: a gradient of zero proves nothing'
    np.testing.assert_allclose(
      np.asarray(a) / scale, b / scale, rtol=0, atol=2e-5, err_msg=str(path)
    )


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('shape', MESHES, ids=str)
def test_sharded_gradients_equal_unsharded_ones(name, shape):
  params, (loss, grads) = unsharded(name)
  mesh = make_mesh(*shape)
  places = sharding.shard_tree(params, mesh, sharding.TRANSFORMER)
  with jax.set_mesh(mesh):
    # Accumulation cuts the batch, which lies over the devices, too.
    accumulate = 2 if name == 'scanned' and shape == (2, 2, 2) else 1
    gradient = jax.jit(
      functools.partial(compute, model=MODELS[name], accumulate=accumulate),
      out_shardings=(None, places),
      compiler_options=QUICK,
    )
    batch = sharding.put_batch(make_batch(), sharding.batch_sharding(mesh))
    sharded_loss, sharded = gradient(jax.device_put(params, places), batch)
  np.testing.assert_allclose(sharded_loss, loss, rtol=1e-5)
  assert_gradients_close(jax.device_get(sharded), grads)


def place(name):
  """Where TRANSFORMER puts a parameter, written out by hand."""
  last = name.split('/')[-2:]
  split = {
    'query': ('fsdp', 'tensor'),
    'key': ('fsdp', 'tensor'),
    'value': ('fsdp', 'tensor'),
    'gate': ('fsdp', 'tensor'),
    'up': ('fsdp', 'tensor'),
    'head': ('fsdp', 'tensor'),
    'output': ('tensor', 'fsdp'),
    'down': ('tensor', 'fsdp'),
  }
  if last[1].startswith('table_') and last[0] == 'ngram_embed':
    return P('fsdp', None)
  if last[1] == 'kernel':
    layers = (None,) if name.startswith('blocks/') else ()
    return P(*layers, *split[last[0]])
  return P()


@pytest.mark.parametrize('name', MODELS)
def test_parameters_and_their_moments_lie_where_the_rules_say(name):
  mesh = make_mesh(2, 2, 2)
  transformation = optimizer.AdamW().build(10)
  state = jax.eval_shape(
    lambda params: step_lib.create(params, transformation, jax.random.key(0)),
    unsharded(name)[0],
  )
  places = sharding.shard_tree(state, mesh, sharding.TRANSFORMER)
  adam = next(part for part in places.optimizer if hasattr(part, 'mu'))
  for tree in (places.params, adam.mu, adam.nu):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    assert len(leaves) > 10
    for path, where in leaves:
      path = sharding.name(path)
      assert where == jax.sharding.NamedSharding(mesh, place(path)), path
  for where in (adam.count, places.step, places.key):
    assert where.is_fully_replicated
  params = jax.device_put(unsharded(name)[0], places.params)
  block = params['blocks'] if name == 'scanned' else params['block_0']
  kernel = block['feed_forward']['gate']['kernel']
  assert kernel.shape[-2:] == (16, 24)
  for shard in kernel.addressable_shards:
    assert shard.data.shape[-2:] == (8, 12)


def test_batch_rows_stay_in_order_over_data_and_fsdp():
  mesh = make_mesh(2, 2, 2)
  rows = np.arange(8 * 3).reshape(8, 3)
  batch = sharding.put_batch({'ids': rows}, sharding.batch_sharding(mesh))
  np.testing.assert_array_equal(batch['ids'], rows)
  for shard in batch['ids'].addressable_shards:
    assert shard.data.shape == (2, 3)


@pytest.mark.parametrize(
  'shape, sizes',
  [
    ((-1, 1, 1), (8, 1, 1)),
    ((-1, 2, 2), (2, 2, 2)),
    ((1, 8, 1), (1, 8, 1)),
    ((-1, 4, 2), (1, 4, 2)),
  ],
)
def test_mesh_takes_the_devices_that_remain(shape, sizes):
  mesh = make_mesh(*shape)
  assert dict(mesh.shape) == dict(
    zip(('data', 'fsdp', 'tensor'), sizes, strict=True)
  )
  assert sharding.MeshShape().build(jax.devices()[:3]).shape['data'] == 3


@pytest.mark.parametrize(
  'shape',
  [(-1, 3, 1), (4, 1, 1), (16, 1, 1), (-1, 0, 1), (8, 1, -1), (0, 1, 1)],
)
def test_mesh_that_does_not_fit_is_refused(shape):
  words = (
    rf'mesh data={shape[0]} x fsdp={shape[1]} x tensor={shape[2]} does not use'
    r' 8 devices; set mesh\.data=-1'
  )
  with pytest.raises(ValueError, match=words):
    make_mesh(*shape)


@pytest.mark.parametrize(
  'batch_size, accumulate, shape, words',
  [
    (30, 1, (8, 1, 1), r'batch_size=30 .* 8 devices .*; use 24 or 32\.'),
    (4, 1, (2, 4, 1), r'batch_size=4 .* 8 devices .*; use 8\.'),
    (10, 1, (2, 2, 2), r'batch_size=10 .* 4 devices .*; use 8 or 12\.'),
    (24, 2, (8, 1, 1), r'8 devices .* accumulate=2 parts; use 16 or 32\.'),
  ],
)
def test_batch_that_does_not_divide_is_refused(
  batch_size, accumulate, shape, words
):
  with pytest.raises(ValueError, match=words):
    sharding.check_batch(batch_size, accumulate, make_mesh(*shape))


def test_batch_that_divides_passes():
  sharding.check_batch(16, 2, make_mesh(2, 4, 1))
  sharding.check_batch(6, 3, make_mesh(1, 2, 4))


@pytest.mark.parametrize(
  'rules, words',
  [
    (
      ((r'up/kernel$', ('fsdp', 'tensor')),),
      r"parameter block/up/kernel \(16, 9\): size 9 .* 'tensor' of 2 devices",
    ),
    (
      ((r'kernel$', (('data', 'fsdp', 'tensor'), None)),),
      r'parameter block/down/kernel \(4, 16\): size 4 .* of 8 devices',
    ),
    ((('up', ('rows', None)),), "rule for block/up/kernel names .*'rows'"),
    ((('(up', ('fsdp',)),), r"shardings: '\(up' is not a regular expression"),
  ],
)
def test_rule_that_does_not_fit_is_named(rules, words):
  params = {
    'block': {
      'up': {'kernel': jnp.zeros((16, 9))},
      'down': {'kernel': jnp.zeros((4, 16))},
    }
  }
  with pytest.raises(ValueError, match=words):
    sharding.shard_tree(params, make_mesh(2, 2, 2), rules)


def test_first_rule_wins_and_the_rest_is_replicated():
  params = {'up': {'kernel': jnp.zeros((8, 8)), 'bias': jnp.zeros(8)}}
  rules = ((r'up/kernel$', (None, 'fsdp')), (r'kernel$', ('tensor', None)))
  places = sharding.shard_tree(params, make_mesh(2, 2, 2), rules)
  assert places['up']['kernel'].spec == P(None, 'fsdp')
  assert places['up']['bias'].spec == P()
