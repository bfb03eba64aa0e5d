"""A byte language model whose every projection is structured."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import forward
from models import lm
from models import structured
from training import objectives
from training import optimizer
from training import sharding
from training import step as step_lib

BTT = structured.BlockTensorTrain



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


def shaken(x):
  """Parameters without the silent cores that would hide the others."""
  return x + 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape)


def random_batch(rows, length):
  ids = np.random.default_rng(0).integers(4, 30, (rows, length + 1))
  return {
    'ids': jnp.asarray(ids[:, :-1], jnp.int32),
    'targets': jnp.asarray(ids[:, 1:], jnp.int32),
    'documents': jnp.ones((rows, length), jnp.int32),
    'mask': jnp.ones((rows, length), jnp.float32),
  }


@pytest.mark.parametrize(
  'layer', [BTT(rank=2), structured.Kronecker()], ids=['btt', 'kronecker']
)
def test_byte_lm_learns_a_batch(layer):
  model = byte_lm(layer)
  batch = random_batch(2, 16)
  params = jax.jit(model.init)(jax.random.key(0), batch['ids'])['params']
  adam = optimizer.AdamW(learning_rate=3e-2, warmup_steps=0).build(15)
  step = jax.jit(
    functools.partial(
      step_lib.train_step,
      objective=objectives.NextToken(),
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
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), params, state.params)
  assert all(jax.tree.leaves(moved['blocks']))


def test_cached_decoding_is_the_full_forward():
  model = byte_lm(BTT(rank=2))
  ids = random_batch(2, 6)['ids']
  params = jax.jit(model.init)(jax.random.key(0), ids)['params']
  params = jax.tree.map(shaken, params)
  apply = jax.jit(
    lambda ids, cache: model.apply({'params': params}, ids, cache=cache)
  )
  full, _ = apply(ids, None)
  cache = model.init_cache(2, 6)
  out, cache = apply(ids[:, :3], cache)
  parts = [out]
  for i in range(3, 6):
    out, cache = apply(ids[:, i : i + 1], cache)
    parts.append(out)
  np.testing.assert_allclose(
    jnp.concatenate(parts, axis=1), full, rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize(
  ('layer', 'shape'),
  [
    (BTT(rank=2), sharding.MeshShape(data=2, fsdp=4)),
    (structured.LowRank(), sharding.MeshShape(data=1, fsdp=8)),
  ],
  ids=['btt', 'low_rank'],
)
def test_sharded_gradients_are_the_unsharded(layer, shape):
  model = byte_lm(layer)
  batch = random_batch(8, 8)
  params = jax.jit(model.init)(jax.random.key(0), batch['ids'])['params']
  params = jax.tree.map(shaken, params)
  run = jax.jit(
    functools.partial(
      step_lib.gradients,
      objectives.NextToken(),
      forward.pure(model),
      accumulate=1,
    )
  )
  _, expected = run(params, batch)
  mesh = shape.build()
  with jax.set_mesh(mesh):
    places = sharding.shard_tree(params, mesh, sharding.STRUCTURED)
    for name, place in jax.tree_util.tree_leaves_with_path(places):
      if 'core_' in sharding.name(name):
        assert 'fsdp' in place.spec, name
    rows = jax.device_put(batch, sharding.batch_sharding(mesh))
    _, got = run(jax.device_put(params, places), rows)
  for (name, a), b in zip(
    jax.tree_util.tree_leaves_with_path(got),
    jax.tree.leaves(expected),
    strict=True,
  ):
    np.testing.assert_allclose(
      a,
      b,
      rtol=0,
      atol=1e-5 * float(jnp.abs(b).max()) + 1e-8,
      err_msg=sharding.name(name),
    )
