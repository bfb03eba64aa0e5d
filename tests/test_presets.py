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
from training import sharding

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
