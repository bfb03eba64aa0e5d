"""The presets of the paper: sizes as published, shardings that divide."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from configs import blt_paper
from models import byte_latent
from models import forward
from models import ngrams
from models import stacks
from training import objectives
from training import sharding
from training import step as step_lib

# Half the compile time; the partitioner is not affected.
QUICK = {'xla_backend_optimization_level': 0}
MESHES = [
  (8, 1, 1),
  (4, 2, 1),
  (1, 8, 1),
  (2, 2, 2),
  (4, 1, 2),
  (1, 4, 2),
]
SIZES = ('400m', '1b', '2b', '4b', '8b')
# Millions: encoder, latent, decoder, n-gram tables, all with the entropy model
# (arXiv 2412.09871, its table of models, counted on transformers' BLT).
PUBLISHED = {
  '400m': (10.8, 490, 68, 2304, 2972),
  '1b': (19.4, 1285, 158, 3072, 4633),
  '2b': (20.5, 2070, 162, 3072, 5423),
  '4b': (20.5, 4077, 163, 3072, 7432),
  '8b': (33.8, 6497, 183, 3840, 10653),
}


@functools.cache
def preset(name):
  return base.load(f'{base.__file__.rpartition("/")[0]}/blt_{name}.py')


@functools.cache
def shapes(name):
  ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  init = preset(name).model.init
  return jax.eval_shape(init, jax.random.key(0), ids)['params']


def millions(tree, *names):
  chosen = tree if not names else {n: tree[n] for n in names if n in tree}
  return sum(leaf.size for leaf in jax.tree.leaves(chosen)) / 1e6


@pytest.mark.parametrize('name', SIZES)
def test_parameters_are_as_published(name):
  params = shapes(name)
  model = params['model']
  crosses = [n for n in model if n.startswith('decoder_cross')]
  found = (
    millions(model, 'embed', 'local_encoder', 'patch_query', 'encoder_cross'),
    millions(model, 'latent_input', 'latent_transformer'),
    millions(
      model, 'patch_slots', 'local_decoder', 'final_norm', 'head', *crosses
    ),
    # Padded rows are stored and never read.
    6 * blt_paper.TABLE_ROWS * preset(name).model.model.encoder.width / 1e6,
  )
  published = PUBLISHED[name]
  np.testing.assert_allclose(found, published[:4], rtol=0.006)
  assert millions(params, 'entropy') == pytest.approx(99.5, abs=0.05)
  stored = millions(params) - millions(model, 'ngram_embed') + found[3]
  assert stored == pytest.approx(published[4], rel=0.0005)


def test_tables_keep_the_released_modulus():
  table = preset('1b').model.model.ngrams
  assert (table.rows, table.sizes) == (500_002, (3, 4, 5, 6, 7, 8))


def test_entropy_run_fits_into_the_others():
  entropy = preset('entropy')
  assert entropy.model == preset('8b').model.entropy.lm
  assert (entropy.optimizer.clip, entropy.optimizer.final_ratio) == (10.0, 0.1)
  assert jax.tree.map(jnp.shape, shapes('entropy')) == jax.tree.map(
    jnp.shape, shapes('8b')['entropy']['lm']
  )


def test_bench_has_the_size_of_its_anchor():
  assert millions(shapes('bench')) == pytest.approx(18.9, abs=0.05)


@pytest.mark.parametrize('mesh', [(1, 8, 1), (8, 64, 1), (4, 8, 4)])
@pytest.mark.parametrize('name', ['400m', '8b'])
def test_shardings_divide_every_large_array(name, mesh):
  config = preset(name)
  mesh = jax.sharding.AbstractMesh(mesh, ('data', 'fsdp', 'tensor'))
  params = shapes(name)
  placed = sharding.shard_tree(params, mesh, config.shardings)
  whole = {
    sharding.name(path): leaf.size
    for (path, leaf), where in zip(
      jax.tree_util.tree_leaves_with_path(params),
      jax.tree.leaves(placed),
      strict=True,
    )
    if where.shard_shape(leaf.shape) == leaf.shape
  }
  # Norms and byte embeddings.
  assert all('scale' in p or 'embedding' in p for p in whole), whole
  assert sum(whole.values()) < 2e6


def small_model():
  """The layout of the presets, with a projection at every seam."""
  local = stacks.Stack(16, 1, 2, 32, residual_gain=1.0, remat=True)
  return byte_latent.ByteLatent(
    encoder=local,
    latent=stacks.Stack(
      24, 2, 2, 32, residual_gain=1.0, scan_layers=True, remat=True
    ),
    decoder=local,
    slots=2,
    ngrams=ngrams.NgramEmbedding(sizes=(3, 4), rows=48),
  )


@functools.cache
def gradient_parts():
  """Rows of two documents and padding, whose patches share latent rows."""
  model = small_model().clone(rows=2)
  rng = np.random.default_rng(0)
  ids = rng.choice(np.frombuffer(b'ab c', np.uint8), (8, 24)).astype('int32')
  documents = 1 + (np.arange(24) >= np.arange(5, 13)[:, None]).astype('int32')
  documents[::3, -2:] = 0
  batch = {
    'ids': ids + 4,
    'targets': np.roll(ids, -1, 1) + 4,
    'documents': documents,
    'mask': (documents > 0).astype(np.float32),
  }
  shapes = jax.eval_shape(model.init, jax.random.key(0), ids)['params']
  params = jax.tree.map(
    lambda s: rng.normal(
      1.0 if len(s.shape) == 1 else 0.0, s.shape[0] ** -0.5, s.shape
    ).astype(np.float32),
    shapes,
  )
  gradient = functools.partial(
    step_lib.gradients,
    objectives.NextToken(),
    forward.pure(model),
    accumulate=1,
  )
  expected = jax.jit(gradient, compiler_options=QUICK)(params, batch)[1]
  return params, batch, gradient, expected


@pytest.mark.parametrize('shape', MESHES, ids=str)
def test_sharded_gradients_are_those_of_one_device(shape):
  params, batch, gradient, expected = gradient_parts()
  mesh = sharding.MeshShape(*shape).build()
  placed = sharding.shard_tree(params, mesh, blt_paper.SHARDINGS)
  rows = sharding.batch_sharding(mesh)
  with jax.set_mesh(mesh):
    found = jax.jit(gradient, compiler_options=QUICK)(
      jax.device_put(params, placed),
      jax.tree.map(lambda x: jax.device_put(x, rows), batch),
    )[1]
  for (path, leaf), other in zip(
    jax.tree_util.tree_leaves_with_path(expected),
    jax.tree.leaves(found),
    strict=True,
  ):
    scale = max(float(jnp.abs(leaf).max()), 1e-3)
    np.testing.assert_allclose(
      other, leaf, atol=1e-4 * scale, err_msg=sharding.name(path)
    )


def test_training_settings_are_the_papers():
  config = preset('8b')
  adam = config.optimizer
  assert (adam.b2, adam.weight_decay, adam.clip) == (0.95, 0.1, 1.0)
  rate = adam.schedule(config.steps)
  assert float(rate(2000)) == pytest.approx(4e-4)
  assert float(rate(1000)) == pytest.approx(2e-4)
  assert float(rate(config.steps)) == pytest.approx(0, abs=1e-9)
  bytes_per_step = config.batch_size * config.row_length
  assert math.log2(bytes_per_step) == 24
  assert re.search(adam.frozen[0], 'entropy/lm/head/kernel')
  assert not re.search(adam.frozen[0], 'model/head/kernel')
