"""Keys and values that one layer keeps while decoding."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models import masks


class Keys(NamedTuple):
  """Keys, values, and the tokens they are of."""

  key_BGSK: jax.Array
  value_BGSK: jax.Array
  tokens: masks.Tokens


class LayerCache(NamedTuple):
  """Keys and values of one layer; slot s holds the token at position_BS.

  position_BS is -1 in empty slots. Token i lives in slot i mod S, so a window
  of S tokens is a ring buffer and an unlimited one never wraps. Heads come
  before slots, the order that attention reads without copying.
  """

  key_BGSK: jax.Array
  value_BGSK: jax.Array
  position_BS: jax.Array


class LambdaCache(NamedTuple):
  """What masks.Lambda needs, of one size however long the stream is.

  recent: a ring of n_local tokens; sinks: the first n_global, keys turned as
  sinks are seen; middle: with top_k, every token, keys not turned.
  """

  recent: LayerCache
  sinks: LayerCache
  middle: LayerCache | None


Cache = LayerCache | LambdaCache


def empty(
  mask: Any,
  batch_size: int,
  length: int,
  heads: int,
  head_width: int,
  dtype: str,
) -> Cache:
  """A cache without tokens, for a mask and up to `length` positions."""

  def layer(slots: int) -> LayerCache:
    shape = (batch_size, heads, slots, head_width)
    return LayerCache(
      key_BGSK=jnp.zeros(shape, dtype),
      value_BGSK=jnp.zeros(shape, dtype),
      position_BS=jnp.full((batch_size, slots), -1, jnp.int32),
    )

  recent = layer(mask.slots(length))
  if not mask.n_global:
    return recent
  middle = layer(length) if mask.top_k else None
  return LambdaCache(recent, layer(mask.n_global), middle)


def check(mask: Any, cache: Cache) -> None:
  """ValueError for the cache of another mask, or one too small for it."""
  if not mask.n_global:
    if isinstance(cache, LambdaCache):
      raise ValueError(
        f'the cache is that of a masks.Lambda, the mask {mask!r}; make it by'
        " the model's own init_cache."
      )
    return
  found = 'a whole row'
  if isinstance(cache, LambdaCache):
    first, recent = (x.position_BS.shape[-1] for x in cache[1::-1])
    fits = first == mask.n_global and recent <= mask.n_local
    if fits and (cache.middle is not None) == bool(mask.top_k):
      return
    found = f'{first} first and {recent} recent tokens'
  raise ValueError(
    f'the cache holds {found}, but the mask has n_global={mask.n_global},'
    f' n_local={mask.n_local} and top_k={mask.top_k}; make it by the'
    " model's own init_cache."
  )


def store(
  cache: LayerCache,
  key_BTGK: jax.Array,
  value_BTGK: jax.Array,
  tokens: masks.Tokens,
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


def store_first(
  cache: LayerCache,
  key_BTGK: jax.Array,
  value_BTGK: jax.Array,
  tokens: masks.Tokens,
) -> LayerCache:
  """`store` of the tokens whose positions are slots; others are dropped."""
  is_first_BT = tokens.position_BT < cache.position_BS.shape[1]
  document_BT = jnp.where(is_first_BT, tokens.document_BT, 0)
  tokens = masks.Tokens(tokens.position_BT, document_BT)
  return store(cache, key_BTGK, value_BTGK, tokens)


def stored(cache: LayerCache) -> Keys:
  """All slots; empty ones are padding."""
  document_BS = (cache.position_BS >= 0).astype(jnp.int32)
  return Keys(*cache[:2], masks.Tokens(cache.position_BS, document_BS))


def latest(cache: LayerCache, position_B: jax.Array, count: int) -> Keys:
  """The `count` tokens before position_B in order; padding where not kept."""
  slots = cache.position_BS.shape[1]
  position_BS = position_B[:, None] - jnp.arange(count, 0, -1)[None]
  slot_BS = position_BS % slots
  found_BS = jnp.take_along_axis(cache.position_BS, slot_BS, axis=1)
  real_BS = (found_BS == position_BS) & (position_BS >= 0)

  def take(x_BGSK: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_BGSK, slot_BS[:, None, :, None], axis=2)

  tokens = masks.Tokens(position_BS, real_BS.astype(jnp.int32))
  return Keys(take(cache.key_BGSK), take(cache.value_BGSK), tokens)


def append(before: Keys, after: Keys) -> Keys:
  """Both, one after the other."""
  return Keys(
    *(
      jnp.concatenate([old.astype(new.dtype), new], axis=2)
      for old, new in zip(before[:2], after[:2], strict=True)
    ),
    masks.Tokens(
      *(
        jnp.concatenate(pair, axis=1)
        for pair in zip(before.tokens, after.tokens, strict=True)
      )
    ),
  )
