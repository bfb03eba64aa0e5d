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
from samplers import ngram_tables
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
  before = np.pad(ids_BT[:, :place], ((0, 0), (context, 0)))
  return before[:, before.shape[1] - context :]


# The rows and room of all that the tests read.
SHAPE = latent.BATCH, latent.LENGTH


@pytest.mark.parametrize(
  'kind', ['bytes', 'tables', pytest.param('lm', marks=pytest.mark.slow)]
)
def test_a_weight_of_one_is_the_plain_step(kind):
  model, params = drawn(kind)
  ids_BT = latent.text_ids(0, SHAPE)
  expected_BTV = test_patched.logits_of(model, params, ids_BT)
  context, _ = superposition.mixing(model)
  weights_BM = np.tile(np.array([[0.0, 1.0]], np.float32), (SHAPE[0], 1))
  cache = test_patched.empty(model, *SHAPE)
  for place in range(14):
    recent_BC = recent_ids(ids_BT, place, context)
    # The other draft counts for nothing.
    recent_BMC = np.stack([recent_BC + 1, recent_BC], axis=1)
    last_BM = np.stack([ids_BT[:, place] + 1, ids_BT[:, place]], axis=1)
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
    changed_VD = np.array(embedding_VD)
    changed_VD[both] = mean_D
    return changed_VD

  params = jax.tree_util.tree_map_with_path(
    lambda path, x: (
      blended(x)
      if jax.tree_util.keystr(path[-2:]) == "['embed']['embedding']"
      else x
    ),
    params,
  )
  ids_BT = np.full(SHAPE, both, np.int32)
  ids_BT[1:] = b
  expected_BTV = test_patched.logits_of(model, params, ids_BT)
  assert np.abs(expected_BTV[0] - expected_BTV[1]).max() > 1e-2
  context, _ = superposition.mixing(model)
  cache = test_patched.empty(model, *SHAPE)
  weights_BM = np.tile(np.array([[share, 1 - share]], np.float32), (4, 1))
  weights_BM[1:] = 0.0, 1.0
  for place in range(9):
    found_BV, cache = jitted(model)(
      params,
      np.zeros((4, 2, context), np.int32),
      np.tile(np.array([[a, b]], np.int32), (4, 1)),
      weights_BM,
      cache,
    )
    np.testing.assert_allclose(
      found_BV, expected_BTV[:, place], rtol=1e-4, atol=1e-4
    )
  assert np.asarray(cache.model.patches_B)[0] > 1


def test_one_draft_of_a_patched_model_is_greedy():
  """Across patches and resets, after ragged prompts."""
  model, params = drawn('tables')
  ids_BT, lengths_B = test_patched.ragged(2)
  count, size = 10, 18
  state = loop.prefill(
    forward.step(model), params, test_patched.empty(model, 2, size),
    ids_BT, lengths_B,
    jax.random.split(jax.random.key(0), 2), capacity=count,
  )  # fmt: skip
  found = superposed.search(
    forward.step(model),
    superposed.Mixer(*superposition.mixing(model)),
    params,
    state,
    (jnp.asarray(ids_BT), jnp.asarray(lengths_B)),
    ngram_tables.build([np.array([99, 98])]),
    superposed.Superposed(drafts=1, alpha=0.0, temperature=1.0, reset=4),
    num_tokens=count,
  )
  text_BT = np.zeros(SHAPE, np.int32)
  text_BT[:2, : ids_BT.shape[1]] = ids_BT
  ends_B = np.array([*lengths_B, 1, 1])
  for place_B in ends_B + np.arange(count)[:, None]:
    real_BT = np.arange(SHAPE[1])[None] < place_B[:, None]
    logits_BTV, _ = test_patched.whole(model)(
      params, text_BT, real_BT.astype(np.int32)
    )
    rows = np.arange(len(place_B))
    last_BV = np.asarray(logits_BTV)[rows, place_B - 1]
    text_BT[rows, place_B] = np.argmax(last_BV, axis=-1)
  for row, length in enumerate(lengths_B):
    np.testing.assert_array_equal(
      np.asarray(found.ids_BMN)[row, 0], text_BT[row, length : length + count]
    )


def test_another_model_is_named():
  with pytest.raises(ValueError, match='Dense takes no embeddings'):
    superposition.mixing(small_lm.lm.nn.Dense(3))
