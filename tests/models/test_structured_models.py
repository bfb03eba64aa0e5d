"""Models whose every projection is structured."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from models import byte_latent
from models import event_lm
from models import forward
from models import linear
from models import lm
from models import patching
from models import stacks
from models import structured
from tests.training import sharded_cases
from training import column_nats
from training import objectives
from training import optimizer
from training import sharding
from training import step as step_lib

BTT = structured.BlockTensorTrain
# Another number of kernels, or another kind of them, for every role.
ROLES = linear.Roles(
  structured.TensorTrain(cores=4, rank=2),
  attention=BTT(rank=2),
  feed_forward=BTT(cores=3),
  head=linear.Dense(gain=0.5),
)
KERNELS = {'attention': 2, 'feed_forward': 3, 'patches': 4, 'head': 0}


def byte_lm(layer):
  return lm.ByteLM(
    width=16,
    layers=2,
    heads=2,
    key_value_heads=2,
    hidden=64,
    linear=layer,
    scan_layers=True,
  )


def byte_latent_model(layer):
  local = stacks.Stack(width=16, layers=1, heads=2, hidden=24)
  return byte_latent.ByteLatent(
    encoder=local,
    latent=local.copy(width=24),
    decoder=local,
    patching=patching.Patching(patching.Space(), max_length=4),
    reserve=1.0,
    linear=layer,
  )


def event_model(layer):
  trunk = stacks.Stack(width=16, layers=1, heads=2, hidden=16)
  return event_lm.EventLM(
    trunk=trunk,
    columns=sharded_cases.COLUMNS,
    numbers=(1, 2),
    cell_width=16,
    cell_hidden=16,
    waves=2,
    reach=2,
    linear=layer,
  )


def roles_of(params):
  """Kernels of a layer's chain, 0 for a dense one, by the kind of its path."""
  found = {}
  for path, _ in jax.tree_util.tree_leaves_with_path(params):
    layer, _, kernel = sharding.name(path).rpartition('/')
    if kernel.endswith('kernel'):
      kinds = {
        'attention': '/attention/|_cross',
        'feed_forward': '/feed_forward/',
        'patches': '^(patch_|latent_input)',
        'head': '^head',
      }
      role = next(k for k, rule in kinds.items() if re.search(rule, layer))
      found.setdefault((role, layer), 0)
      found[role, layer] += 'core_' in kernel
  return found


def random_batch(rows, length):
  ids = np.random.default_rng(0).integers(4, 30, (rows, length + 1))
  return {
    'ids': ids[:, :-1].astype(np.int32),
    'targets': ids[:, 1:].astype(np.int32),
    'documents': np.ones((rows, length), np.int32),
    'mask': np.ones((rows, length), np.float32),
  }


@pytest.mark.parametrize('make', [byte_lm, byte_latent_model])
def test_every_role_has_its_own_structure(make):
  ids = jnp.zeros((1, 8), jnp.int32)
  params = jax.eval_shape(make(ROLES).init, jax.random.key(0), ids)['params']
  found = roles_of(params)
  wanted = set(KERNELS) - ({'patches'} if make is byte_lm else set())
  assert {role for role, _ in found} == wanted
  for (role, layer), kernels in found.items():
    assert kernels == KERNELS[role], layer


def test_roles_are_fields_of_a_config():
  model = base.override(byte_lm(ROLES), ['linear.attention.rank=3'])
  assert model.linear.attention == BTT(rank=3)
  assert base.from_json(base.to_json(model)) == model
  with pytest.raises(ValueError, match=r"no field 'mlp'.*feed_forward"):
    base.override(model, ['linear.mlp.rank=3'])
  stored = base.to_json(ROLES)
  stored['fields']['mlp'] = stored['fields']['head']
  with pytest.raises(ValueError, match=r"no field 'mlp'.*feed_forward"):
    base.from_json(stored)


def test_a_tied_head_has_no_structure():
  model = byte_lm(ROLES).copy(tie_head=True)
  with pytest.raises(ValueError, match=r'tie_head=True.*linear\.head'):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))


@pytest.mark.parametrize(
  'model',
  [
    byte_lm(BTT(rank=2)),
    byte_lm(linear.Roles(structured.Kronecker())),
    byte_latent_model(BTT()),
    event_model(BTT()),
  ],
  ids=['btt', 'kronecker_head', 'btt_patches', 'btt_events'],
)
def test_a_model_learns_a_batch(model):
  objective, batch = objectives.NextToken(), random_batch(2, 16)
  if isinstance(model, event_lm.EventLM):
    objective = column_nats.ColumnNats()
    batch = sharded_cases.make_batch('events')
  params = sharded_cases.make_params(model)
  adam = optimizer.AdamW(learning_rate=3e-2, warmup_steps=0).build(15)
  step = jax.jit(
    functools.partial(
      step_lib.train_step,
      objective=objective,
      apply=forward.pure(model),
      optimizer=adam,
    )
  )
  state = step_lib.create(params, adam, jax.random.key(1))
  losses = []
  for _ in range(15):
    state, metrics = step(state, batch)
    losses.append(float(metrics.loss))
  assert losses[-1] < 0.7 * losses[0], losses
  moved = jax.tree.map(
    lambda a, b: np.any(a != np.asarray(b)), params, state.params
  )
  for path, changed in jax.tree_util.tree_leaves_with_path(moved):
    assert changed or 'core_' not in sharding.name(path), path


def test_cached_decoding_is_the_full_forward():
  model = byte_lm(BTT(rank=2))
  ids = random_batch(2, 6)['ids']
  params = sharded_cases.make_params(model)
  apply = jax.jit(
    lambda ids, cache: model.apply({'params': params}, ids, cache=cache)
  )
  full, _ = apply(ids, None)
  cache = jax.jit(lambda: model.init_cache(2, 6))()
  first, cache = apply(ids[:, :3], cache)
  last, _ = apply(ids[:, 3:], cache)
  found = np.concatenate([first, last], axis=1)
  np.testing.assert_allclose(found, full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ('model', 'shape'),
  [
    (byte_lm(BTT(rank=2)), sharding.MeshShape(data=2, fsdp=4)),
    pytest.param(
      byte_lm(structured.LowRank()),
      sharding.MeshShape(data=1, fsdp=8),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      byte_latent_model(BTT(rank=2)),
      sharding.MeshShape(data=4, fsdp=2),
      marks=pytest.mark.slow,
    ),
  ],
  ids=['btt', 'low_rank', 'btt_patches'],
)
def test_sharded_gradients_are_the_unsharded(model, shape):
  batch = random_batch(8, 8)
  params = sharded_cases.make_params(model)
  run = jax.jit(
    functools.partial(
      step_lib.gradients,
      objectives.NextToken(),
      forward.pure(model),
      accumulate=1,
    )
  )
  _, expected = jax.device_get(run(params, batch))
  mesh = shape.build()
  with jax.set_mesh(mesh):
    places = sharding.shard_tree(params, mesh, sharding.STRUCTURED)
    for name, place in jax.tree_util.tree_leaves_with_path(places):
      if 'core_' in sharding.name(name):
        assert 'fsdp' in place.spec, name
    rows = jax.device_put(batch, sharding.batch_sharding(mesh))
    _, got = run(jax.device_put(params, places), rows)
  for (name, a), b in zip(
    jax.tree_util.tree_leaves_with_path(jax.device_get(got)),
    jax.tree.leaves(expected),
    strict=True,
  ):
    np.testing.assert_allclose(
      a,
      b,
      rtol=0,
      atol=1e-5 * float(np.abs(b).max()) + 1e-8,
      err_msg=sharding.name(name),
    )
