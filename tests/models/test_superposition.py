"""Reading the mean of several drafts, in every kind of model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import forward
from models import lm
from models import ngrams
from models import superposition
from samplers import loop
from samplers import ngram_store
from samplers import superposed
from tests.models import small_lm
from tests.models import test_byte_latent as latent
from tests.models import test_patched

EXTRAS = {name: small_lm.EXTRAS[name] for name in ('ngrams', 'recall')}
PLAIN = lm.ByteLM(**small_lm.SIZES | {'layers': 1}, **EXTRAS)


@functools.cache
def drawn(kind):
  """A model and its parameters."""
  if kind == 'bytes':
    return PLAIN, small_lm.draw(PLAIN)
  scorer = {'tables': test_patched.NGRAMS, 'lm': test_patched.LM}[kind]
  params, threshold = test_patched.drawn(scorer)
  return test_patched.with_entropy(scorer, threshold), params


@functools.cache
def jitted(model):
  return jax.jit(superposition.mixing(model)[1])


def recent_ids(ids_BT, place, context):
  before = jnp.pad(ids_BT[:, :place], ((0, 0), (context, 0)))
  return before[:, before.shape[1] - context :]


@pytest.mark.parametrize('kind', ['bytes', 'tables', 'lm'])
def test_a_weight_of_one_is_the_plain_step(kind):
  model, params = drawn(kind)
  ids_BT = latent.text_ids(0, (2, 14))
  expected_BTV = jax.jit(forward.pure(model))(
    params, ids_BT, jnp.ones_like(ids_BT)
  )
  context, _ = superposition.mixing(model)
  weights_BM = jnp.tile(jnp.array([[0.0, 1.0]]), (2, 1))
  cache = model.init_cache(2, 14)
  for place in range(14):
    recent_BC = recent_ids(ids_BT, place, context)
    # The other draft counts for nothing.
    recent_BMC = jnp.stack([recent_BC + 1, recent_BC], axis=1)
    last_BM = jnp.stack([ids_BT[:, place] + 1, ids_BT[:, place]], axis=1)
    found_BV, cache = jitted(model)(
      params, recent_BMC, last_BM, weights_BM, cache
    )
    np.testing.assert_allclose(
      found_BV, expected_BTV[:, place], rtol=1e-4, atol=1e-4
    )


def test_the_mean_is_an_id_of_mean_embedding():
  """Patches, too, end as if there were such an id."""
  model, params = drawn('lm')
  inner = model.model.clone(ngrams=ngrams.NgramEmbedding())
  model = model.clone(model=inner)
  a, b, both, share = 101, 110, 200, 0.3

  def blended(embedding_VD):
    mean_D = share * embedding_VD[a] + (1 - share) * embedding_VD[b]
    return jnp.asarray(embedding_VD).at[both].set(mean_D)

  params = jax.tree_util.tree_map_with_path(
    lambda path, x: (
      blended(x)
      if jax.tree_util.keystr(path[-2:]) == "['embed']['embedding']"
      else x
    ),
    params,
  )
  ids_BT = jnp.full((1, 9), both)
  expected_BTV = jax.jit(forward.pure(model))(
    params, ids_BT, jnp.ones_like(ids_BT)
  )
  plain_BTV = jax.jit(forward.pure(model))(
    params, jnp.full_like(ids_BT, b), jnp.ones_like(ids_BT)
  )
  assert np.abs(expected_BTV - plain_BTV).max() > 1e-2
  context, _ = superposition.mixing(model)
  cache = model.init_cache(1, 9)
  for place in range(9):
    found_BV, cache = jitted(model)(
      params,
      jnp.zeros((1, 2, context), jnp.int32),
      jnp.array([[a, b]]),
      jnp.array([[share, 1 - share]]),
      cache,
    )
    np.testing.assert_allclose(
      found_BV, expected_BTV[:, place], rtol=1e-4, atol=1e-4
    )
  assert int(cache.model.patches_B[0]) > 1


def test_one_draft_of_a_patched_model_is_greedy():
  """Across patches and resets, after ragged prompts."""
  model, params = drawn('tables')
  ids_BT, lengths_B = test_patched.ragged(2)
  count, size = 10, 18
  state = loop.prefill(
    forward.step(model), params, model.init_cache(2, size), ids_BT, lengths_B,
    jax.random.split(jax.random.key(0), 2), capacity=count,
  )  # fmt: skip
  found = superposed.search(
    forward.step(model),
    superposed.Mixer(*superposition.mixing(model)),
    params,
    state,
    (jnp.asarray(ids_BT), jnp.asarray(lengths_B)),
    ngram_store.build([np.array([99, 98])]),
    superposed.Superposed(drafts=1, alpha=0.0, temperature=1.0, reset=4),
    num_tokens=count,
  )
  full = jax.jit(forward.pure(model))
  for row, length in enumerate(lengths_B):
    text = np.zeros((1, size), np.int32)
    text[0, :length] = ids_BT[row, :length]
    for place in range(length, length + count):
      real = (np.arange(size) < place)[None].astype(np.int32)
      logits_BTV = full(params, text, real)
      text[0, place] = np.argmax(logits_BTV[0, place - 1])
    np.testing.assert_array_equal(
      found.ids_BMN[row, 0], text[0, length : length + count]
    )


def test_another_model_is_named():
  with pytest.raises(ValueError, match='Dense takes no embeddings'):
    superposition.mixing(small_lm.lm.nn.Dense(3))
