"""Batches that several processes share, against one that does them all."""

import jax
import numpy as np
import pytest

from evals import shares
from tests import several


def work(batch):
  """Arrays of several types, of which no bit may be lost."""
  rng = np.random.default_rng(batch)
  return (
    rng.normal(size=(2, 3)),
    rng.normal(size=5).astype(np.float32),
    rng.integers(100, size=3).astype(np.int16),
    rng.normal(size=3) > 0,
  )


@pytest.mark.parametrize(('count', 'batches'), [(2, 5), (3, 6), (4, 2), (2, 0)])
def test_every_process_gets_what_one_finds(count, batches):
  done = []

  def counted(batch):
    done.append((jax.process_index(), batch))
    return work(batch)

  found = several.Job(count).run(
    lambda: list(shares.shared(counted, range(batches), {}))
  )
  for mine in found:
    assert [number for number, _ in mine] == list(range(batches))
    for number, arrays in mine:
      for array, expected in zip(arrays, work(number), strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
  # Nobody does more than his share, rounded up.
  assert len(done) == count * -(-batches // count)
  assert {batch for _, batch in done} == set(range(batches))


class Spread:
  """Stands for an array that no process holds the whole of."""

  is_fully_addressable = False


def all_do_all(params):
  done = []

  def counted(batch):
    done.append(batch)
    return work(batch)

  several.Job(2).run(lambda: list(shares.shared(counted, range(3), params)))
  return sorted(done) == [0, 0, 1, 1, 2, 2]


def test_all_compute_together_where_parameters_are_spread():
  assert all_do_all({'a': np.zeros(2), 'b': Spread()})
  assert not all_do_all({'a': np.zeros(2)})


def test_who_works_alone_shares_nothing():
  with shares.alone():
    assert all_do_all({})
  assert not all_do_all({})
