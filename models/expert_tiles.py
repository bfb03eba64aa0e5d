"""Tokens moved to tiles of one expert each, put through it there, and back.

Both directions and their gradients only read rows: a sum into rows, which the
transposed program would have, is slow and has no fixed order.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models import execution
from models import pinning

# Of indices that need no check.
_INSIDE = 'promise_in_bounds'


class Tiles(NamedTuple):
  """Where tokens go: S tiles of R rows.

  token_SR: the token in a row, N in rows without. expert_S: of a tile.
  place_NK: the row, in S R, of a token's k-th expert. used: tiles with tokens.
  """

  token_SR: jax.Array
  expert_S: jax.Array
  place_NK: jax.Array
  used: jax.Array


# What an expert is: its own parameters and rows [R, D] -> rows [R, F].
Expert = Callable[[Any, jax.Array], jax.Array]


def mix(
  expert: Expert,
  params: Any,
  x_ND: jax.Array,
  weight_NK: jax.Array,
  tiles: Tiles,
) -> jax.Array:
  """Each token's weighted sum of what its experts make of it: [N, F].

  expert: closes over no array. params: of all experts, [experts, ..] each.
  """
  if execution.tiles_in_turn():
    return _mix_in_turn(expert, params, x_ND, weight_NK, tiles)
  x_SRD = pinning.pin_tiles(_gather(x_ND, tiles))
  y_SRF = jax.vmap(expert)(_own(params, tiles.expert_S), x_SRD)
  return _combine(pinning.pin_tiles(y_SRF), weight_NK, tiles)


@jax.custom_vjp
def _gather(x_ND: jax.Array, tiles: Tiles) -> jax.Array:
  """The rows [S, R, D] of all tiles, zeros where there is no token."""
  return x_ND.at[tiles.token_SR].get(mode='fill', fill_value=0)


def _gather_forward(x_ND: jax.Array, tiles: Tiles) -> tuple[jax.Array, Any]:
  return _gather(x_ND, tiles), tiles.place_NK


def _gather_backward(place_NK: jax.Array, change_SRD: jax.Array) -> Any:
  rows_MD = change_SRD.reshape(-1, change_SRD.shape[-1])
  parts = _choices(rows_MD, place_NK)
  return sum(parts[1:], parts[0]), None


_gather.defvjp(_gather_forward, _gather_backward)


@jax.custom_vjp
def _combine(y_SRF: jax.Array, weight_NK: jax.Array, tiles: Tiles) -> jax.Array:
  """Each token's weighted sum over its experts: [N, F]."""
  y_MF = y_SRF.reshape(-1, y_SRF.shape[-1])
  return _weighted(y_MF, weight_NK, tiles.place_NK)


def _combine_forward(
  y_SRF: jax.Array, weight_NK: jax.Array, tiles: Tiles
) -> tuple[jax.Array, Any]:
  return _combine(y_SRF, weight_NK, tiles), (y_SRF, weight_NK, tiles)


def _combine_backward(kept: Any, change_NF: jax.Array) -> Any:
  y_SRF, weight_NK, tiles = kept
  change_SRF = change_NF.at[tiles.token_SR].get(mode='fill', fill_value=0)
  weight_SR = _weight_of_rows(weight_NK, tiles, change_NF.dtype)
  y_MF = y_SRF.reshape(-1, y_SRF.shape[-1])
  of_weight_NK = _of_weight(y_MF, weight_NK, tiles.place_NK, change_NF)
  return change_SRF * weight_SR[..., None], of_weight_NK, None


