"""Grouped-query attention over rows of documents, with an explicit cache.

One function, `attend`, serves training rows, ragged prefill and decoding: it
sees positions and document ids, never a mode.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import fused_window
from models import key_parts
from models import layer_cache
from models import linear
from models import masks
from models import matmul_attention
from models import positions
from models import window_attention


def attend(
  query_BTHK: jax.Array,
  key_BGSK: jax.Array,
  value_BGSK: jax.Array,
  mask_BTS: jax.Array,
  bias_BHTS: jax.Array | None = None,
) -> jax.Array:
  """Softmax attention, scale K^-1/2; a query that may see nothing gives 0.

  Accelerators use `jax.nn.dot_product_attention`; its layout is two to three
  times slower than plain batched matmuls on a CPU.

  bias_BHTS: added to the logits; has no gradient.
  """
  function = _attend_fused
  if jax.default_backend() == 'cpu':
    function = _attend_einsum
  return function(query_BTHK, key_BGSK, value_BGSK, mask_BTS, bias_BHTS)


def _attend_einsum(
  query_BTHK: jax.Array,
  key_BGSK: jax.Array,
  value_BGSK: jax.Array,
  mask_BTS: jax.Array,
  bias_BHTS: jax.Array | None = None,
) -> jax.Array:
  """`attend` as two batched matmuls per head, heads before positions."""
  groups = key_BGSK.shape[1]
  query_BGTK = key_parts.group(query_BTHK, groups)
  shared = query_BTHK.shape[2] // groups
  if bias_BHTS is not None:
    batch, _, _, slots = bias_BHTS.shape
    bias_BHTS = bias_BHTS.reshape(batch, groups, -1, slots)
  out_BGTK = matmul_attention.attend(
    matmul_attention.Part(
      query_BGTK,
      key_BGSK,
      value_BGSK,
      jnp.tile(mask_BTS, (1, shared, 1))[:, None],
      bias_BHTS,
    )
  )
  return key_parts.ungroup(out_BGTK, query_BTHK.shape[1])


def _attend_fused(
  query_BTHK: jax.Array,
  key_BGSK: jax.Array,
  value_BGSK: jax.Array,
  mask_BTS: jax.Array,
  bias_BHTS: jax.Array | None = None,
) -> jax.Array:
  """`attend` by the kernels that XLA has for an accelerator."""
  if bias_BHTS is not None:
    bias_BHTS = bias_BHTS.astype(query_BTHK.dtype)
  out_BTHK = jax.nn.dot_product_attention(
    query_BTHK,
    key_BGSK.swapaxes(1, 2),
    value_BGSK.swapaxes(1, 2),
    bias=bias_BHTS,
    mask=mask_BTS[:, None],
  )
  return jnp.where(mask_BTS.any(-1)[:, :, None, None], out_BTHK, 0)


class Attention(nn.Module):
  """Multi-head self-attention with relative positions and grouped keys.

  heads, key_value_heads: query heads and the key/value heads they share.
  mask: a pattern of models.masks; position: an encoding of models.positions.
  query_key_norm: RMS-normalise queries and keys per head, with epsilon.
  """

  heads: int
  key_value_heads: int
  head_width: int
  mask: Any
  query_key_norm: bool
  dtype: str
  position: Any = positions.Rotary()
  epsilon: float = 1e-5
  linear: nn.Module = linear.Dense()

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    tokens: masks.Tokens,
    turn: positions.Rotation | None,
    cache: layer_cache.Cache | None,
  ) -> tuple[jax.Array, layer_cache.Cache | None]:
    def project(name: str, heads: int) -> jax.Array:
      layer = self.linear.copy(
        name=name, features=heads * self.head_width, dtype=self.dtype
      )
      out = layer(x_BTD)
      return out.reshape(*out.shape[:2], heads, self.head_width)

    query_BTHK = project('query', self.heads)
    key_BTGK = project('key', self.key_value_heads)
    value_BTGK = project('value', self.key_value_heads)
    if self.query_key_norm:
      query_BTHK = RMSNorm(self.epsilon, name='query_norm')(query_BTHK)
      key_BTGK = RMSNorm(self.epsilon, name='key_norm')(key_BTGK)
    out_BTHK, cache = self.mix(
      query_BTHK, key_BTGK, value_BTGK, tokens, turn, cache
    )
    out_BTF = out_BTHK.reshape(*x_BTD.shape[:2], -1)
    output = self.linear.copy(
      name='output', features=x_BTD.shape[-1], dtype=self.dtype
    )
    return output(out_BTF), cache

  def mix(
    self,
    query_BTHK: jax.Array,
    key_BTGK: jax.Array,
    value_BTGK: jax.Array,
    tokens: masks.Tokens,
    turn: positions.Rotation | None,
    cache: layer_cache.Cache | None = None,
  ) -> tuple[jax.Array, layer_cache.Cache | None]:
    """Outputs [B, T, H, K] of queries and keys not turned, and the new cache.

    turn: of the tokens, from `position`. Raises ValueError for the cache of
    another mask.
    """
    queries = self._seen(query_BTHK, tokens, turn, 'query')
    keys = self._seen(key_BTGK, tokens, turn, 'key')
    if cache is None:
      return self._mix_rows(queries, keys, value_BTGK, tokens), None
    layer_cache.check(self.mask, cache)
    return self._mix_cached(queries, keys, value_BTGK, tokens, cache)

  @property
  def _rule(self) -> key_parts.Rule:
    return key_parts.Rule(self.mask, self.position.slopes(self.heads))

  def _seen(
    self,
    x_BTHK: jax.Array,
    tokens: masks.Tokens,
    turn: positions.Rotation | None,
    side: str,
  ) -> key_parts.Seen:
    """Queries or keys, turned as each kind of pair needs them."""
    mask, raw_BTHK = self.mask, x_BTHK
    recent = positions.rotate(x_BTHK, turn)
    if not mask.n_global:
      return key_parts.Seen(recent)

    def turned(place_BT: jax.Array) -> jax.Array:
      return positions.rotate(
        raw_BTHK, self.position.turn(place_BT, self.head_width)
      )

    # All queries stand at one distance, so that one angle is enough.
    any_11 = tokens.position_BT[:1, :1]
    sink_BT = tokens.position_BT if mask.sinks == 'cache' else any_11

    if side == 'key':
      sinks = recent if mask.sinks == 'cache' else raw_BTHK
      return key_parts.Seen(recent, sinks, raw_BTHK if mask.top_k else None)
    return key_parts.Seen(
      recent,
      turned(mask.sink_query(sink_BT)),
      turned(mask.middle_query(any_11)) if mask.top_k else None,
    )

  def _mix_rows(
    self,
    queries: key_parts.Seen,
    keys: key_parts.Seen,
    value_BTGK: jax.Array,
    tokens: masks.Tokens,
  ) -> jax.Array:
    """Outputs of whole rows."""
    rule, mask = self._rule, self.mask
    length = value_BTGK.shape[1]
    if fused_window.serves(mask, value_BTGK.shape):
      return fused_window.attend(rule, queries, keys, value_BTGK, tokens)
    value_BGTK = value_BTGK.swapaxes(1, 2)

    def stand(key_BTGK: jax.Array | None) -> layer_cache.Keys | None:
      if key_BTGK is None:
        return None
      return layer_cache.Keys(key_BTGK.swapaxes(1, 2), value_BGTK, tokens)

    recent, sinks, middle = map(stand, keys)
    laid = window_attention.plan_rows(mask, length)
    if laid is None:
      return _attend_all(rule, queries.recent, tokens, recent)
    front = (laid.before or 0, 0)
    recent = layer_cache.Keys(
      *(jnp.pad(x, [(0, 0), (0, 0), front, (0, 0)]) for x in recent[:2]),
      masks.Tokens(*(jnp.pad(x, [(0, 0), front]) for x in tokens)),
    )
    if sinks is not None:
      sinks = window_attention.row_sinks(mask, sinks, tokens)
    return window_attention.attend_blocks(
      rule,
      queries,
      tokens,
      key_parts.Seen(recent, sinks, middle),
      laid,
    )

  def _mix_cached(
    self,
    queries: key_parts.Seen,
    keys: key_parts.Seen,
    value_BTGK: jax.Array,
    tokens: masks.Tokens,
    cache: layer_cache.Cache,
  ) -> tuple[jax.Array, layer_cache.Cache]:
    """Outputs of tokens that follow the cached ones, and the new cache."""
    rule, mask = self._rule, self.mask
    if mask.n_global:
      old, cache = (
        cache.recent,
        layer_cache.LambdaCache(
          layer_cache.store(cache.recent, keys.recent, value_BTGK, tokens),
          layer_cache.store_first(cache.sinks, keys.sinks, value_BTGK, tokens),
          cache.middle
          and layer_cache.store(cache.middle, keys.middle, value_BTGK, tokens),
        ),
      )
      known = [x and layer_cache.stored(x) for x in cache]
    else:
      old = cache
      cache = layer_cache.store(cache, keys.recent, value_BTGK, tokens)
      known = [layer_cache.stored(cache), None, None]
    length = value_BTGK.shape[1]
    if length == 1 and mask.n_global:
      parts = key_parts.parts(
        rule,
        jax.tree.map(
          lambda x: key_parts.group(x, self.key_value_heads), queries
        ),
        tokens,
        key_parts.Seen(*known),
      )
      out_BGTK = matmul_attention.attend(*parts)
      return key_parts.ungroup(out_BGTK, length), cache
    if length == 1:
      return _attend_all(rule, queries.recent, tokens, known[0]), cache
    # Writing first could overwrite what the earlier of these queries need.
    new = layer_cache.Keys(
      keys.recent.swapaxes(1, 2), value_BTGK.swapaxes(1, 2), tokens
    )
    if mask.window is None:
      both = layer_cache.append(layer_cache.stored(old), new)
      return _attend_all(rule, queries.recent, tokens, both), cache
    laid = window_attention.plan(mask, length, old.position_BS.shape[1])
    before = layer_cache.latest(old, tokens.position_BT[:, 0], laid.before)
    # The same sinks for every block.
    sinks = jax.tree.map(lambda x: x[None], known[1])
    seen = key_parts.Seen(layer_cache.append(before, new), sinks, known[2])
    laid = laid._replace(sets=1)
    return (
      window_attention.attend_blocks(rule, queries, tokens, seen, laid),
      cache,
    )


def _attend_all(
  rule: key_parts.Rule,
  query_BTHK: jax.Array,
  tokens: masks.Tokens,
  keys: layer_cache.Keys,
) -> jax.Array:
  """Every query meets every key at its own distance."""
  return attend(
    query_BTHK,
    *keys[:2],
    masks.visible(rule.mask, tokens, keys.tokens),
    key_parts.bias(rule.slopes, masks.distance(tokens, keys.tokens)),
  )


class RMSNorm(nn.Module):
  """x * scale / rms(x), statistics in float32 (arXiv 1910.07467)."""

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    x_float = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x_float), axis=-1, keepdims=True)
    normal = x_float * jax.lax.rsqrt(mean_square + self.epsilon)
    shape = (1,) * (x.ndim - 1) + scale.shape
    return (normal * scale.reshape(shape)).astype(x.dtype)
