"""Lambda-shaped attention against all pairs in float64, rows and decoding."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from models import attention
from models import layer_cache
from models import masks
from models import positions
from tests.models import lambda_reference as reference
from tests.models import test_byte_latent

ROTARY = positions.Rotary(theta=100.0)


def layer_of(mask, position, groups):
  return attention.Attention(
    reference.HEADS,
    groups,
    reference.WIDTH,
    mask,
    query_key_norm=False,
    dtype='float32',
    position=position,
  )


@functools.partial(jax.jit, static_argnames=('mask', 'position'))
def attend_rows(arrays, documents, cotangent, mask, position):
  """Outputs and gradients of whole rows."""
  tokens = masks.row_tokens(documents)
  turn = position.turn(tokens.position_BT, reference.WIDTH)
  layer = layer_of(mask, position, arrays[1].shape[2])

  def function(*arrays):
    return layer.mix(*arrays, tokens, turn)[0]

  out, pull = jax.vjp(function, *arrays)
  return out, pull(cotangent)


@functools.partial(jax.jit, static_argnames=('mask', 'position'))
def attend_cached(arrays, tokens, cache, mask, position):
  """Outputs of tokens after those in the cache, and the new cache."""
  turn = position.turn(tokens.position_BT, reference.WIDTH)
  layer = layer_of(mask, position, arrays[1].shape[2])
  return layer.mix(*arrays, tokens, turn, cache)


def check_rows(mask, position, length, groups=2, runs=1, seed=0):
  rng = np.random.default_rng(seed)
  arrays = reference.draw(seed, 2, length, groups)
  documents = np.ones((2, length), np.int32)
  if runs > 1:
    documents = reference.draw_documents(rng, 2, length, runs)
  cotangent = rng.normal(size=arrays[0].shape).astype(np.float32)
  found, gradients = attend_rows(arrays, documents, cotangent, mask, position)
  expected, *expected_gradients = reference.rows(
    arrays, documents, mask, position, cotangent
  )
  np.testing.assert_allclose(found, expected, atol=1e-5)
  for a, b in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))


@st.composite
def lambdas(draw):
  n_local = draw(st.integers(1, 70))
  sinks = draw(st.sampled_from(['limit', 'cache']))
  limit = st.none() | st.integers(0, n_local)
  return masks.Lambda(
    n_global=draw(st.integers(1, 12)),
    n_local=n_local,
    limit=None if sinks == 'cache' else draw(limit),
    sinks=sinks,
    top_k=draw(st.sampled_from([0, 0, 1, 4])),
    top_k_distance=draw(st.none() | st.integers(0, 9)),
  )


ANY_SHAPE = hypothesis.given(
  mask=lambdas(),
  position=st.sampled_from([ROTARY, positions.Alibi()]),
  length=st.integers(1, 170),
  groups=st.sampled_from([1, 2, 4]),
  runs=st.integers(1, 4),
  seed=st.integers(0, 999),
)


# Each of them is a program of its own.
@hypothesis.settings(max_examples=4)
@ANY_SHAPE
def test_rows_of_any_shape(mask, position, length, groups, runs, seed):
  check_rows(mask, position, length, groups, runs, seed)


@pytest.mark.slow
@hypothesis.settings(max_examples=40)
@ANY_SHAPE
def test_rows_of_many_shapes(mask, position, length, groups, runs, seed):
  check_rows(mask, position, length, groups, runs, seed)


@pytest.mark.parametrize('length', [9, 10, 11, 75])
def test_rows_around_the_window_and_over_several_blocks(length):
  check_rows(masks.Lambda(n_global=3, n_local=10), ROTARY, length)


@pytest.mark.parametrize(
  ('mask', 'position'),
  [
    (masks.Lambda(n_global=7, n_local=4), positions.Alibi()),
    (masks.Lambda(n_global=2, n_local=33, limit=33), ROTARY),
    (masks.Lambda(n_global=2, n_local=20, sinks='cache'), positions.Alibi()),
    (masks.Lambda(n_global=2, n_local=20, top_k=3), ROTARY),
    (masks.Lambda(n_global=2, n_local=20, top_k=999), positions.Alibi()),
  ],
  ids=lambda x: type(x).__name__,
)
def test_packed_rows(mask, position):
  check_rows(mask, position, 90, groups=1, runs=3, seed=5)


def test_sinks_of_several_documents_in_one_block():
  # Windows of 2 in blocks of 32: many documents of a block have sinks.
  mask, length = masks.Lambda(n_global=2, n_local=2), 64
  arrays = reference.draw(1, 2, length, 2)
  rng = np.random.default_rng(2)
  documents = np.cumsum(rng.random((2, length)) < 0.2, axis=1) % 5
  found, _ = attend_rows(
    arrays, documents.astype(np.int32), arrays[0], mask, ROTARY
  )
  expected, *_ = reference.rows(arrays, documents, mask, ROTARY)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bfloat16_rows_stay_close_to_exact_ones():
  mask = masks.Lambda(n_global=3, n_local=10)
  arrays = tuple(
    jnp.asarray(x, jnp.bfloat16) for x in reference.draw(6, 2, 45, 2)
  )
  documents = np.ones((2, 45), np.int32)
  found, _ = attend_rows(arrays, documents, arrays[0], mask, ROTARY)
  assert found.dtype == jnp.bfloat16
  rounded = tuple(np.asarray(x, np.float64) for x in arrays)
  expected, *_ = reference.rows(rounded, documents, mask, ROTARY)
  found = np.asarray(found, np.float64)
  np.testing.assert_allclose(found, expected, rtol=2e-2, atol=4e-2)


@pytest.mark.parametrize('top_k', [0, 3])
def test_arrays_are_linear_in_the_length(top_k):
  mask = masks.Lambda(n_global=4, n_local=32, top_k=top_k)
  largest = []
  for length in (512, 1024):
    arrays = reference.draw(0, 1, length, 2)
    documents = np.ones((1, length), np.int32)
    made = jax.make_jaxpr(
      lambda *x: attend_rows(*x, mask=mask, position=positions.Alibi())
    )(arrays, documents, arrays[0])
    largest.append(max(test_byte_latent.sizes(made.jaxpr)))
  # A block of 32 queries meets all keys only to choose from them.
  assert largest[1] <= 1024 * reference.HEADS * max(reference.WIDTH, 32)
  assert 1.8 < largest[1] / largest[0] < 2.2


CACHED = {
  'lambda': (masks.Lambda(n_global=3, n_local=6), ROTARY),
  'more sinks than window': (masks.Lambda(n_global=9, n_local=4), ROTARY),
  'one': (masks.Lambda(n_global=1, n_local=1), ROTARY),
  'cache': (masks.Lambda(3, 6, sinks='cache'), ROTARY),
  'alibi': (masks.Lambda(n_global=3, n_local=6), positions.Alibi()),
  'top': (masks.Lambda(n_global=2, n_local=5, top_k=2), ROTARY),
}


@pytest.mark.parametrize('name', CACHED)
def test_every_cached_step_equals_the_rows(name):
  mask, position = CACHED[name]
  arrays = reference.draw(3, 3, 60, 2)
  expected, *_ = reference.rows(arrays, np.ones((3, 60)), mask, position)
  cache = layer_cache.empty(mask, 3, 60, 2, reference.WIDTH, 'float32')
  at = np.zeros(3, int)
  prompts = [[11, 3, 1], [0, 1, 11]]
  steps = [[1, 1, 1]] * 9 + [[1, 0, 1], [0, 1, 1]] * 4
  # A chunk right after rows have wrapped around, then steps to the end.
  for count in np.array([*prompts, *steps, [5, 11, 0], *[[1, 1, 1]] * 14]):
    width = 1 if count.max() == 1 else 11
    index = np.minimum(at[:, None] + np.arange(width), 59)
    real = np.arange(width)[None] < count[:, None]
    part = tuple(
      np.where(real[..., None, None], x[np.arange(3)[:, None], index], 7)
      for x in arrays
    )
    tokens = masks.Tokens(
      jnp.asarray(at[:, None] + np.arange(width), jnp.int32),
      jnp.asarray(real, jnp.int32),
    )
    out, cache = attend_cached(part, tokens, cache, mask, position)
    for row in range(3):
      np.testing.assert_allclose(
        out[row, : count[row]],
        expected[row, at[row] : at[row] + count[row]],
        atol=1e-5,
      )
    at += count
  assert at.min() > 4 * mask.n_local, 'each ring wraps around'


def test_a_far_position_is_as_exact_as_a_near_one():
  mask = masks.Lambda(n_global=2, n_local=6)
  arrays = reference.draw(4, 1, 40, 2)
  outputs = []
  for shift in (0, 1_000_003, 2**31 - 50):
    cache = layer_cache.empty(mask, 1, 2**31 - 1, 2, reference.WIDTH, 'float32')
    outputs.append([])
    # Sinks and a gap as long as the window, then far away.
    for i in range(40):
      place = i if i < 2 else i + 8 + shift
      tokens = masks.Tokens(jnp.full((1, 1), place), jnp.ones((1, 1), int))
      part = tuple(x[:, i : i + 1] for x in arrays)
      out, cache = attend_cached(part, tokens, cache, mask, ROTARY)
      outputs[-1].append(out)
  near, *far = outputs
  for found in far:
    np.testing.assert_allclose(np.stack(found), np.stack(near), atol=2e-6)


def test_the_cache_does_not_grow():
  mask = masks.Lambda(n_global=4, n_local=32)
  small, large = (
    jax.tree.map(jnp.shape, layer_cache.empty(mask, 2, length, 2, 8, 'float32'))
    for length in (32, 2**31 - 1)
  )
  assert small == large
  assert small.recent.key_BGSK == (2, 2, 32, 8)
  assert small.sinks.key_BGSK == (2, 2, 4, 8)


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'n_global': 0}, 'mask.n_global=0 must be >= 1'),
    ({'n_local': 0}, 'mask.n_local=0 must be >= 1'),
    ({'n_local': 8, 'limit': 9}, r'mask.limit=9 must be in 0..n_local=8'),
    ({'sinks': 'x'}, "mask.sinks='x' must be 'limit'"),
    ({'sinks': 'cache', 'limit': 2}, 'mask.limit=2 has no meaning'),
    ({'top_k': -1}, 'mask.top_k=-1'),
  ],
)
def test_masks_that_are_none(fields, words):
  with pytest.raises(ValueError, match=words):
    masks.Lambda(**fields)


def test_the_cache_of_another_mask_is_refused():
  mask = masks.Lambda(n_global=4, n_local=8)
  others = (
    masks.Causal(),
    masks.Lambda(n_global=2, n_local=8),
    masks.Lambda(n_global=4, n_local=9),
    masks.Lambda(n_global=4, n_local=8, top_k=1),
  )
  for other in others:
    cache = layer_cache.empty(other, 1, 99, 2, 8, 'float32')
    with pytest.raises(ValueError, match='n_global=4, n_local=8 and'):
      layer_cache.check(mask, cache)
  with pytest.raises(ValueError, match='that of a masks'):
    layer_cache.check(masks.Causal(), cache)
