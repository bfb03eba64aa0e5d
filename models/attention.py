"""Grouped-query attention over rows of documents, with an explicit cache.

One function, `attend`, serves training rows, ragged prefill and decoding: it
sees positions and document ids, never a mode.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import linear
from models import masks
from models import matmul_attention
from models import positions


class LayerCache(NamedTuple):
  """Keys and values of one layer; slot s holds the token at position_BS.

  position_BS is -1 in empty slots. Token i lives in slot i mod S, so a window
  of S tokens is a ring buffer and an unlimited one never wraps. Heads come
  before slots, the order that `attend` reads without copying.
  """

  key_BGSK: jax.Array
  value_BGSK: jax.Array
  position_BS: jax.Array


class Tokens(NamedTuple):
  """Where tokens stand: position in the stream and document id (0: padding)."""

  position_BT: jax.Array
  document_BT: jax.Array


def _attend_einsum(
  query_BTHK: jax.Array,
  key_BGSK: jax.Array,
  value_BGSK: jax.Array,
  mask_BTS: jax.Array,
) -> jax.Array:
  """`attend` as two batched matmuls per head, heads before positions."""
  batch, length, heads, head_width = query_BTHK.shape
  groups = key_BGSK.shape[1]
  shared = heads // groups
  query_BGRTK = query_BTHK.reshape(
    batch, length, groups, shared, head_width
  ).transpose(0, 2, 3, 1, 4)
  # Heads that share a key are further queries.
  out_BGTK = matmul_attention.attend(
    query_BGRTK.reshape(batch, groups, -1, head_width) * head_width**-0.5,
    key_BGSK,
    value_BGSK,
    jnp.tile(mask_BTS, (1, shared, 1)),
  )
  out_BGRTK = out_BGTK.reshape(query_BGRTK.shape)
  return out_BGRTK.transpose(0, 3, 1, 2, 4).reshape(query_BTHK.shape)


def attend(
  query_BTHK: jax.Array,
  key_BGSK: jax.Array,
  value_BGSK: jax.Array,
  mask_BTS: jax.Array,
) -> jax.Array:
  """Softmax attention, scale K^-1/2; a query that may see nothing gives 0.

  Accelerators use `jax.nn.dot_product_attention`; its layout is two to three
  times slower than plain batched matmuls on a CPU.
  """
  if jax.default_backend() == 'cpu':
    return _attend_einsum(query_BTHK, key_BGSK, value_BGSK, mask_BTS)
  return _attend_fused(query_BTHK, key_BGSK, value_BGSK, mask_BTS)


def _attend_fused(
  query_BTHK: jax.Array,
  key_BGSK: jax.Array,
  value_BGSK: jax.Array,
  mask_BTS: jax.Array,
) -> jax.Array:
  """`attend` by the kernels that XLA has for an accelerator."""
  out_BTHK = jax.nn.dot_product_attention(
    query_BTHK,
    key_BGSK.swapaxes(1, 2),
    value_BGSK.swapaxes(1, 2),
    mask=mask_BTS[:, None],
  )
  return jnp.where(mask_BTS.any(-1)[:, :, None, None], out_BTHK, 0)


def attend_banded(
  query_BTHK: jax.Array,
  key_BTGK: jax.Array,
  value_BTGK: jax.Array,
  tokens: Tokens,
  mask: masks.Causal,
) -> jax.Array:
  """`attend` for a window: each block of `window` rows sees two blocks of keys.

  Linear in T. Positions must be those of consecutive tokens of one row.
  """
  size = mask.window
  batch, length = tokens.position_BT.shape
  pad = -length % size

  def blocks(x: jax.Array) -> jax.Array:
    widths = [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2)
    padded = jnp.pad(x, widths)
    return padded.reshape(batch, -1, size, *x.shape[2:])

  def with_previous(x: jax.Array) -> jax.Array:
    own = blocks(x)
    before = jnp.pad(own, [(0, 0), (1, 0)] + [(0, 0)] * (own.ndim - 2))
    both = jnp.concatenate([before[:, :-1], own], axis=2)
    return both.reshape(-1, 2 * size, *x.shape[2:])

  def flat(x: jax.Array) -> jax.Array:
    return blocks(x).reshape(-1, size, *x.shape[2:])

  queries = Tokens(*(flat(x) for x in tokens))
  keys = Tokens(*(with_previous(x) for x in tokens))
  out = attend(
    flat(query_BTHK),
    with_previous(key_BTGK).swapaxes(1, 2),
    with_previous(value_BTGK).swapaxes(1, 2),
    visible(mask, queries, keys),
  )
  return out.reshape(batch, -1, *query_BTHK.shape[2:])[:, :length]


def visible(mask: masks.Causal, queries: Tokens, keys: Tokens) -> jax.Array:
  """The pattern, within documents, never to padding: bool [B, T, S]."""
  allowed = mask.allows(
    queries.position_BT[:, :, None], keys.position_BT[:, None, :]
  )
  query_document = queries.document_BT[:, :, None]
  key_document = keys.document_BT[:, None, :]
  return allowed & (query_document == key_document) & (key_document > 0)


def empty_cache(
  batch_size: int,
  slots: int,
  heads: int,
  head_width: int,
  dtype: str,
) -> LayerCache:
  """A cache that holds no token."""
  shape = (batch_size, heads, slots, head_width)
  return LayerCache(
    key_BGSK=jnp.zeros(shape, dtype),
    value_BGSK=jnp.zeros(shape, dtype),
    position_BS=jnp.full((batch_size, slots), -1, jnp.int32),
  )


def store(
  cache: LayerCache, key_BTGK: jax.Array, value_BTGK: jax.Array, tokens: Tokens
) -> LayerCache:
  """Writes real tokens to their slots; of those that share one, the last."""
  slots = cache.position_BS.shape[1]
  end_B1 = jnp.max(
    jnp.where(tokens.document_BT > 0, tokens.position_BT, -1),
    axis=1,
    keepdims=True,
  )
  keep = (tokens.document_BT > 0) & (tokens.position_BT > end_B1 - slots)
  slot_BT = jnp.where(keep, tokens.position_BT % slots, slots)
  # One more token, which is dropped: where a single row stores a single token,
  # XLA's CPU backend copies the cache instead of writing into it.
  slot_BT = jnp.pad(slot_BT, [(0, 0), (0, 1)], constant_values=slots)
  row_B1 = jnp.arange(slot_BT.shape[0])[:, None]

  def write(old: jax.Array, new: jax.Array, *heads: slice) -> jax.Array:
    new = jnp.pad(new, [(0, 0), (0, 1)] + [(0, 0)] * (new.ndim - 2))
    place = old.at[row_B1, *heads, slot_BT]
    return place.set(new.astype(old.dtype), mode='drop')

  return LayerCache(
    write(cache.key_BGSK, key_BTGK, slice(None)),
    write(cache.value_BGSK, value_BTGK, slice(None)),
    write(cache.position_BS, tokens.position_BT),
  )


def stored_tokens(cache: LayerCache) -> Tokens:
  """Positions of the cached tokens; empty slots are padding."""
  return Tokens(
    cache.position_BS, (cache.position_BS >= 0).astype(jnp.int32)
  )


class Attention(nn.Module):
  """Multi-head self-attention with rotary positions and grouped keys.

  heads, key_value_heads: query heads and the key/value heads they share.
  query_key_norm: RMS-normalise queries and keys per head.
  """

  heads: int
  key_value_heads: int
  head_width: int
  mask: Any
  query_key_norm: bool
  dtype: str
  linear: nn.Module = linear.Dense()

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    tokens: Tokens,
    turn: positions.Rotation,
    cache: LayerCache | None,
  ) -> tuple[jax.Array, LayerCache | None]:
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
      query_BTHK = RMSNorm(name='query_norm')(query_BTHK)
      key_BTGK = RMSNorm(name='key_norm')(key_BTGK)
    query_BTHK = positions.rotate(query_BTHK, turn)
    key_BTGK = positions.rotate(key_BTGK, turn)
    out_BTHK, cache = self._mix(
      query_BTHK, key_BTGK, value_BTGK, tokens, cache
    )
    out_BTF = out_BTHK.reshape(*x_BTD.shape[:2], -1)
    output = self.linear.copy(
      name='output', features=x_BTD.shape[-1], dtype=self.dtype
    )
    return output(out_BTF), cache

  def _mix(
    self,
    query_BTHK: jax.Array,
    key_BTGK: jax.Array,
    value_BTGK: jax.Array,
    tokens: Tokens,
    cache: LayerCache | None,
  ) -> tuple[jax.Array, LayerCache | None]:
    length = query_BTHK.shape[1]
    if cache is None:
      window = self.mask.window
      if window is not None and length > 2 * window:
        out = attend_banded(
          query_BTHK, key_BTGK, value_BTGK, tokens, self.mask
        )
      else:
        seen = visible(self.mask, tokens, tokens)
        out = attend(
          query_BTHK,
          key_BTGK.swapaxes(1, 2),
          value_BTGK.swapaxes(1, 2),
          seen,
        )
      return out, None
    old, cache = cache, store(cache, key_BTGK, value_BTGK, tokens)
    if length == 1:
      keys, values, known = *cache[:2], stored_tokens(cache)
    else:
      # Writing first could overwrite what the earlier of these queries need.
      keys, values = (
        jnp.concatenate([before.astype(x.dtype), x.swapaxes(1, 2)], axis=2)
        for before, x in zip(old[:2], (key_BTGK, value_BTGK), strict=True)
      )
      known = Tokens(
        *(
          jnp.concatenate(pair, axis=1)
          for pair in zip(stored_tokens(old), tokens, strict=True)
        )
      )
    seen = visible(self.mask, tokens, known)
    return attend(query_BTHK, keys, values, seen), cache


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
