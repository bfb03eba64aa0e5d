"""Hashed n-grams and recall against Python integers and double loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from models import masks
from models import ngrams
from models import recall

_hash_ids = jax.jit(ngrams.hash_ids, static_argnums=1)
_recall = jax.jit(recall.recall, static_argnames=('size', 'reach'))


def _signed(value):
  value %= 2**64
  return value - 2**64 if value >= 2**63 else value


@pytest.mark.parametrize('rows', [1, 97, 8192, 500_002, 2**24 - 1])
@pytest.mark.parametrize('n', [1, 3, 6, 8])
def test_hash_is_that_of_signed_64_bit_integers(rows, n):
  rng = np.random.default_rng(n)
  windows = rng.integers(0, 260, (400, n))
  windows[0], windows[1] = 0, 259
  expected = [
    _signed(sum(int(x) * 1_000_000_007**t for t, x in enumerate(window))) % rows
    for window in windows
  ]
  found = _hash_ids(windows.astype(np.int32), rows)
  np.testing.assert_array_equal(found, expected)


def test_a_table_too_large_to_hash_into_is_named():
  with pytest.raises(ValueError, match=str(2**24)):
    ngrams.hash_ids(jnp.zeros((1, 3), jnp.int32), 2**24)


def test_ids_before_have_tables_by_their_distance():
  rng = np.random.default_rng(0)
  ids = rng.integers(4, 260, (2, 12)).astype(np.int32)
  ages = np.tile(np.r_[np.arange(7), np.arange(5)].astype(np.int32), (2, 1))
  ages[1] = np.arange(12)
  module = ngrams.NgramEmbedding(sizes=(2,), rows=5, features=3, earlier=3)
  assert module.context == 3
  params = {'table_2': np.zeros((5, 3), np.float32)} | {
    f'earlier_table_{back}': rng.normal(size=(260, 3)).astype(np.float32)
    for back in (1, 2, 3)
  }
  expected = np.zeros((2, 12, 3))
  for row, place, back in np.ndindex(2, 12, 3):
    back += 1
    # 0 stands for what is before the document.
    said = ids[row, place - back] if ages[row, place] >= back else 0
    expected[row, place] += params[f'earlier_table_{back}'][said]
  for start in (0, 4):
    before = ids[:, max(start - 3, 0) : start]
    found = module.apply(
      {'params': params}, ids[:, start:], ages[:, start:], before
    )
    np.testing.assert_allclose(found, expected[:, start:], atol=1e-6)


def _recalled(ids, ages, *, size, reach):
  """The definition, one position after the other."""
  out = np.zeros(len(ids), np.int32)
  for t in range(len(ids)):
    for s in range(t - 1, -1, -1):
      begins_inside = s - size + 1 >= t - ages[t]
      if t - s > reach or not begins_inside:
        break
      if list(ids[s - size + 1 : s + 1]) == list(ids[t - size + 1 : t + 1]):
        out[t] = ids[s + 1]
        break
  return out


@settings(deadline=None, max_examples=30)
@given(
  seed=st.integers(0, 10**6),
  size=st.sampled_from([1, 2, 3]),
  reach=st.sampled_from([1, 4, 40]),
  cut=st.integers(0, 23),
)
def test_recall_is_the_latest_match_of_its_document(seed, size, reach, cut):
  rng = np.random.default_rng(seed)
  ids = rng.integers(4, 7, (2, 24))
  ages = np.tile(np.r_[np.arange(cut), np.arange(24 - cut)], (2, 1))
  none = np.zeros((2, 0), np.int32)
  found = _recall(
    ids.astype(np.int32),
    ages.astype(np.int32),
    none,
    size=size,
    reach=reach,
  )
  expected = [
    _recalled(row, age, size=size, reach=reach)
    for row, age in zip(ids, ages, strict=True)
  ]
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('length', [1, 5])
def test_recall_continues_from_the_ids_before(length):
  rng = np.random.default_rng(0)
  ids = rng.integers(4, 7, (3, 30)).astype(np.int32)
  ages = np.tile(np.arange(30, dtype=np.int32)[None], (3, 1))
  none = np.zeros((3, 0), np.int32)
  whole = np.asarray(_recall(ids, ages, none, size=2, reach=9))
  context = recall.RecallEmbedding(sizes=(2,), reach=9).context
  for start in range(context, 30 - length):
    found = _recall(
      ids[:, start : start + length],
      ages[:, start : start + length],
      ids[:, start - context : start],
      size=2,
      reach=9,
    )
    np.testing.assert_array_equal(found, whole[:, start : start + length])


@pytest.mark.parametrize('window', [None, 1, 3])
def test_causal_mask_by_a_double_loop(window):
  allowed = masks.Causal(window=window).allows(
    np.arange(7)[:, None], np.arange(7)[None]
  )
  for i in range(7):
    for j in range(7):
      expected = j <= i and (window is None or i - j < window)
      assert allowed[i, j] == expected


def test_a_window_that_sees_nothing_is_refused():
  with pytest.raises(ValueError, match='window=0'):
    masks.Causal(window=0)
