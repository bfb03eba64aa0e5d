"""The keys that queries meet under a mask: recent ones, sinks, those between.

Every kind sees its queries at another angle, and all share one softmax.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models import layer_cache
from models import masks
from models import matmul_attention


class Seen(NamedTuple):
  """Queries or keys as recent, sink and middle pairs see them: turned so far.

  The last two are None where the mask has no such pairs.
  """

  recent: Any
  sinks: Any = None
  middle: Any = None


class Rule(NamedTuple):
  """What decides on logits besides queries and keys: all of it hashable.

  slopes: of the heads, for a bias linear in the distance, or ().
  """

  mask: Any
  slopes: tuple[float, ...]


def bias(
  slopes: tuple[float, ...], distance_BTS: jax.Array
) -> jax.Array | None:
  """What distances add to the logits [B, H, T, S], if anything."""
  if not slopes:
    return None
  slope_1H11 = jnp.asarray(slopes, jnp.float32)[None, :, None, None]
  return -slope_1H11 * distance_BTS[:, None].astype(jnp.float32)


def group(query_BTHK: jax.Array, groups: int) -> jax.Array:
  """Scaled queries, where heads that share a key are further queries."""
  batch, length, heads, width = query_BTHK.shape
  query_BGRTK = query_BTHK.reshape(
    batch, length, groups, heads // groups, width
  ).transpose(0, 2, 3, 1, 4)
  return query_BGRTK.reshape(batch, groups, -1, width) * width**-0.5


def ungroup(out_BGTK: jax.Array, length: int) -> jax.Array:
  """Inverse of `group`, but for the scale: [B, T, H, K]."""
  batch, groups, rows, width = out_BGTK.shape
  out_BHTK = out_BGTK.reshape(batch, groups * rows // length, length, width)
  return out_BHTK.transpose(0, 2, 1, 3)


def part(
  rule: Rule,
  query_BGTK: jax.Array,
  keys: layer_cache.Keys,
  allowed_BTS: jax.Array,
  distance_BTS: jax.Array,
) -> matmul_attention.Part:
  """Grouped queries, and the keys they may see at given distances."""
  length = allowed_BTS.shape[1]
  shared = query_BGTK.shape[2] // length
  bias_BHTS = bias(rule.slopes, distance_BTS)
  if bias_BHTS is not None:
    groups = query_BGTK.shape[1]
    bias_BHTS = bias_BHTS.reshape(
      bias_BHTS.shape[0], groups, -1, bias_BHTS.shape[-1]
    )
  return matmul_attention.Part(
    query_BGTK,
    *keys[:2],
    jnp.tile(allowed_BTS, (1, shared, 1))[:, None],
    bias_BHTS,
  )


def parts(
  rule: Rule,
  queries: Seen,
  tokens: masks.Tokens,
  keys: Seen,
  sets: int = 1,
) -> tuple[matmul_attention.Part, ...]:
  """All keys that grouped queries meet.

  sets: of sinks, one after the other, each for as many queries as a window.
  """
  mask = rule.mask
  found = [_recent(rule, queries.recent, tokens, keys.recent)]
  if keys.sinks is not None:
    sinks = keys.sinks.tokens
    seen_BTS = masks.visible(mask, tokens, sinks)
    seen_BTS &= masks.distance(tokens, sinks) >= mask.window
    if sets > 1:
      length, count = seen_BTS.shape[1:]
      set_T1 = jnp.arange(length)[:, None] // mask.window
      set_1S = jnp.arange(count)[None] // (count // sets)
      seen_BTS &= (set_T1 == set_1S)[None]
    far = masks.distance(
      tokens._replace(position_BT=mask.sink_query(tokens.position_BT)),
      sinks._replace(position_BT=mask.sink_key(sinks.position_BT)),
    )
    found.append(part(rule, queries.sinks, keys.sinks, seen_BTS, far))
  if keys.middle is not None:
    found.append(_middle(rule, queries.middle, tokens, keys.middle))
  return tuple(found)


def _recent(
  rule: Rule,
  query_BGTK: jax.Array,
  tokens: masks.Tokens,
  keys: layer_cache.Keys,
) -> matmul_attention.Part:
  distance_BTS = masks.distance(tokens, keys.tokens)
  seen_BTS = masks.visible(rule.mask, tokens, keys.tokens)
  if rule.mask.window is not None:
    seen_BTS &= distance_BTS < rule.mask.window
  return part(rule, query_BGTK, keys, seen_BTS, distance_BTS)


def _middle(
  rule: Rule,
  query_BGTK: jax.Array,
  tokens: masks.Tokens,
  keys: layer_cache.Keys,
) -> matmul_attention.Part:
  """The best keys between sinks and recent ones, for each query and head."""
  mask = rule.mask
  position_B1S = keys.tokens.position_BT[:, None]
  same_BTS = tokens.document_BT[:, :, None] == keys.tokens.document_BT[:, None]
  between_BTS = same_BTS & (tokens.document_BT[:, :, None] > 0)
  between_BTS &= position_B1S >= mask.n_global
  between_BTS &= masks.distance(tokens, keys.tokens) >= mask.window
  far_BT1 = mask.middle_query(tokens.position_BT)[:, :, None]
  whole = part(
    rule,
    query_BGTK,
    keys,
    between_BTS,
    jnp.broadcast_to(far_BT1, between_BTS.shape),
  )
  logits_BGTS = jax.lax.stop_gradient(matmul_attention.logits(whole))
  count = min(mask.top_k, logits_BGTS.shape[-1])
  _, best_BGTC = jax.lax.top_k(logits_BGTS, count)
  chosen_BGTS = jnp.put_along_axis(
    jnp.zeros(logits_BGTS.shape, bool), best_BGTC, True, -1, inplace=False
  )
  return whole._replace(mask_BGTS=whole.mask_BGTS & chosen_BGTS)
