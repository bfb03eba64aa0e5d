"""Attention to recent keys and a few others, block by block of queries.

Memory is linear in the length. So is time: a block of queries meets the keys
of its window and the sinks of masks.Lambda. Only with top_k, or without a
window, it meets all of its row. All keys share one softmax.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models import key_parts
from models import layer_cache
from models import masks
from models import matmul_attention

# Queries of a block on a CPU and on other devices; powers of two.
_CPU_BLOCK = 128
_BLOCK = 512
_LEAST_BLOCK = 32
# Queries of a row that may meet all keys at once where no kernel does it.
_MOST_AT_ONCE = 4096


class Plan(NamedTuple):
  """Blocks of `size` queries that meet `before + size` keys and `sets` sinks.

  before: None for the keys of the whole row.

  Queries that see sinks stand at least a window after their document's start,
  so that each window's length of a block has sinks of one document only.
  """

  size: int
  before: int | None
  blocks: int
  sets: int


def plan(mask: Any, length: int, kept: int = 0) -> Plan:
  """For `length` queries after `kept` keys."""
  largest = _CPU_BLOCK if jax.default_backend() == 'cpu' else _BLOCK
  size = min(largest, 1 << (min(mask.window, length) - 1).bit_length())
  size = max(size, _LEAST_BLOCK)
  reach = min(mask.window - 1, kept + length - 1)
  return Plan(
    size=size,
    before=-(-reach // 8) * 8,
    blocks=-(-length // size),
    sets=-(-size // mask.window),
  )


def plan_rows(mask: Any, length: int) -> Plan | None:
  """For whole rows; None where every query does best to meet every key."""
  if mask.window is None:
    has_kernel = jax.default_backend() != 'cpu'
    if has_kernel or length <= _MOST_AT_ONCE:
      return None
    return Plan(_CPU_BLOCK, None, -(-length // _CPU_BLOCK), 1)
  if length <= mask.window:
    return None
  laid = plan(mask, length)
  if not mask.n_global and laid.before + laid.size >= length:
    return None
  return laid


def row_sinks(
  mask: Any, keys: layer_cache.Keys, tokens: masks.Tokens
) -> layer_cache.Keys:
  """The sinks of every block of whole rows: arrays [L, B, ...].

  keys: of all tokens, as sinks are seen.
  """
  laid = plan(mask, tokens.position_BT.shape[1])
  batch, length = tokens.position_BT.shape
  width = min(mask.window, laid.size)
  pad = laid.blocks * laid.size - length
  place_1T = jnp.arange(length, dtype=jnp.int32)[None]
  start_BT = jnp.where(
    (tokens.position_BT >= mask.window) & (tokens.document_BT > 0),
    place_1T - tokens.position_BT,
    -1,
  )
  start_BLT = jnp.pad(start_BT, [(0, 0), (0, pad)], constant_values=-1)
  start_BLT = start_BLT.reshape(batch, laid.blocks, laid.size)
  more = laid.sets * width - laid.size
  start_BLT = jnp.pad(
    start_BLT, [(0, 0), (0, 0), (0, more)], constant_values=-1
  )
  start_BM = start_BLT.reshape(batch, -1, width).max(-1)
  index_BMC = start_BM[:, :, None] + jnp.arange(mask.n_global)[None, None]
  real_BMC = (start_BM >= 0)[:, :, None] & (index_BMC < length)
  index_BS = jnp.clip(index_BMC, 0, length - 1).reshape(batch, -1)

  def blocks(x_BS: jax.Array) -> jax.Array:
    return x_BS.reshape(batch, laid.blocks, -1).swapaxes(0, 1)

  def take(x_BGTK: jax.Array) -> jax.Array:
    x_BGSK = jnp.take_along_axis(x_BGTK, index_BS[:, None, :, None], axis=2)
    shape = (*x_BGSK.shape[:2], laid.blocks, -1, x_BGSK.shape[3])
    return x_BGSK.reshape(shape).transpose(2, 0, 1, 3, 4)

  document_BS = jnp.take_along_axis(tokens.document_BT, index_BS, axis=1)
  document_BS = jnp.where(real_BMC.reshape(batch, -1), document_BS, 0)
  position_BS = jnp.take_along_axis(tokens.position_BT, index_BS, axis=1)
  return layer_cache.Keys(
    take(keys.key_BGSK),
    take(keys.value_BGSK),
    masks.Tokens(blocks(position_BS), blocks(document_BS)),
  )


def attend_blocks(
  rule: key_parts.Rule,
  queries: key_parts.Seen,
  tokens: masks.Tokens,
  keys: key_parts.Seen,
  laid: Plan,
) -> jax.Array:
  """Attention [B, T, H, K] of consecutive queries [B, T, H, K].

  keys: recent ones are those of the queries, after `laid.before` others; of
    sinks all arrays have a first axis, of length L, or 1 if they are the same
    for all blocks.
  """
  batch, length = tokens.position_BT.shape
  pad = laid.blocks * laid.size - length
  groups = keys.recent.key_BGSK.shape[1]

  def blocks(x_BT: jax.Array) -> jax.Array:
    widths = [(0, 0), (0, pad)] + [(0, 0)] * (x_BT.ndim - 2)
    x_BLT = jnp.pad(x_BT, widths).reshape(
      batch, laid.blocks, laid.size, *x_BT.shape[2:]
    )
    return x_BLT.swapaxes(0, 1)

  def grouped(query_BTHK: jax.Array) -> jax.Array:
    return jax.vmap(lambda x: key_parts.group(x, groups))(blocks(query_BTHK))

  recent = layer_cache.Keys(
    *(jnp.pad(x, [(0, 0), (0, 0), (0, pad), (0, 0)]) for x in keys.recent[:2]),
    masks.Tokens(*(jnp.pad(x, [(0, 0), (0, pad)]) for x in keys.recent.tokens)),
  )
  sinks = jax.tree.map(
    lambda x: jnp.broadcast_to(x, (laid.blocks, *x.shape[1:])), keys.sinks
  )
  case = _Case(
    jax.tree.map(grouped, queries),
    masks.Tokens(*map(blocks, tokens)),
    keys._replace(recent=recent, sinks=sinks),
  )
  out_LBGTK = _scan((rule, laid), case)
  out_LBTHK = jax.vmap(lambda x: key_parts.ungroup(x, laid.size))(out_LBGTK)
  out_BLTHK = out_LBTHK.swapaxes(0, 1)
  return out_BLTHK.reshape(batch, -1, *out_BLTHK.shape[3:])[:, :length]


class _Case(NamedTuple):
  """Queries, their tokens and sinks with blocks first, and all other keys."""

  queries: key_parts.Seen
  tokens: masks.Tokens
  keys: key_parts.Seen


# The rule and the plan.
_Setting = tuple[key_parts.Rule, Plan]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(setting: _Setting, case: _Case) -> jax.Array:
  """Outputs [L, B, G, T, K] of all blocks, one after the other."""

  def step(_: None, block: Any) -> tuple[None, jax.Array]:
    out_BGTK, _ = matmul_attention.mix(_block_parts(setting, case, block))
    return None, out_BGTK

  return jax.lax.scan(step, None, _per_block(setting, case))[1]


def _per_block(setting: _Setting, case: _Case) -> Any:
  _, laid = setting
  start_L = jnp.arange(laid.blocks, dtype=jnp.int32) * laid.size
  return start_L, case.queries, case.tokens, case.keys.sinks


def _block_parts(
  setting: _Setting, case: _Case, block: Any
) -> tuple[matmul_attention.Part, ...]:
  rule, laid = setting
  start, queries, tokens, sinks = block
  if laid.before is None:
    return key_parts.parts(rule, queries, tokens, case.keys)
  span = laid.before + laid.size

  def cut(x: jax.Array, axis: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, span, axis)

  recent = layer_cache.Keys(
    *(cut(x, 2) for x in case.keys.recent[:2]),
    masks.Tokens(*(cut(x, 1) for x in case.keys.recent.tokens)),
  )
  keys = key_parts.Seen(recent, sinks, case.keys.middle)
  return key_parts.parts(rule, queries, tokens, keys, laid.sets)


def _scan_forward(
  setting: _Setting, case: _Case
) -> tuple[jax.Array, tuple[_Case, jax.Array]]:
  out_LBGTK = _scan(setting, case)
  return out_LBGTK, (case, out_LBGTK)


def _scan_backward(
  setting: _Setting, saved: tuple[_Case, jax.Array], grad_LBGTK: jax.Array
) -> tuple[_Case]:
  """Weights are computed again, so that memory stays linear in the length.

  A key's gradient is complete once the last block that sees it is done: what
  later blocks will add to is carried on.
  """
  case, out_LBGTK = saved
  size, before = setting[1].size, setting[1].before
  has_sinks = case.keys.sinks is not None

  def step(carry: Any, block: Any) -> tuple[Any, Any]:
    pending, middle = carry
    (start, *given), out_BGTK, grad_BGTK = block
    found = _block_parts(setting, case, (start, *given))
    _, weights = matmul_attention.mix(found)
    pulled = matmul_attention.pull(found, weights, out_BGTK, grad_BGTK)
    done = None
    if before is None:
      pending = jax.tree.map(jnp.add, pending, pulled[0][1:])
    else:
      sums = tuple(
        jnp.pad(old, [(0, 0), (0, 0), (0, size), (0, 0)]) + new
        for old, new in zip(pending, pulled[0][1:], strict=True)
      )
      done = tuple(x[:, :, :size] for x in sums)
      pending = tuple(x[:, :, size:] for x in sums)
    if middle is not None:
      middle = jax.tree.map(jnp.add, middle, pulled[-1][1:])
    sinks = pulled[1][1:] if has_sinks else None
    queries = tuple(gradients[0] for gradients in pulled)
    return (pending, middle), (queries, done, sinks)

  pairs = jax.tree.map(jnp.zeros_like, tuple(case.keys.recent[:2]))
  pending = tuple(x[:, :, :before] for x in pairs)
  middle = case.keys.middle
  if middle is not None:
    middle = jax.tree.map(jnp.zeros_like, tuple(middle[:2]))
  blocks = (_per_block(setting, case), out_LBGTK, grad_LBGTK)
  (pending, middle), (queries, done, sinks) = jax.lax.scan(
    step, (pending, middle), blocks
  )
  recent = pending
  if done is not None:
    recent = tuple(
      jnp.concatenate([_unblock(x), rest], axis=2)
      for x, rest in zip(done, pending, strict=True)
    )
  present = iter(queries)
  gradients = key_parts.Seen(
    *(None if x is None else next(present) for x in case.queries)
  )
  return (
    _Case(
      gradients,
      masks.Tokens(None, None),
      key_parts.Seen(*map(_gradient_of_keys, (recent, sinks, middle))),
    ),
  )


_scan.defvjp(_scan_forward, _scan_backward)


def _gradient_of_keys(
  pair: tuple[jax.Array, jax.Array] | None,
) -> layer_cache.Keys | None:
  """Of keys and values; where tokens stand has none."""
  if pair is None:
    return None
  return layer_cache.Keys(*pair, masks.Tokens(None, None))


def _unblock(x_LBGTK: jax.Array) -> jax.Array:
  x_BGLTK = x_LBGTK.transpose(1, 2, 0, 3, 4)
  return x_BGLTK.reshape(*x_BGLTK.shape[:2], -1, x_BGLTK.shape[-1])
