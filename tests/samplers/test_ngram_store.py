"""The n-gram store against counting."""

import collections

import jax
import numpy as np
import pytest

from samplers import ngram_store

rng = np.random.default_rng(0)
DOCUMENTS = [rng.integers(0, 4, size) for size in (300, 1, 40, 3)]
STORE = ngram_store.build(DOCUMENTS)
WEIGHTS = (0.01, 0.04, 0.15, 0.18, 0.12)


def counted(order):
  """How often each id followed each context."""
  found = collections.defaultdict(collections.Counter)
  for ids in map(np.ndarray.tolist, DOCUMENTS):
    for start in range(len(ids) - order + 1):
      *context, last = ids[start : start + order]
      found[tuple(context)][last] += 1
  return found


def test_probability_is_that_of_counting():
  tables = {order: counted(order) for order in ngram_store.ORDERS}
  recent_BMC = rng.integers(0, 4, (5, 6, 7))
  recent_BMC[0, 0] = 9
  ids_BMK = np.broadcast_to(np.arange(6), (5, 6, 6))
  found_BMK = jax.jit(ngram_store.probability, static_argnums=3)(
    STORE, recent_BMC, ids_BMK, WEIGHTS
  )
  missing = 0
  for b, m, k in np.ndindex(5, 6, 6):
    expected = 0.0
    for order, weight in zip(ngram_store.ORDERS, WEIGHTS, strict=True):
      after = tables[order].get(tuple(recent_BMC[b, m, 1 - order :].tolist()))
      missing += after is None
      if after:
        expected += weight * after[k] / after.total()
    assert found_BMK[b, m, k] == pytest.approx(expected, rel=1e-5, abs=1e-7)
  assert missing > 20
  assert np.all(found_BMK[:, :, 4:] == 0) and not np.any(found_BMK[0, 0])


def test_a_store_is_read_as_it_was_written(tmp_path):
  path = tmp_path / 'store.npz'
  ngram_store.save(path, STORE, 260)
  jax.tree.map(
    np.testing.assert_array_equal, ngram_store.load(path, 260), STORE
  )
  with pytest.raises(
    ValueError, match='vocabulary of 260 ids for a model of 9'
  ):
    ngram_store.load(path, 9)
  path.write_bytes(b'no store')
  with pytest.raises(ValueError, match='is no n-gram store; remove it'):
    ngram_store.load(path, 260)
  np.savez(path, other=np.zeros(3))
  with pytest.raises(ValueError, match='is no n-gram store; remove it'):
    ngram_store.load(path, 260)


def test_a_store_is_built_once(tmp_path):
  path = str(tmp_path / 'new' / 'store.npz')
  found = ngram_store.load_or_build(path, 260, lambda: DOCUMENTS)
  jax.tree.map(np.testing.assert_array_equal, found, STORE)
  ngram_store.load_or_build(path, 260, lambda: 1 / 0)
  with pytest.raises(ValueError, match=r'store a\.txt must end in \.npz'):
    ngram_store.load_or_build('a.txt', 260, lambda: 1 / 0)


def test_corpus_without_pairs_is_named():
  with pytest.raises(ValueError, match='no document of two ids'):
    ngram_store.build([np.array([3])])
