"""The n-gram store against counting."""

import collections

import jax
import numpy as np
import pytest

from samplers import ngram_tables

rng = np.random.default_rng(0)
DOCUMENTS = [rng.integers(0, 4, size) for size in (300, 1, 40, 3)]
STORE = ngram_tables.build(DOCUMENTS)
IDS = ngram_tables.Vocabulary(260, '0a' * 32)
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
  tables = {order: counted(order) for order in ngram_tables.ORDERS}
  recent_BMC = rng.integers(0, 4, (5, 6, 7))
  recent_BMC[0, 0] = 9
  ids_BMK = np.broadcast_to(np.arange(6), (5, 6, 6))
  found_BMK = jax.jit(ngram_tables.probability, static_argnums=3)(
    STORE, recent_BMC, ids_BMK, WEIGHTS
  )
  missing = 0
  for b, m, k in np.ndindex(5, 6, 6):
    expected = 0.0
    for order, weight in zip(ngram_tables.ORDERS, WEIGHTS, strict=True):
      after = tables[order].get(tuple(recent_BMC[b, m, 1 - order :].tolist()))
      missing += after is None
      if after:
        expected += weight * after[k] / after.total()
    assert found_BMK[b, m, k] == pytest.approx(expected, rel=1e-5, abs=1e-7)
  assert missing > 20
  assert np.all(found_BMK[:, :, 4:] == 0) and not np.any(found_BMK[0, 0])


def test_a_store_is_read_as_it_was_written(tmp_path):
  path = tmp_path / 'store.npz'
  ngram_tables.save(path, STORE, IDS)
  jax.tree.map(
    np.testing.assert_array_equal, ngram_tables.load(path, IDS), STORE
  )
  with pytest.raises(
    ValueError, match='vocabulary of 260 ids for a model of 9'
  ):
    ngram_tables.load(path, IDS._replace(size=9))
  with pytest.raises(ValueError, match='another codec, whose 260 ids stand'):
    ngram_tables.load(path, IDS._replace(digest='0b' * 32))
  path.write_bytes(b'no store')
  with pytest.raises(ValueError, match='is no n-gram store; remove it'):
    ngram_tables.load(path, IDS)
  np.savez(path, other=np.zeros(3))
  with pytest.raises(ValueError, match='is no n-gram store; remove it'):
    ngram_tables.load(path, IDS)


def test_a_store_is_built_once(tmp_path):
  path = str(tmp_path / 'new' / 'store.npz')
  found = ngram_tables.load_or_build(path, IDS, lambda: DOCUMENTS)
  jax.tree.map(np.testing.assert_array_equal, found, STORE)
  ngram_tables.load_or_build(path, IDS, lambda: 1 / 0)
  with pytest.raises(ValueError, match=r'store a\.txt must end in \.npz'):
    ngram_tables.load_or_build('a.txt', IDS, lambda: 1 / 0)


def test_corpus_without_pairs_is_named():
  with pytest.raises(ValueError, match='no document of two ids'):
    ngram_tables.build([np.array([3])])


@pytest.mark.parametrize('block', [3, 7, 64])
def test_counts_do_not_depend_on_how_many_are_taken_at_a_time(
  block, monkeypatch
):
  monkeypatch.setattr(ngram_tables, '_BLOCK', block)
  said = []
  found = ngram_tables.build(iter(DOCUMENTS), say=said.append)
  jax.tree.map(np.testing.assert_array_equal, found, STORE)
  assert said[0].endswith(' ids counted, of 1 documents')


def test_a_store_is_written_wholly_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / 'store.npz'

  def dies(file, **arrays):
    file.write(b'half')
    raise KeyboardInterrupt

  monkeypatch.setattr(np, 'savez', dies)
  with pytest.raises(KeyboardInterrupt):
    ngram_tables.load_or_build(str(path), IDS, lambda: DOCUMENTS)
  assert not path.exists()
