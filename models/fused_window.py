"""Attention to recent keys and sinks in one kernel, for GPUs.

A tile of queries meets the tiles of keys from the first to the last that one
of its queries may see, and the sinks of one document: time is linear in the
length where there is a window, memory always. TPUs take the form of
models.window_attention, for the tiles of models.window_kernels are not those
that Mosaic lays out.

Programs are independent: gradients of queries have one per tile of queries,
those of keys one per tile of keys, those of sinks one per tile of queries
again, whose sums are added up outside.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import PartitionSpec as P

from models import execution
from models import key_parts
from models import masks
from models import pinning
from models import window_kernels

# Side of a tile: the least that tensor cores multiply.
_LEAST = 16
# Bytes of a row of a square tile, and of a tile of queries, keys or values, at
# most: several of them have to fit into registers and on the chip.
_MOST, _BYTES = 128, 2**14


def serves(mask: Any, shape: tuple[int, ...]) -> bool:
  """Whether this attends whole rows, with values [B, T, G, K] of a shape.

  It has no keys between sinks and window, and needs tiles that tensor cores
  take, in which only one document has queries that see sinks. The devices of
  a mesh must have rows and heads of their own.
  """
  rows, length, heads, width = shape
  return (
    execution.fuses_attention(length)
    and pinning.row_and_head_axes(rows, heads) is not None
    and type(mask) in (masks.Causal, masks.Lambda)
    and not mask.top_k
    and _LEAST <= width <= 256
    and width == _power(width)
    and (not mask.n_global or mask.window >= _LEAST)
  )


def side(mask: Any, length: int, width: int, dtype: Any) -> int:
  """Queries, and keys, of a tile; `width` numbers of a dtype are a head."""
  size = jnp.dtype(dtype).itemsize
  found = min(_MOST // size, _power(length), _BYTES // (size * width))
  if mask.n_global:
    found = min(found, _power(mask.window + 1) // 2)
  return max(found, _LEAST)


def attend(
  rule: key_parts.Rule,
  queries: key_parts.Seen,
  keys: key_parts.Seen,
  value_BTGK: jax.Array,
  tokens: masks.Tokens,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Outputs [B, T, H, K] of whole rows; a query that sees nothing gives 0.

  queries: [B, T, H, K], not scaled; keys: [B, T, G, K], as the values.
  tokens: documents stand at 0, 1, 2, ..., one after the other.
  interpret: computes what the kernels say on any backend, slowly.
  """
  _, length, _, width = value_BTGK.shape
  mask, heads = rule.mask, queries.recent.shape[2]
  tile = side(mask, length, width, value_BTGK.dtype)

  def fill(x_BT: jax.Array) -> jax.Array:
    room = [(0, 0), (0, -length % tile)] + [(0, 0)] * (x_BT.ndim - 2)
    return jnp.pad(x_BT, room)

  tokens = masks.Tokens(*map(fill, tokens))
  value_BTGK = fill(value_BTGK)
  start_BT, end_BT = _documents(tokens)
  sinks = None
  if mask.n_global:
    index_BLC = _sink_places(mask, tile, tokens, start_BT)
    sinks = window_kernels.Sinks(
      fill(queries.sinks),
      _take(fill(keys.sinks), index_BLC),
      _take(value_BTGK, index_BLC),
    )
  rows = window_kernels.Rows(
    fill(queries.recent),
    fill(keys.recent),
    value_BTGK,
    start_BT,
    end_BT,
    jnp.asarray(rule.slopes or (0.0,) * heads, jnp.float32),
    sinks,
  )
  window = start_BT.shape[1] if mask.window is None else mask.window
  case = window_kernels.Case(rule, tile, window, interpret)
  return _spread(functools.partial(_mix, case), rows)[:, :length]


def _spread(
  run: Callable[[window_kernels.Rows], jax.Array], rows: window_kernels.Rows
) -> jax.Array:
  """Runs where rows and heads are: the partitioner cannot cut a kernel."""
  batch, _, groups, _ = rows.key_BTGK.shape
  row, head = pinning.row_and_head_axes(batch, groups)
  if not row + head:
    return run(rows)
  x_BTHK, x_BLCGK = P(row, None, head), P(row, None, None, head)
  sinks = rows.sinks and window_kernels.Sinks(x_BTHK, x_BLCGK, x_BLCGK)
  specs = window_kernels.Rows(
    x_BTHK, x_BTHK, x_BTHK, P(row), P(row), P(head), sinks
  )
  # A kernel does not say over which axes its results differ.
  return jax.shard_map(
    run, in_specs=(specs,), out_specs=x_BTHK, check_vma=False
  )(rows)


