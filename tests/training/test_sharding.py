"""Meshes, the rules that place arrays, and batches over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.training import sharded_cases
from training import optimizer
from training import sharding
from training import step as step_lib


def make_mesh(data, fsdp, tensor):
  return sharding.MeshShape(data, fsdp, tensor).build()


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


@pytest.mark.parametrize('name', ['unrolled', 'scanned'])
def test_parameters_and_their_moments_lie_where_the_rules_say(name):
  mesh = make_mesh(2, 2, 2)
  transformation = optimizer.AdamW().build(10)
  params = sharded_cases.params(name)
  state = jax.eval_shape(
    lambda params: step_lib.create(params, transformation, jax.random.key(0)),
    params,
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
  params = jax.device_put(params, places.params)
  block = params['blocks'] if name == 'scanned' else params['block_0']
  kernel = block['feed_forward']['gate']['kernel']
  assert kernel.shape[-2:] == (16, 24)
  for shard in kernel.addressable_shards:
    assert shard.data.shape[-2:] == (8, 12)


OPTIMIZERS = {
  'adam': optimizer.AdamW(frozen=('embed',)),
  'momentum': optimizer.SGD(),
  'muon': optimizer.Muon(),
  'frozen': optimizer.Muon(frozen=('embed',)),
}
FEW = {('scanned', kind) for kind in OPTIMIZERS} | {
  (name, 'frozen') for name in ('byte_latent', 'expert_layers')
}


@pytest.mark.parametrize(
  ('name', 'kind'),
  [
    pytest.param(
      name, kind, marks=() if (name, kind) in FEW else pytest.mark.slow
    )
    for name in sharded_cases.CASES
    for kind in OPTIMIZERS
  ],
)
def test_moments_lie_where_their_parameters_do(name, kind):
  chosen = OPTIMIZERS[kind]
  params, rules = sharded_cases.params(name), sharded_cases.CASES[name].rules
  mesh = sharding.MeshShape(1, 2, 2, 1, 2).build()
  moments = jax.eval_shape(chosen.build(10).init, params)
  wanted = {
    sharding.name(path): (leaf.shape, where.spec)
    for (path, leaf), where in zip(
      jax.tree_util.tree_leaves_with_path(params),
      jax.tree.leaves(sharding.shard_tree(params, mesh, rules)),
      strict=True,
    )
  }
  found = sharding.shard_tree(moments, mesh, rules)
  seen = set()
  for (path, leaf), where in zip(
    jax.tree_util.tree_leaves_with_path(moments),
    jax.tree.leaves(found),
    strict=True,
  ):
    ends = [p for p in wanted if sharding.name(path).endswith(f'/{p}')]
    if ends:
      longest = max(ends, key=len)
      assert wanted[longest] == (leaf.shape, where.spec), path
      seen.add(longest)
  still = {p for p in wanted if chosen.frozen and 'embed' in p}
  assert seen == set(wanted) - still


EXPECTED = {
  'byte_latent': {
    'model/patch_query/kernel': P('fsdp', None),
    'model/ngram_embed/table_3': P('fsdp', None),
    'model/latent_transformer/blocks/attention/query/kernel': P(
      None, 'fsdp', 'tensor'
    ),
    'model/decoder_cross_0/output/kernel': P('tensor', 'fsdp'),
  },
  'events': {
    'embed/ids': P(None, 'fsdp'),
    'embed/since': P(None, 'fsdp'),
    'head_0/kernel': P('fsdp', None),
    'narrow_before/kernel': P('fsdp', None),
    'cell_0/down/kernel': P('tensor', 'fsdp'),
  },
  'block_train': {
    'blocks/attention/query/core_0_kernel': P(None, None, 'fsdp', 'tensor'),
    'blocks/attention/query/core_1_kernel': P(None, 'tensor', None, 'fsdp'),
    'blocks/feed_forward/down/core_0_kernel': P(None, 'tensor', 'fsdp', None),
    'blocks/feed_forward/down/core_1_kernel': P(None, None, 'tensor', 'fsdp'),
  },
  'low_rank': {
    'block_0/attention/query/core_1_kernel': P(None, None, 'fsdp'),
    'block_0/feed_forward/up/core_0_kernel': P(None, 'fsdp', None),
  },
  'expert_layers': {
    'block_0/feed_forward/up/core_0_kernel': P('expert', None, 'fsdp', None),
    'block_0/feed_forward/router/kernel': P(),
    'block_0/attention/output/kernel': P('tensor', 'fsdp'),
  },
  'expert_projections': {
    'block_0/feed_forward/up/experts/core_0_kernel': P(
      'expert', None, 'fsdp', None
    ),
    'block_0/feed_forward/up/experts/core_1_kernel': P(
      'expert', None, None, 'fsdp'
    ),
  },
}


@pytest.mark.parametrize('name', EXPECTED)
def test_each_kind_of_model_has_rules_of_its_own(name):
  params, rules = sharded_cases.params(name), sharded_cases.CASES[name].rules
  mesh = sharding.MeshShape(1, 2, 2, 1, 2).build()
  places = {
    sharding.name(path): where.spec
    for path, where in jax.tree_util.tree_leaves_with_path(
      sharding.shard_tree(params, mesh, rules)
    )
  }
  assert {path: places[path] for path in EXPECTED[name]} == EXPECTED[name]


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
  used = {axis: size for axis, size in mesh.shape.items() if size > 1}
  axes = zip(('data', 'fsdp', 'tensor'), sizes, strict=True)
  assert used == {axis: size for axis, size in axes if size > 1}
  assert sharding.MeshShape().build(jax.devices()[:3]).shape['data'] == 3


def test_axes_stand_from_the_farthest_devices_to_the_nearest():
  mesh = sharding.MeshShape(1, 2, tensor=2, sequence=2).build()
  assert mesh.axis_names == ('data', 'fsdp', 'expert', 'sequence', 'tensor')
  numbers = np.vectorize(lambda device: device.id)(mesh.devices)
  np.testing.assert_array_equal(numbers.ravel(), np.arange(8))
  experts = sharding.MeshShape(expert=4).build()
  assert dict(experts.shape) == {
    'data': 2, 'fsdp': 1, 'expert': 4, 'sequence': 1, 'tensor': 1
  }  # fmt: skip
  with pytest.raises(ValueError, match='x tensor=1 x sequence=3 does not use'):
    sharding.MeshShape(sequence=3).build()


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
