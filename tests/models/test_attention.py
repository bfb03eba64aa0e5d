"""Attention against float64 loops: documents, windows, padding, groups."""

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
from models import window_attention


def _case(length, seed=0):
  rng = np.random.default_rng(seed)
  query = rng.normal(size=(2, length, 4, 8)).astype(np.float32)
  key, value = rng.normal(size=(2, 2, length, 2, 8)).astype(np.float32)
  cuts = rng.integers(1, 4, (2, length))
  documents = np.sort(cuts, axis=1)
  documents[1, length - 2 :] = 0
  return query, key, value, documents


def _tokens(documents):
  place = np.broadcast_to(np.arange(documents.shape[1]), documents.shape)
  return masks.Tokens(
    *(jnp.asarray(x.astype(np.int32)) for x in (place, documents))
  )


def _loop(query, key, value, documents, window):
  out = np.zeros(query.shape)
  batch, length, heads, width = query.shape
  for b in range(batch):
    for h in range(heads):
      for i in range(length):
        seen = [
          j
          for j in range(i + 1)
          if documents[b, i] == documents[b, j] > 0
          and (window is None or i - j < window)
        ]
        if not seen:
          continue
        logits = key[b, seen, h // 2].astype(np.float64) @ query[b, i, h]
        weights = np.exp(logits / np.sqrt(width))
        out[b, i, h] = weights / weights.sum() @ value[b, seen, h // 2]
  return out


def _attend(query, key, value, seen, function=attention.attend):
  return function(query, *(jnp.swapaxes(x, 1, 2) for x in (key, value)), seen)


@functools.partial(jax.jit, static_argnames='mask')
def _whole(query, key, value, tokens, mask):
  seen = masks.visible(mask, tokens, tokens)
  return _attend(query, key, value, seen)


def _mix_rows(query, key, value, tokens, mask):
  """What models.attention does with whole rows; nothing is turned."""
  layer = attention.Attention(4, 2, 8, mask, False, 'float32')
  return layer.mix(query, key, value, tokens, None)[0]


_banded = jax.jit(_mix_rows, static_argnames='mask')


@pytest.mark.parametrize('window', [None, 1, 4])
def test_attend_equals_a_loop(window):
  query, key, value, documents = _case(13)
  mask = masks.Causal(window=window)
  expected = _loop(query, key, value, documents, window)
  found = _whole(query, key, value, _tokens(documents), mask)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(('window', 'length'), [(1, 5), (3, 13), (4, 16)])
def test_banded_attention_equals_a_loop(window, length):
  query, key, value, documents = _case(length, seed=window)
  mask = masks.Causal(window=window)
  found = _banded(query, key, value, _tokens(documents), mask)
  expected = _loop(query, key, value, documents, window)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@hypothesis.given(
  seed=st.integers(0, 2**32 - 1), window=st.sampled_from([None, 2, 7])
)
def test_any_documents_and_any_padding_equal_a_loop(seed, window):
  query, key, value, _ = _case(23)
  rng = np.random.default_rng(seed)
  documents = np.repeat(rng.integers(0, 3, (2, 23)), 3, axis=1)[:, :23]
  documents[:, rng.integers(0, 23, 2)] = rng.integers(0, 3)
  mask, tokens = masks.Causal(window=window), _tokens(documents)
  expected = _loop(query, key, value, documents, window)
  for function in (_whole, _banded)[: 1 if window is None else 2]:
    found = function(query, key, value, tokens, mask)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def _gradients(function, *inputs):
  def loss(*inputs):
    return jnp.sum(jnp.sin(function(*inputs)))

  return jax.jit(jax.grad(loss, (0, 1, 2)))(*inputs)


def test_long_rows_without_a_window_are_computed_in_blocks(monkeypatch):
  monkeypatch.setattr(window_attention, '_MOST_AT_ONCE', 100)
  query, key, value, documents = _case(150)
  tokens = _tokens(documents)
  ways = [
    functools.partial(f, tokens=tokens, mask=masks.Causal())
    for f in (_banded, _whole)
  ]
  found, expected = (way(query, key, value) for way in ways)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  for a, b in zip(
    *(_gradients(way, query, key, value) for way in ways), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_banded_gradients_equal_those_of_the_whole():
  query, key, value, documents = _case(13)
  extras = {'tokens': _tokens(documents), 'mask': masks.Causal(window=4)}
  for a, b in zip(
    *(
      _gradients(functools.partial(f, **extras), query, key, value)
      for f in (_banded, _whole)
    ),
    strict=True,
  ):
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_every_backend_computes_the_same(groups):
  query, _, _, documents = _case(13)
  rng = np.random.default_rng(groups)
  key, value = rng.normal(size=(2, 2, 13, groups, 8)).astype(np.float32)
  tokens = _tokens(documents)
  seen = np.asarray(
    jax.jit(masks.visible, static_argnums=0)(
      masks.Causal(window=4), tokens, tokens
    )
  )
  assert not seen.any(-1).all(), 'some query sees nothing'
  ways = [
    functools.partial(_attend, seen=seen, function=function)
    for function in (attention._attend_einsum, attention._attend_fused)
  ]
  outputs = [jax.jit(way)(query, key, value) for way in ways]
  np.testing.assert_allclose(*outputs, atol=1e-5)
  for a, b in zip(
    *(_gradients(way, query, key, value) for way in ways), strict=True
  ):
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_bfloat16_inputs_are_accumulated_in_float32():
  query, key, value, documents = _case(40)
  mask, tokens = masks.Causal(), _tokens(documents)
  halves = [x.astype(jnp.bfloat16) for x in (query, key, value)]
  found = _whole(*halves, tokens, mask)
  assert found.dtype == jnp.bfloat16
  expected = _whole(*(x.astype(np.float32) for x in halves), tokens, mask)
  found = np.asarray(found).astype(np.float32)
  np.testing.assert_allclose(found, expected, atol=0.02)


_store = jax.jit(layer_cache.store)


@pytest.mark.parametrize('slots', [1, 4, 30])
def test_the_cache_holds_the_last_tokens_of_every_row(slots):
  rng = np.random.default_rng(slots)
  cache = layer_cache.empty(masks.Causal(slots), 3, 99, 2, 4, 'float32')
  length, rows = np.zeros(3, int), [{}, {}, {}]
  for width in (5, 1, 1, 7, 1, 7):
    count = rng.integers(0, width + 1, 3)
    key, value = rng.normal(size=(2, 3, width, 2, 4)).astype(np.float32)
    index = np.arange(width)[None]
    tokens = masks.Tokens(
      (length[:, None] + index).astype(np.int32),
      (index < count[:, None]).astype(np.int32),
    )
    cache = _store(cache, key, value, tokens)
    for b in range(3):
      for t in range(count[b]):
        rows[b][length[b] % slots] = (key[b, t], value[b, t], length[b])
        length[b] += 1
  cache = jax.device_get(cache)
  assert length.min() > 4, 'the short ones wrapped around'
  for b, row in enumerate(rows):
    for slot in range(slots):
      empty = (np.zeros((2, 4)), np.zeros((2, 4)), -1)
      key, value, position = row.get(slot, empty)
      assert cache.position_BS[b, slot] == position
      np.testing.assert_array_equal(cache.key_BGSK[b, :, slot], key)
      np.testing.assert_array_equal(cache.value_BGSK[b, :, slot], value)


def test_norm_equals_its_formula_also_for_small_inputs():
  x = np.random.default_rng(0).normal(size=(2, 3, 8)) * 1e-3
  scale = np.linspace(0.5, 2.0, 8)
  expected = x * scale / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
  variables = {'params': {'scale': scale.astype(np.float32)}}
  apply = jax.jit(attention.RMSNorm().apply)
  found = apply(variables, x.astype(np.float32))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