def _documents(tokens: masks.Tokens) -> tuple[jax.Array, jax.Array]:
  """start_BT and end_BT of window_kernels.Rows."""
  place_1T = jnp.arange(tokens.position_BT.shape[1], dtype=jnp.int32)[None]
  start_BT = place_1T - tokens.position_BT
  start_BT = jnp.where(tokens.document_BT > 0, start_BT, place_1T + 1)
  is_last_BT = jnp.pad(
    tokens.position_BT[:, 1:] == 0, [(0, 0), (0, 1)], constant_values=True
  )
  end_BT = jnp.where(is_last_BT, place_1T, place_1T.shape[1])
  return start_BT, jax.lax.cummin(end_BT, axis=1, reverse=True)


def _sink_places(
  mask: masks.Lambda, tile: int, tokens: masks.Tokens, start_BT: jax.Array
) -> jax.Array:
  """Where the first tokens stand of the document with sinks of each tile.

  Their number C is n_global rounded up to a tile of a power of two, or to
  several of `tile`.
  """
  columns = min(tile, max(_LEAST, _power(mask.n_global)))
  count = -(-mask.n_global // columns) * columns
  has_sinks_BT = (tokens.position_BT >= mask.window) & (tokens.document_BT > 0)
  start_BLT = jnp.where(has_sinks_BT, start_BT, 0)
  start_BLT = start_BLT.reshape(start_BT.shape[0], -1, tile)
  return start_BLT.max(-1)[:, :, None] + jnp.arange(count)[None, None]


def _take(x_BTGK: jax.Array, index_BLC: jax.Array) -> jax.Array:
  """Keys or values [B, L, C, G, K]; gradients are added up in float32."""

  def of_row(x_TGK: jax.Array, index_LC: jax.Array) -> jax.Array:
    return jnp.take(x_TGK, index_LC, axis=0, mode='clip')

  x_BLCGK = jax.vmap(of_row)(x_BTGK.astype(jnp.float32), index_BLC)
  return x_BLCGK.astype(x_BTGK.dtype)


def _power(size: int) -> int:
  """The least power of two from a size on."""
  return 1 << max(size - 1, 0).bit_length()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(case: window_kernels.Case, rows: window_kernels.Rows) -> jax.Array:
  """Outputs [B, T, H, K]."""
  return _forward(case, rows)[0]


def _forward(
  case: window_kernels.Case, rows: window_kernels.Rows
) -> tuple[jax.Array, tuple[Any, ...]]:
  batch, length, heads, width = rows.query_BTHK.shape
  out_BTHK, log_BHT = _call(
    case,
    functools.partial(window_kernels.attend, case),
    (length // case.side, batch, heads),
    (rows._replace(end_BT=None),),
    (_by_query(case, rows),),
    (
      rows.query_BTHK,
      jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
    ),
    (_one_head(case, width), _one_row(case)),
  )
  return out_BTHK, (rows, out_BTHK, log_BHT)


def _backward(
  case: window_kernels.Case, saved: tuple[Any, ...], change_BTHK: jax.Array
) -> tuple[window_kernels.Rows]:
  rows, out_BTHK, log_BHT = saved
  shared_BTH = jnp.sum(change_BTHK.astype(jnp.float32) * out_BTHK, axis=-1)
  known = window_kernels.Known(change_BTHK, log_BHT, shared_BTH.swapaxes(1, 2))
  queries = _query_gradients(case, rows, known)
  keys = _key_gradients(case, rows, known)
  sinks = None
  if rows.sinks is not None:
    sinks = window_kernels.Sinks(
      queries[1], *_sink_gradients(case, rows, known)
    )
  return (window_kernels.Rows(queries[0], *keys, None, None, None, sinks),)


_mix.defvjp(_forward, _backward)


def _call(
  case: window_kernels.Case,
  kernel: Callable[..., None],
  grid: tuple[int, ...],
  arrays: Any,
  specs: Any,
  like: Sequence[Any],
  out_specs: Any,
) -> Any:
  """Runs a kernel whose outputs are `like` some arrays."""
  tile_bytes = case.side * like[0].shape[-1] * like[0].dtype.itemsize
  return pl.pallas_call(
    kernel,
    grid=grid,
    in_specs=specs,
    out_specs=out_specs,
    out_shape=jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like
    ),
    compiler_params=triton.CompilerParams(
      num_warps=8 if tile_bytes >= _BYTES else 4, num_stages=2
    ),
    interpret=case.interpret,
  )(*arrays)


def _one_head(case: window_kernels.Case, width: int) -> pl.BlockSpec:
  """A tile of x_BTHK or x_BTGK."""
  return pl.BlockSpec(
    (None, case.side, None, width), lambda t, b, h: (b, t, h, 0)
  )


def _one_row(case: window_kernels.Case) -> pl.BlockSpec:
  """A tile of x_BHT."""
  return pl.BlockSpec((None, None, case.side), lambda t, b, h: (b, h, t))


def _by_query(
  case: window_kernels.Case, rows: window_kernels.Rows
) -> window_kernels.Rows:
  """Blocks of tile t of queries, with all keys of a row."""
  _, length, heads, width = rows.query_BTHK.shape
  shared = heads // rows.key_BTGK.shape[2]
  query = _one_head(case, width)
  key = pl.BlockSpec(
    (None, length, None, width),
    lambda t, b, h: (b, 0, jax.lax.div(h, shared), 0),
  )
  sinks = None
  if rows.sinks is not None:
    count = rows.sinks.key_BLCGK.shape[2]
    sink = pl.BlockSpec(
      (None, None, count, None, width),
      lambda t, b, h: (b, t, 0, jax.lax.div(h, shared), 0),
    )
    sinks = window_kernels.Sinks(query, sink, sink)
  return window_kernels.Rows(
    query,
    key,
    key,
    pl.BlockSpec((None, case.side), lambda t, b, h: (b, t)),
    None,
    pl.BlockSpec((1,), lambda t, b, h: (h,)),
    sinks,
  )


def _query_gradients(
  case: window_kernels.Case,
  rows: window_kernels.Rows,
  known: window_kernels.Known,
) -> list[jax.Array]:
  """Of queries as recent keys see them, and as sinks do if there are any."""
  batch, length, heads, width = rows.query_BTHK.shape
  head, row = _one_head(case, width), _one_row(case)
  count = 1 if rows.sinks is None else 2
  return _call(
    case,
    functools.partial(window_kernels.of_queries, case),
    (length // case.side, batch, heads),
    (rows._replace(end_BT=None), known),
    (_by_query(case, rows), window_kernels.Known(head, row, row)),
    [rows.query_BTHK] * count,
    [head] * count,
  )


def _key_gradients(
  case: window_kernels.Case,
  rows: window_kernels.Rows,
  known: window_kernels.Known,
) -> tuple[jax.Array, jax.Array]:
  """Of recent keys and their values: a program meets queries that see them."""
  batch, length, groups, width = rows.key_BTGK.shape
  shared = rows.query_BTHK.shape[2] // groups
  key = _one_head(case, width)
  query = pl.BlockSpec(
    (None, length, shared, width), lambda t, b, g: (b, 0, g, 0)
  )
  row = pl.BlockSpec((None, shared, length), lambda t, b, g: (b, g, 0))
  specs = window_kernels.Rows(
    query,
    key,
    key,
    pl.BlockSpec((None, length), lambda t, b, g: (b, 0)),
    pl.BlockSpec((None, case.side), lambda t, b, g: (b, t)),
    pl.BlockSpec((shared,), lambda t, b, g: (g,)),
    None,
  )
  return _call(
    case,
    functools.partial(window_kernels.of_keys, case),
    (length // case.side, batch, groups),
    (rows._replace(sinks=None), known),
    (specs, window_kernels.Known(query, row, row)),
    (rows.key_BTGK, rows.value_BTGK),
    (key, key),
  )


def _sink_gradients(
  case: window_kernels.Case,
  rows: window_kernels.Rows,
  known: window_kernels.Known,
) -> tuple[jax.Array, jax.Array]:
  """Of the sinks of every tile of queries, and of their values."""
  batch, tiles, count, groups, width = rows.sinks.key_BLCGK.shape
  shared = rows.query_BTHK.shape[2] // groups
  columns = min(count, case.side)
  query = pl.BlockSpec(
    (None, case.side, shared, width), lambda t, b, g, c: (b, t, g, 0)
  )
  row = pl.BlockSpec((None, shared, case.side), lambda t, b, g, c: (b, g, t))
  sink = pl.BlockSpec(
    (None, None, columns, None, width), lambda t, b, g, c: (b, t, c, g, 0)
  )
  specs = window_kernels.Rows(
    None,
    None,
    None,
    pl.BlockSpec((None, case.side), lambda t, b, g, c: (b, t)),
    None,
    pl.BlockSpec((shared,), lambda t, b, g, c: (g,)),
    window_kernels.Sinks(query, sink, sink),
  )
  arrays = window_kernels.Rows(
    None, None, None, rows.start_BT, None, rows.slope_H, rows.sinks
  )
  return _call(
    case,
    functools.partial(window_kernels.of_sinks, case),
    (tiles, batch, groups, count // columns),
    (arrays, known),
    (specs, window_kernels.Known(query, row, row)),
    rows.sinks[1:],
    (sink, sink),
  )
