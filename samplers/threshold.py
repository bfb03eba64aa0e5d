"""Exact thresholds over the vocabulary, without sorting it.

Order is that of the bits of a float32 read as an integer, so a threshold is
found by bisection: every pass is one masked sum. What a threshold keeps mostly
lies in a few blocks of the vocabulary, those with the largest maxima. The
bisection looks at these alone and falls back on the whole row where that could
not decide; which way was taken depends on the row only, not on its neighbours.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from samplers import sums

# From the sums over a prefix, each [B, 1], to whether it fits.
Fits = Callable[..., jax.Array]
_Bounds = tuple[jax.Array, jax.Array]  # [B, 1] each, both included

# A vocabulary is cut into about a thousand blocks, of which so many are read.
_NEAR = 64
_SMALL = 4096  # up to so many ids, the whole row is as fast
_LOWEST = -(2**31)
_STEPS = 12  # after which a row mostly has few ids between its bounds


def drop_lowest(
  values_BV: jax.Array, weights_BV: jax.Array, budget_B1: jax.Array
) -> jax.Array:
  """True where kept after dropping, from below, tie groups within the budget.

  The threshold is the largest value under which the weights (>= 0) sum to no
  more than `budget_B1`. Sums of non-negative floats in one fixed order are
  monotone in the set summed, so the bisection is well defined under rounding
  too. The largest value always stays. A row whose result is not used should
  have an infinite budget: that is the one found fastest.
  """
  keys_BV = ordered(values_BV)
  if keys_BV.shape[1] <= _SMALL:
    return keys_BV >= _dropped(keys_BV, weights_BV, budget_B1)
  near = _near(values_BV, keys_BV)
  weights_BGS = _blocks(weights_BV, 0)
  rows_B1 = jnp.arange(len(keys_BV))[:, None]
  sums_BG = sums.last(weights_BGS).at[rows_B1, near.index_BM].set(0)
  far_B1 = sums.column(sums_BG)
  weights_BN = _gather(weights_BGS, near.index_BM)
  threshold_B1 = _dropped(near.keys_BN, weights_BN, budget_B1, far_B1)
  # All far ids are then below it, as the sum took them to be.
  is_final_B1 = (threshold_B1 > near.bound_B1) & (far_B1 <= budget_B1)
  return keys_BV >= _or_else(
    threshold_B1,
    is_final_B1,
    lambda: _dropped_of_all(keys_BV, weights_BV, budget_B1),
  )


def longest_prefix(
  values_BV: jax.Array, parts: tuple[jax.Array, ...], fits: Fits
) -> jax.Array:
  """[B, 1]: the least `ordered` key with which all from it upwards fit.

  Args:
    values_BV: Ties come together.
    parts: Arrays [B, V] that are summed over a prefix.
    fits: Takes these sums as [B, 1], gives bool [B, 1]; once False it must
      remain so for longer prefixes. The largest key stays even if it is False,
      and a row whose result is not used is fastest with that.
  """
  keys_BV = ordered(values_BV)
  if keys_BV.shape[1] <= _SMALL:
    return _prefix(keys_BV, parts, fits)
  near = _near(values_BV, keys_BV)
  near_parts = tuple(_gather(_blocks(p, 0), near.index_BM) for p in parts)
  threshold_B1 = _prefix(near.keys_BN, near_parts, fits)
  # All far ids are then below it, and a near one under it did not fit.
  least_B1 = jnp.min(near.keys_BN, axis=1, keepdims=True)
  return _or_else(
    threshold_B1,
    threshold_B1 > jnp.maximum(near.bound_B1, least_B1),
    lambda: _prefix(keys_BV, parts, fits),
  )


def largest(values_BV: jax.Array, count_B1: jax.Array) -> jax.Array:
  """True at the `count_B1` (at least 1) largest values and at their ties."""
  if values_BV.shape[1] <= _SMALL:
    keys_BV = ordered(values_BV)
    return keys_BV >= _counted(keys_BV, values_BV.shape[1] - count_B1)
  # The k-th largest is the largest value with at most V - k values below it.
  return drop_lowest(
    values_BV,
    jnp.ones(values_BV.shape, jnp.int32),
    values_BV.shape[1] - count_B1,
  )


def top_values(values_BV: jax.Array, count: int) -> jax.Array:
  """The `count` largest values, from the largest down."""
  num_ids = values_BV.shape[1]
  if num_ids > max(_SMALL, 2 * count * _block_size(num_ids)):
    # That many largest values lie in as many blocks with the largest maxima.
    blocks_BGS = _blocks(values_BV, -jnp.inf)
    _, near_BM = jax.lax.top_k(jnp.max(blocks_BGS, axis=2), count)
    values_BV = _gather(blocks_BGS, near_BM)
  return jax.lax.top_k(values_BV, count)[0]


def ordered(values: jax.Array) -> jax.Array:
  """int32 in the order of float32 values; -0 and 0 are equal."""
  # Adding 0 would not do: XLA drops it.
  bits = jax.lax.bitcast_convert_type(
    jnp.where(values == 0, 0.0, values).astype(jnp.float32), jnp.int32
  )
  return jnp.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


def _sum(x_BV: jax.Array, keep_BV: jax.Array) -> jax.Array:
  return sums.column(jnp.where(keep_BV, x_BV, 0))


def _dropped(
  keys_BV: jax.Array,
  weights_BV: jax.Array,
  budget_B1: jax.Array,
  far_B1: jax.Array | int = 0,
) -> jax.Array:
  """Largest threshold with far + the weights below it within the budget."""
  return _bisect(
    _range(keys_BV),
    lambda key_B1: far_B1 + _sum(weights_BV, keys_BV < key_B1) <= budget_B1,
  )


def _dropped_of_all(
  keys_BV: jax.Array, weights_BV: jax.Array, budget_B1: jax.Array
) -> jax.Array:
  """The same of a large row, of which the last steps read some blocks only."""

  def fits(key_B1: jax.Array) -> jax.Array:
    return _sum(weights_BV, keys_BV < key_B1) <= budget_B1

  bounds = low_B1, high_B1 = _halve_values(keys_BV, fits)
  # What lies between the bounds is still open; few blocks have any of it.
  keys_BGS, weights_BGS = _blocks(keys_BV, _LOWEST), _blocks(weights_BV, 0)
  low_B11, high_B11 = low_B1[:, :, None], high_B1[:, :, None]
  is_open_BG = jnp.any((keys_BGS >= low_B11) & (keys_BGS < high_B11), axis=2)
  _, index_BM = jax.lax.top_k(is_open_BG.astype(jnp.float32), _NEAR)
  below_BG = sums.last(jnp.where(keys_BGS < low_B11, weights_BGS, 0))
  rows_B1 = jnp.arange(len(keys_BV))[:, None]
  below_BG = below_BG.at[rows_B1, index_BM].set(0)
  far_B1 = sums.column(below_BG)
  keys_BN = _gather(keys_BGS, index_BM)
  weights_BN = _gather(weights_BGS, index_BM)
  threshold_B1 = _bisect(
    bounds,
    lambda key_B1: far_B1 + _sum(weights_BN, keys_BN < key_B1) <= budget_B1,
  )
  return _or_else(
    threshold_B1,
    jnp.sum(is_open_BG, axis=1, keepdims=True) <= _NEAR,
    lambda: _bisect(bounds, fits),
  )


def _halve_values(
  keys_BV: jax.Array, holds: Callable[[jax.Array], jax.Array]
) -> _Bounds:
  """Bounds of the bisection after a few steps that halve values, not keys.

  Keys are dense around 0, where there are few values.
  """
  low_B1, high_B1 = _range(keys_BV)
  least_B1 = jnp.min(
    jnp.where(keys_BV > ordered(-jnp.inf), keys_BV, high_B1),
    axis=1,
    keepdims=True,
  )

  def halve(_: jax.Array, bounds: _Bounds) -> _Bounds:
    low_B1, high_B1 = bounds
    left_B1 = _value(jnp.maximum(low_B1, least_B1))
    middle_B1 = ordered(0.5 * left_B1 + 0.5 * _value(high_B1))
    middle_B1 = jnp.clip(middle_B1, low_B1 + 1, high_B1)
    return _step(bounds, jnp.where(low_B1 < high_B1, middle_B1, low_B1), holds)

  return jax.lax.fori_loop(0, _STEPS, halve, (low_B1, high_B1))


def _prefix(
  keys_BV: jax.Array, parts: tuple[jax.Array, ...], fits: Fits
) -> jax.Array:
  """Least threshold whose prefix fits, the largest key if none does."""

  def overflows(key_B1: jax.Array) -> jax.Array:
    return ~fits(*(_sum(part_BV, keys_BV >= key_B1) for part_BV in parts))

  key_B1 = _bisect(_range(keys_BV), overflows)
  largest_B1 = jnp.max(keys_BV, axis=1, keepdims=True)
  is_over_B1 = overflows(key_B1) & (key_B1 < largest_B1)
  return key_B1 + is_over_B1.astype(jnp.int32)


def _bisect(
  bounds: _Bounds, holds: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """Largest t where `holds`, which does so up to some t, or the low bound."""

  def halve(bounds: _Bounds) -> _Bounds:
    return _step(bounds, _middle(bounds), holds)

  return jax.lax.while_loop(_is_open, halve, bounds)[0]


def _is_open(bounds: _Bounds) -> jax.Array:
  return jnp.any(bounds[0] < bounds[1])


def _middle(bounds: _Bounds) -> jax.Array:
  """The mean, rounded up: the low bound of a row that is done, which stays."""
  low_B1, high_B1 = bounds
  # Their sum could overflow.
  return (low_B1 | high_B1) - ((low_B1 ^ high_B1) >> 1)


def _step(
  bounds: _Bounds,
  middle_B1: jax.Array,
  holds: Callable[[jax.Array], jax.Array],
) -> _Bounds:
  holds_B1 = holds(middle_B1)
  return (
    jnp.where(holds_B1, middle_B1, bounds[0]),
    jnp.where(holds_B1, bounds[1], middle_B1 - 1),
  )


def _counted(keys_BV: jax.Array, most_B1: jax.Array) -> jax.Array:
  """[B, 1]: a threshold with `most_B1` keys below it, with ties fewer.

  Any other with as many keeps the same, so that it ends sooner than `_bisect`.
  """

  def halve(bounds: _Bounds) -> _Bounds:
    low_B1, high_B1 = bounds
    middle_B1 = _middle(bounds)
    below_B1 = jnp.sum(keys_BV < middle_B1, axis=1, keepdims=True)
    return (
      jnp.where(below_B1 <= most_B1, middle_B1, low_B1),
      jnp.where(
        below_B1 < most_B1,
        high_B1,
        jnp.where(below_B1 == most_B1, middle_B1, middle_B1 - 1),
      ),
    )

  low_B1, high_B1 = _range(keys_BV)
  # Values of -inf are far from all others, and mostly below the threshold.
  is_finite_BV = keys_BV > ordered(-jnp.inf)
  least_B1 = jnp.min(
    jnp.where(is_finite_BV, keys_BV, high_B1), axis=1, keepdims=True
  )
  below_B1 = jnp.sum(~is_finite_BV, axis=1, keepdims=True)
  low_B1 = jnp.where(below_B1 <= most_B1, least_B1, low_B1)
  high_B1 = jnp.where(below_B1 >= most_B1, low_B1, high_B1)
  return jax.lax.while_loop(_is_open, halve, (low_B1, high_B1))[0]


def _range(keys_BV: jax.Array) -> _Bounds:
  return (
    jnp.min(keys_BV, axis=1, keepdims=True),
    jnp.max(keys_BV, axis=1, keepdims=True),
  )


def _value(keys: jax.Array) -> jax.Array:
  """The float32 of a key."""
  bits = jnp.where(keys >= 0, keys, keys ^ 0x7FFFFFFF)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


class _Near(NamedTuple):
  """The blocks with the largest maxima, side by side."""

  keys_BN: jax.Array
  index_BM: jax.Array  # which blocks they are
  bound_B1: jax.Array  # the largest key outside them


def _near(values_BV: jax.Array, keys_BV: jax.Array) -> _Near:
  # Of the values, and with no slice of the result: XLA (jaxlib 0.10.2) sorts
  # for the top of integers and for a part of the top.
  maxima_BG = jnp.max(_blocks(values_BV, -jnp.inf), axis=2)
  _, index_BM = jax.lax.top_k(maxima_BG, _NEAR)
  rows_B1 = jnp.arange(len(keys_BV))[:, None]
  rest_BG = maxima_BG.at[rows_B1, index_BM].set(-jnp.inf)
  bound_B1 = ordered(jnp.max(rest_BG, axis=1, keepdims=True))
  keys_BN = _gather(_blocks(keys_BV, _LOWEST), index_BM)
  return _Near(keys_BN, index_BM, bound_B1)


def _or_else(
  threshold_B1: jax.Array,
  is_final_B1: jax.Array,
  search: Callable[[], jax.Array],
) -> jax.Array:
  """The threshold of the near blocks, where final, or else of the search."""
  return jax.lax.cond(
    jnp.all(is_final_B1),
    lambda: threshold_B1,
    lambda: jnp.where(is_final_B1, threshold_B1, search()),
  )


def _blocks(x_BV: jax.Array, fill: float) -> jax.Array:
  """[B, G, S]: consecutive ids in G blocks of S, the last one filled up."""
  size = _block_size(x_BV.shape[1])
  fill_width = -x_BV.shape[1] % size
  if fill_width:
    x_BV = jnp.pad(x_BV, ((0, 0), (0, fill_width)), constant_values=fill)
  return x_BV.reshape(len(x_BV), -1, size)


def _block_size(num_ids: int) -> int:
  size = 1
  while size * 1024 < num_ids:
    size *= 2
  return size


def _gather(blocks_BGS: jax.Array, index_BM: jax.Array) -> jax.Array:
  """Some blocks of each row, one after the other."""
  near_BMS = jnp.take_along_axis(blocks_BGS, index_BM[:, :, None], axis=1)
  return near_BMS.reshape(len(blocks_BGS), -1)
