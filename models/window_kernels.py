"""What one program of models.fused_window computes (Pallas, by Triton).

Logits stay on the chip, beside a running maximum and sum per query, and are
computed again for the gradient (FlashAttention-2, arXiv 2307.08691).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from models import fused_structured
from models import key_parts

# Below every logit, and finite.
_LOW = -1e30


class Case(NamedTuple):
  """What is known when the kernels are compiled: tiles of `side` tokens."""

  rule: key_parts.Rule
  side: int
  window: int
  interpret: bool


class Sinks(NamedTuple):
  """Queries as sinks see them, and C sinks of every tile of queries."""

  query_BTHK: Any
  key_BLCGK: Any
  value_BLCGK: Any


class Rows(NamedTuple):
  """Arrays of whole tiles; in a kernel its blocks of them, or None.

  start_BT: where the document of a query begins; after it, of padding.
  end_BT: the last place of the document of a key.
  """

  query_BTHK: Any
  key_BTGK: Any
  value_BTGK: Any
  start_BT: Any
  end_BT: Any
  slope_H: Any
  sinks: Any


class Known(NamedTuple):
  """What the backward pass begins with, with blocks as in Rows.

  log_BHT: of the sum of exponentials; shared_BHT: the product of output and
  its gradient.
  """

  change_BTHK: Any
  log_BHT: Any
  shared_BHT: Any


class _Queries(NamedTuple):
  """Of one tile and head."""

  query_TK: jax.Array
  place_T: jax.Array
  start_T: jax.Array
  slope: jax.Array


def attend(case: Case, rows: Rows, out_ref: Any, log_ref: Any) -> None:
  """Writes outputs, and the logarithm of the sum of exponentials."""

  def add(
    carry: Any, logits_TS: jax.Array, _: jax.Array, value_SK: jax.Array
  ) -> Any:
    out_TK, peak_T, total_T = carry
    new_T = jnp.maximum(peak_T, logits_TS.max(1))
    weight_TS = jnp.exp(logits_TS - new_T[:, None])
    fade_T = jnp.exp(peak_T - new_T)
    more_TK = fused_structured.dot(weight_TS.astype(value_SK.dtype), value_SK)
    out_TK = out_TK * fade_T[:, None] + more_TK
    return out_TK, new_T, total_T * fade_T + weight_TS.sum(1)

  shape = case.side, out_ref.shape[1]
  carry = (
    jnp.zeros(shape, jnp.float32),
    jnp.full(shape[:1], _LOW, jnp.float32),
    jnp.zeros(shape[:1], jnp.float32),
  )
  carry = _over_recent(case, rows, add, carry)
  if rows.sinks is not None:
    carry = _over_sinks(case, rows, add, carry)
  out_TK, peak_T, total_T = carry
  total_T = jnp.where(total_T == 0, 1.0, total_T)
  out_ref[...] = (out_TK / total_T[:, None]).astype(out_ref.dtype)
  log_ref[...] = peak_T + jnp.log(total_T)


def of_queries(case: Case, rows: Rows, known: Known, *out_refs: Any) -> None:
  """Writes gradients of queries: as recent keys, and as sinks see them."""
  change_TK, log_T, shared_T = (ref[...] for ref in known)

  def add(
    total_TK: jax.Array,
    logits_TS: jax.Array,
    key_SK: jax.Array,
    value_SK: jax.Array,
  ) -> jax.Array:
    weight_TS = jnp.exp(logits_TS - log_T[:, None])
    pulled_TS = _pull(weight_TS, change_TK, shared_T, value_SK)
    return total_TK + fused_structured.dot(
      pulled_TS.astype(key_SK.dtype), key_SK
    )

  for over, ref in zip((_over_recent, _over_sinks), out_refs, strict=False):
    zeros_TK = jnp.zeros(ref.shape, jnp.float32)
    total_TK = over(case, rows, add, zeros_TK)
    ref[...] = (total_TK * _scale(ref)).astype(ref.dtype)


def of_keys(
  case: Case, rows: Rows, known: Known, key_ref: Any, value_ref: Any
) -> None:
  """Writes gradients of a tile of keys and values, of all queries and heads."""
  tile, reach = pl.program_id(0), case.window - 1
  key_SK, value_SK = rows.key_BTGK[...], rows.value_BTGK[...]
  last_S = jnp.minimum(rows.end_BT[...], _places(case, tile) + reach)
  stop = jax.lax.div(jnp.max(last_S), case.side) + 1

  def of_head(r: jax.Array, sums: Any) -> Any:
    def add(t: jax.Array, sums: Any) -> Any:
      part = pl.ds(t * case.side, case.side)
      queries = _Queries(
        rows.query_BTHK[part, r, :],
        _places(case, t),
        rows.start_BT[part],
        rows.slope_H[r],
      )
      logits_TS = _recent_logits(case, queries, key_SK, tile)
      of_part = Known(
        known.change_BTHK[part, r, :],
        known.log_BHT[r, part],
        known.shared_BHT[r, part],
      )
      return _add_keys(sums, queries, logits_TS, of_part, value_SK)

    return jax.lax.fori_loop(tile, stop, add, sums)

  zeros_SK = jnp.zeros(key_ref.shape, jnp.float32)
  heads = rows.query_BTHK.shape[1]
  sums = jax.lax.fori_loop(0, heads, of_head, (zeros_SK, zeros_SK))
  key_ref[...] = (sums[0] * _scale(key_ref)).astype(key_ref.dtype)
  value_ref[...] = sums[1].astype(value_ref.dtype)


def of_sinks(
  case: Case, rows: Rows, known: Known, key_ref: Any, value_ref: Any
) -> None:
  """Writes gradients of a tile's sinks and values, of all its heads."""
  place_T = _places(case, pl.program_id(0))
  start_T, column = rows.start_BT[...], pl.program_id(3)
  key_SK, value_SK = rows.sinks.key_BLCGK[...], rows.sinks.value_BLCGK[...]

  def of_head(r: jax.Array, sums: Any) -> Any:
    queries = _Queries(
      rows.sinks.query_BTHK[:, r, :], place_T, start_T, rows.slope_H[r]
    )
    logits_TS = _sink_logits(case, queries, key_SK, column)
    of_part = Known(
      known.change_BTHK[:, r, :], known.log_BHT[r, :], known.shared_BHT[r, :]
    )
    return _add_keys(sums, queries, logits_TS, of_part, value_SK)

  zeros_SK = jnp.zeros(key_ref.shape, jnp.float32)
  heads = rows.sinks.query_BTHK.shape[1]
  heads = _if_sinks(case, place_T, start_T, heads)
  sums = jax.lax.fori_loop(0, heads, of_head, (zeros_SK, zeros_SK))
  key_ref[...] = (sums[0] * _scale(key_ref)).astype(key_ref.dtype)
  value_ref[...] = sums[1].astype(value_ref.dtype)


