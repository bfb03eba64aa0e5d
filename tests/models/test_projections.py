"""Projections of whole models: what is found, and matrices exchanged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import byte_latent
from models import forward
from models import guided
from models import linear
from models import lm
from models import mixture
from models import patching
from models import projections
from models import stacks
from models import structured

BTT = structured.BlockTensorTrain
ROLES = linear.Roles(
  BTT(rank=2), feed_forward=structured.LowRank(rank=3), head=linear.Dense()
)


def byte_lm(layer, **fields):
  sizes = {'width': 16, 'layers': 2, 'heads': 2, 'key_value_heads': 1}
  return lm.ByteLM(**sizes | fields, hidden=32, linear=layer)


def random_params(model, seed=0):
  ids = jnp.zeros((1, 8), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), ids)['params']
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), shapes
  )


@functools.partial(jax.jit, static_argnums=0)
def run(apply, params, ids):
  return apply(params, ids, jnp.ones_like(ids))


def logits(model, params):
  ids = jnp.asarray(np.random.default_rng(1).integers(4, 30, (2, 8)))
  return run(forward.pure(model), params, ids)


@pytest.mark.parametrize('scan', [False, True])
def test_projections_of_a_byte_lm(scan):
  model = byte_lm(ROLES, scan_layers=scan)
  found = {p.path: p for p in projections.find(model, rows=3, length=8)}
  blocks = ['blocks'] if scan else ['block_0', 'block_1']
  names = {
    'attention/query': (16, 16), 'attention/key': (16, 8),
    'attention/value': (16, 8), 'attention/output': (16, 16),
    'feed_forward/gate': (16, 32), 'feed_forward/up': (16, 32),
    'feed_forward/down': (32, 16),
  }  # fmt: skip
  expected = {f'{b}/{n}': sizes for b in blocks for n, sizes in names.items()}
  assert found.keys() == expected.keys() | {'head'}
  for path, sizes in expected.items():
    one = found[path]
    assert (one.d_in, one.d_out) == sizes
    assert (one.tokens, one.copies) == (24, 2 if scan else None)
    role = 'feed_forward' if 'feed' in path else 'default'
    assert type(one.layer) is type(getattr(ROLES, role))
    assert one.layer.parent is None and one.layer.features == sizes[1]


def test_projections_of_patches_and_mixtures():
  local = stacks.Stack(width=16, layers=1, heads=2, hidden=24)
  model = byte_latent.ByteLatent(
    encoder=local,
    latent=local.copy(width=24),
    decoder=local,
    patching=patching.Patching(patching.Space(), max_length=4),
    reserve=1.0,
    linear=linear.Roles(BTT(), head=mixture.Mixture(experts=2)),
  )
  found = {p.path: p for p in projections.find(model, rows=2, length=8)}
  assert isinstance(found['patch_query'].layer, BTT)
  assert found['encoder_cross/query'].d_out == 16
  query = found['latent_transformer/block_0/attention/query']
  assert isinstance(query.layer, BTT) and query.tokens == 16
  assert isinstance(found['head'].layer, mixture.Mixture)
  assert not any('/experts' in path or '/router' in path for path in found)


def test_a_merged_model_is_the_same_function():
  model = byte_lm(ROLES, scan_layers=True)
  params = random_params(model)
  dense, found = projections.merged(model, params)
  assert dense.linear == linear.Roles(
    feed_forward=linear.Dense(), head=linear.Dense()
  )
  assert found['blocks']['attention']['query']['kernel'].shape == (2, 16, 16)
  expected = logits(model, params)
  np.testing.assert_allclose(
    logits(dense, found), expected, atol=2e-5 * jnp.abs(expected).max()
  )
  # And back again: of the rank that the matrices have, nothing is lost.
  again = projections.exchange(dense, found, model)
  np.testing.assert_allclose(
    logits(model, again), expected, atol=2e-4 * jnp.abs(expected).max()
  )


def test_layers_of_few_weights_decode_as_they_are(monkeypatch):
  btt = byte_lm(BTT(), layers=1)
  whole = byte_lm(structured.LowRank(fraction=1.0), layers=1)
  assert projections.decodes_faster_merged(whole)
  assert not projections.decodes_faster_merged(btt)
  assert not projections.decodes_faster_merged(byte_lm(linear.Dense()))
  # Where kernels take time to start, small ones are better one.
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert projections.decodes_faster_merged(btt)
  wide = btt.clone(width=4096, hidden=16384)
  assert not projections.decodes_faster_merged(wide)


def test_what_cannot_be_exchanged_is_named():
  source = byte_lm(linear.Dense(), layers=1)
  params = random_params(source)
  for model, words in (
    (
      byte_lm(linear.Roles(head=mixture.Mixture()), layers=1),
      'head 16 -> 260: .*Mixture',
    ),
    (source.clone(layers=2), r'block_1/attention/query 16 -> 16 has no count'),
    (source.clone(vocabulary_size=300), r'embed/embedding is \(260, 16\) in'),
  ):
    with pytest.raises(ValueError, match=words):
      projections.exchange(source, params, model)
  mixed = projections.Projection('key', mixture.Mixture(), 16, 8, 1, None)
  with pytest.raises(ValueError, match='key 16 -> 8: a Mixture is no single'):
    projections.matrix(mixed, {})


@pytest.mark.parametrize('share', [0.25, 1.0])
def test_a_guided_layer_is_the_mean_of_teacher_and_structure(share):
  layer = guided.Guided(student=structured.LowRank(rank=2), features=5)
  rng = np.random.default_rng(0)
  x, teacher = rng.standard_normal((2, 3, 4)), rng.standard_normal((4, 5))
  u, v = rng.standard_normal((4, 2)), rng.standard_normal((2, 5))
  params = {
    'teacher': teacher,
    'share': share,
    'structure': {'core_0_kernel': u[None], 'core_1_kernel': v[None]},
  }
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  found, pull = jax.vjp(
    lambda p: layer.apply({'params': p}, jnp.asarray(x, jnp.float32)), params
  )
  expected = x @ (share * teacher + (1 - share) * u @ v)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  (gradient,) = pull(found)
  assert not gradient['teacher'].any() and not gradient['share'].any()
  assert bool(gradient['structure']['core_0_kernel'].any()) == (share < 1)
