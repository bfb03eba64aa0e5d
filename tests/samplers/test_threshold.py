"""Thresholds against sorting, where the near blocks decide and where not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers import threshold

SIZE = 5000  # large enough for blocks, and no multiple of one
ROWS = 6


@jax.jit
def drop(values_BV, weights_BV, budget_B1):
  return threshold.drop_lowest(values_BV, weights_BV, budget_B1)


@functools.partial(jax.jit, static_argnames='count')
def top(values_BV, count):
  return threshold.top_values(values_BV, count)


def families():
  rng = np.random.default_rng(0)
  gauss = rng.normal(size=(ROWS, SIZE))
  # The largest in as few blocks as can be, and in as many.
  return {
    'gauss': gauss,
    'sorted': np.sort(gauss, axis=1),
    'ties': np.round(gauss),
    'constant': np.zeros((ROWS, SIZE)),
    'holes': np.where(rng.random((ROWS, SIZE)) < 0.98, -np.inf, gauss),
    'empty': np.full((ROWS, SIZE), -np.inf),
  }


def dropped_reference(values_V, weights_V, budget):
  """Whole tie groups from the least upwards while their sum fits."""
  keep_V = np.ones(len(values_V), bool)
  groups = np.unique(values_V)
  for value in groups[:-1]:
    if weights_V[values_V <= value].sum() > budget:
      break
    keep_V &= values_V > value
  return keep_V


@pytest.mark.parametrize('family', families())
def test_drop_lowest_equals_sorting(family):
  values_BV = families()[family].astype(np.float32)
  rng = np.random.default_rng(1)
  # Multiples of 1/8: the sums are exact in any order.
  weights_BV = rng.integers(0, 9, values_BV.shape).astype(np.float32) / 8
  total_B = weights_BV.sum(axis=1)
  shares_B = np.array([0.0, 0.02, 0.5, 0.985, 0.9995, 2.0])
  budget_B1 = np.floor(shares_B * total_B)[:, None].astype(np.float32)
  keep_BV = np.asarray(drop(values_BV, weights_BV, budget_B1))
  for row in range(ROWS):
    expected_V = dropped_reference(
      values_BV[row], weights_BV[row], budget_B1[row, 0]
    )
    np.testing.assert_array_equal(keep_BV[row], expected_V)


def test_the_largest_of_a_small_row_are_those_of_sorting():
  # As many as there are, fewer and more; with holes, ties and nothing at all.
  values_BV = np.stack(
    [part[row, :40] for part in families().values() for row in range(ROWS)]
  ).astype(np.float32)
  count_B1 = np.tile(np.array([1, 2, 17, 39, 40, 99]), 6)[:, None]
  keep_BV = jax.jit(threshold.largest)(values_BV, count_B1)
  for values_V, count, keep_V in zip(
    values_BV, count_B1[:, 0], keep_BV, strict=True
  ):
    last = np.sort(values_V)[::-1][min(count, 40) - 1]
    np.testing.assert_array_equal(keep_V, values_V >= last)


def test_rows_that_need_all_leave_their_neighbours_alone():
  rng = np.random.default_rng(2)
  values_BV = rng.normal(size=(4, SIZE)).astype(np.float32)
  weights_BV = rng.random((4, SIZE)).astype(np.float32)
  total_B1 = weights_BV.sum(axis=1, keepdims=True)
  # The first two rows drop nearly all, the others nearly nothing.
  shares_B1 = np.array([[0.9990], [0.9995], [0.001], [0.5]], np.float32)
  together_BV = np.asarray(drop(values_BV, weights_BV, shares_B1 * total_B1))
  assert together_BV.sum(axis=1)[:2].max() < 20
  assert together_BV.sum(axis=1)[2:].min() > 1000
  for rows in ([0, 1, 0, 1], [2, 3, 3, 2], [1, 2, 0, 0]):
    keep_BV = drop(
      values_BV[rows], weights_BV[rows], (shares_B1 * total_B1)[rows]
    )
    np.testing.assert_array_equal(keep_BV, together_BV[rows])


@pytest.mark.parametrize('family', families())
@pytest.mark.parametrize('limit', [3.0, 400.0, 1e9, 0.5])
def test_longest_prefix_equals_adding_up(family, limit):
  values_BV = families()[family].astype(np.float32)

  @jax.jit
  def search(values_BV):
    keys_B1 = threshold.longest_prefix(
      values_BV, (jnp.ones_like(values_BV),), lambda n_B1: n_B1 <= limit
    )
    return threshold.ordered(values_BV) >= keys_B1

  keep_BV = np.asarray(search(values_BV))
  for values_V, keep_V in zip(values_BV, keep_BV, strict=True):
    values, counts = np.unique(values_V, return_counts=True)
    sums = np.cumsum(counts[::-1])
    groups = max(1, np.searchsorted(sums, limit, 'right'))
    np.testing.assert_array_equal(keep_V, values_V >= values[-groups])


@pytest.mark.parametrize('count', [1, 100])
@pytest.mark.parametrize('size', [260, SIZE, 40000])
def test_top_values_are_the_sorted_top(size, count):
  rng = np.random.default_rng(size)
  values_BV = np.round(rng.normal(size=(3, size)), 2).astype(np.float32)
  values_BV[1] = -np.inf
  values_BV[2, : size // 2] = 1.0
  expected_BN = -np.sort(-values_BV, axis=1)[:, :count]
  np.testing.assert_array_equal(top(values_BV, count=count), expected_BN)


def test_order_is_that_of_floats():
  tiny = np.finfo(np.float32).smallest_normal
  values = [-np.inf, -3e38, -1.0, -tiny, 0.0, tiny, 1.0, 1.5, 3e38, np.inf]
  keys = np.asarray(threshold.ordered(jnp.array(values, jnp.float32)))
  assert np.all(np.diff(keys.astype(np.int64)) > 0)
  assert threshold.ordered(jnp.float32(-0.0)) == threshold.ordered(
    jnp.float32(0.0)
  )