_combine.defvjp(_combine_forward, _combine_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix_in_turn(
  expert: Expert,
  params: Any,
  x_ND: jax.Array,
  weight_NK: jax.Array,
  tiles: Tiles,
) -> jax.Array:
  """`mix` by one tile after the other, of which a cache holds all at once.

  Tiles without tokens cost nothing. What an expert computes is computed again
  by the backward pass, which is cheaper than to write and to read it.
  """
  return _in_turn_forward(expert, params, x_ND, weight_NK, tiles)[0]


def _in_turn_forward(
  expert: Expert,
  params: Any,
  x_ND: jax.Array,
  weight_NK: jax.Array,
  tiles: Tiles,
) -> tuple[jax.Array, Any]:
  start_S, place_NK = _close(tiles)

  def one(s: jax.Array) -> jax.Array:
    rows_RD = x_ND.at[tiles.token_SR[s]].get(mode='clip')
    return expert(_own(params, tiles.expert_S[s]), rows_RD)

  def add(s: jax.Array, y_MF: jax.Array) -> jax.Array:
    return _put(y_MF, one(s), start_S[s])

  tile = jax.eval_shape(one, 0)
  y_MF = _room(place_NK, *tile.shape, tile.dtype)
  y_MF = jax.lax.fori_loop(0, tiles.used, add, y_MF)
  kept = params, x_ND, weight_NK, tiles, y_MF
  return _weighted(y_MF, weight_NK, place_NK), kept


def _in_turn_backward(expert: Expert, kept: Any, change_NF: jax.Array) -> Any:
  params, x_ND, weight_NK, tiles, y_MF = kept
  start_S, place_NK = _close(tiles)
  weight_SR = _weight_of_rows(weight_NK, tiles, change_NF.dtype)

  # One at a time: the executor of XLA would run two on one core all the same,
  # and between their sums into `totals` it copies all of these.
  def add(s: jax.Array, sums: Any) -> Any:
    totals, of_x_MD = sums
    token_R, e = tiles.token_SR[s], tiles.expert_S[s]
    # Rows without a token hold any, and have no weight.
    change_RF = change_NF.at[token_R].get(mode='clip')
    change_RF *= weight_SR[s][:, None]
    rows_RD = x_ND.at[token_R].get(mode='clip')
    _, back = jax.vjp(expert, _own(params, e), rows_RD)
    of_own, of_rows_RD = back(change_RF)
    totals = jax.tree.map(
      lambda total, part: _put(total, (total[e] + part)[None], e),
      totals,
      of_own,
    )
    return totals, _put(of_x_MD, of_rows_RD, start_S[s])

  rows, width = tiles.token_SR.shape[1], x_ND.shape[1]
  of_x_MD = _room(place_NK, rows, width, x_ND.dtype)
  totals = jax.tree.map(jnp.zeros_like, params)
  totals, of_x_MD = jax.lax.fori_loop(0, tiles.used, add, (totals, of_x_MD))
  parts = _choices(of_x_MD, place_NK)
  of_weight_NK = _of_weight(y_MF, weight_NK, place_NK, change_NF)
  return totals, sum(parts[1:], parts[0]), of_weight_NK, None


_mix_in_turn.defvjp(_in_turn_forward, _in_turn_backward)


def _close(tiles: Tiles) -> tuple[jax.Array, jax.Array]:
  """Rows of tiles without a gap: where each tile begins, and places in these.

  A tile's rows without a token lie on those of the next, which is written
  later.
  """
  tokens, rows = tiles.place_NK.shape[0], tiles.token_SR.shape[1]
  count_S = jnp.sum(tiles.token_SR < tokens, axis=1)
  start_S = jnp.cumsum(count_S) - count_S
  place_NK = start_S[tiles.place_NK // rows] + tiles.place_NK % rows
  return jax.lax.optimization_barrier((start_S, place_NK))


def _room(place_NK: jax.Array, rows: int, width: int, dtype: Any) -> jax.Array:
  return jnp.zeros((place_NK.size + rows, width), dtype)


def _put(into: jax.Array, part: jax.Array, at: jax.Array) -> jax.Array:
  # Without the check of bounds of `into.at[..].set`, which copies.
  return jax.lax.dynamic_update_slice_in_dim(into, part, at, 0)


def _own(params: Any, expert: jax.Array) -> Any:
  """Parameters of one expert or of several."""
  return jax.tree.map(lambda leaf: leaf.at[expert].get(mode=_INSIDE), params)


def _choices(rows_MF: jax.Array, place_NK: jax.Array) -> list[jax.Array]:
  """The rows [N, F] of every token's k-th expert, for each k."""
  return [rows_MF.at[place_N].get(mode=_INSIDE) for place_N in place_NK.T]


def _weighted(
  rows_MF: jax.Array, weight_NK: jax.Array, place_NK: jax.Array
) -> jax.Array:
  parts = [
    rows_NF * weight_N[:, None]
    for rows_NF, weight_N in zip(
      _choices(rows_MF, place_NK),
      weight_NK.T.astype(rows_MF.dtype),
      strict=True,
    )
  ]
  return sum(parts[1:], parts[0])


def _of_weight(
  rows_MF: jax.Array,
  weight_NK: jax.Array,
  place_NK: jax.Array,
  change_NF: jax.Array,
) -> jax.Array:
  """The gradient of `_weighted` by the weights."""
  parts = [
    jnp.sum(change_NF.astype(jnp.float32) * rows_NF, axis=-1)
    for rows_NF in _choices(rows_MF, place_NK)
  ]
  return jnp.stack(parts, axis=-1).astype(weight_NK.dtype)


def _weight_of_rows(
  weight_NK: jax.Array, tiles: Tiles, dtype: Any
) -> jax.Array:
  """The weight [S, R] of what is in a row, zero where there is no token."""
  weight_M = jnp.zeros(tiles.token_SR.size, dtype)
  weight_M = weight_M.at[tiles.place_NK.reshape(-1)].set(
    weight_NK.reshape(-1).astype(dtype), unique_indices=True
  )
  return weight_M.reshape(tiles.token_SR.shape)