def _add_keys(
  sums: tuple[jax.Array, jax.Array],
  queries: _Queries,
  logits_TS: jax.Array,
  known: Known,
  value_SK: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Adds what some queries pull at keys and values."""
  change_TK, log_T, shared_T = known
  weight_TS = jnp.exp(logits_TS - log_T[:, None])
  pulled_TS = _pull(weight_TS, change_TK, shared_T, value_SK)
  found = (
    fused_structured.dot(x_TS.astype(change_TK.dtype), y_TK, (0, 0))
    for x_TS, y_TK in (
      (pulled_TS, queries.query_TK),
      (weight_TS, change_TK),
    )
  )
  return tuple(map(jnp.add, sums, found))


def _pull(
  weight_TS: jax.Array,
  change_TK: jax.Array,
  shared_T: jax.Array,
  value_SK: jax.Array,
) -> jax.Array:
  """The gradient of logits, not scaled."""
  return weight_TS * (
    fused_structured.dot(change_TK, value_SK, (1, 1)) - shared_T[:, None]
  )


# (carry, logits_TS, key_SK, value_SK) -> carry
_Step = Callable[[Any, jax.Array, jax.Array, jax.Array], Any]


def _over_recent(case: Case, rows: Rows, step: _Step, carry: Any) -> Any:
  """Goes over the tiles of recent keys that a tile of queries may see."""
  tile = pl.program_id(0)
  queries = _Queries(
    rows.query_BTHK[...],
    _places(case, tile),
    rows.start_BT[...],
    rows.slope_H[0],
  )
  first_T = jnp.maximum(queries.start_T, queries.place_T - (case.window - 1))

  def visit(s: jax.Array, carry: Any) -> Any:
    part = pl.ds(s * case.side, case.side)
    key_SK = rows.key_BTGK[part, :]
    logits_TS = _recent_logits(case, queries, key_SK, s)
    return step(carry, logits_TS, key_SK, rows.value_BTGK[part, :])

  first = jax.lax.div(jnp.maximum(jnp.min(first_T), 0), case.side)
  return jax.lax.fori_loop(first, tile + 1, visit, carry)


def _over_sinks(case: Case, rows: Rows, step: _Step, carry: Any) -> Any:
  """Goes over the sinks of a tile of queries, if one of these sees them."""
  queries = _Queries(
    rows.sinks.query_BTHK[...],
    _places(case, pl.program_id(0)),
    rows.start_BT[...],
    rows.slope_H[0],
  )
  count = rows.sinks.key_BLCGK.shape[0]
  columns = min(count, case.side)

  def visit(s: jax.Array, carry: Any) -> Any:
    part = pl.ds(s * columns, columns)
    key_SK = rows.sinks.key_BLCGK[part, :]
    logits_TS = _sink_logits(case, queries, key_SK, s)
    return step(carry, logits_TS, key_SK, rows.sinks.value_BLCGK[part, :])

  tiles = _if_sinks(case, queries.place_T, queries.start_T, count // columns)
  return jax.lax.fori_loop(0, tiles, visit, carry)


def _recent_logits(
  case: Case, queries: _Queries, key_SK: jax.Array, tile: jax.Array
) -> jax.Array:
  place_1S = _places(case, tile)[None]
  gap_TS = queries.place_T[:, None] - place_1S
  seen_TS = (gap_TS >= 0) & (gap_TS < case.window)
  seen_TS &= place_1S >= queries.start_T[:, None]
  return _logits(case, queries, key_SK, gap_TS, seen_TS)


def _sink_logits(
  case: Case, queries: _Queries, key_SK: jax.Array, tile: jax.Array
) -> jax.Array:
  mask, count = case.rule.mask, key_SK.shape[0]
  position_T1 = (queries.place_T - queries.start_T)[:, None]
  column_1S = (tile * count + jnp.arange(count, dtype=jnp.int32))[None]
  seen_TS = position_T1 - column_1S >= case.window
  seen_TS &= column_1S < mask.n_global
  far_TS = mask.sink_query(position_T1) - mask.sink_key(column_1S)
  return _logits(case, queries, key_SK, far_TS, seen_TS)


def _logits(
  case: Case,
  queries: _Queries,
  key_SK: jax.Array,
  distance_TS: jax.Array,
  seen_TS: jax.Array,
) -> jax.Array:
  logits_TS = fused_structured.dot(queries.query_TK, key_SK, (1, 1))
  logits_TS *= _scale(key_SK)
  if case.rule.slopes:
    logits_TS -= queries.slope * distance_TS.astype(jnp.float32)
  return jnp.where(seen_TS, logits_TS, -jnp.inf)


def _if_sinks(
  case: Case, place_T: jax.Array, start_T: jax.Array, count: int
) -> jax.Array:
  """The count if one of these queries sees sinks, else 0."""
  position = jnp.max(place_T - start_T)
  # A choice between two numbers becomes no number in Triton (jax 0.10.2).
  return (position >= case.window).astype(jnp.int32) * count


def _places(case: Case, tile: jax.Array) -> jax.Array:
  """Of the tokens of a tile in the row."""
  return tile * case.side + jnp.arange(case.side, dtype=jnp.int32)


def _scale(x_SK: Any) -> float:
  return x_SK.shape[-1] ** -0.5
