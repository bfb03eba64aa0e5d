"""Attention patterns: who may look at whom, from positions alone.

A pattern is a frozen dataclass. `allows` is its definition; `window`,
`n_global` and `top_k` let the attention skip whole blocks and size its cache.
Limits of documents and padding are combined with it by `visible`.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp


class Tokens(NamedTuple):
  """Where tokens stand: position in their document, and its id (0: padding)."""

  position_BT: jax.Array
  document_BT: jax.Array


def row_tokens(documents_BT: jax.Array) -> Tokens:
  """Tokens of whole rows, where a document is a run of equal ids, 0 padding."""
  place_1T = jnp.arange(documents_BT.shape[1], dtype=jnp.int32)[None]
  place_BT = jnp.broadcast_to(place_1T, documents_BT.shape)
  fresh_BT = documents_BT != jnp.pad(documents_BT[:, :-1], [(0, 0), (1, 0)])
  start_BT = jax.lax.cummax(jnp.where(fresh_BT, place_BT, 0), axis=1)
  number_BT = jnp.cumsum(fresh_BT, axis=1, dtype=jnp.int32)
  return Tokens(place_BT - start_BT, jnp.where(documents_BT > 0, number_BT, 0))


@dataclasses.dataclass(frozen=True)
class Causal:
  """Every earlier position and itself; with a window, the last `window` ones.

  window: keys j with i - window < j <= i, the query itself included; None
    looks back without limit.
  """

  window: int | None = None

  n_global: ClassVar[int] = 0
  top_k: ClassVar[int] = 0

  def __post_init__(self) -> None:
    if self.window is not None and self.window < 1:
      raise ValueError(
        f'mask.window={self.window} must be >= 1 (the position itself counts),'
        ' or None for no limit.'
      )

  def allows(
    self, query_position: jax.Array, key_position: jax.Array
  ) -> jax.Array:
    """Boolean mask for broadcastable integer positions."""
    allowed = key_position <= query_position
    if self.window is not None:
      allowed &= key_position > query_position - self.window
    return allowed

  def slots(self, length: int) -> int:
    """Cache entries that suffice to decode `length` positions."""
    return length if self.window is None else min(length, self.window)


@dataclasses.dataclass(frozen=True)
class Lambda:
  """A document's first tokens and the recent ones: LM-Infinite's shape.

  Han et al. (arXiv 2308.16137): query i sees the n_local keys j with
  0 <= i - j < n_local at their distance i - j, and of the others those with
  j < n_global, the sinks, at a distance that was seen in training. A model of
  relative positions trained on rows of n_local bytes so reads any length.

  n_global, n_local: at least 1.
  limit: the distance of sinks, at most n_local, the released code's choice;
    None for n_local - 1, the largest that rows of n_local have.
  sinks: 'limit'; or 'cache' for StreamingLLM's distance (arXiv 2309.17453)
    min(i, n_global + n_local - 1) - j, their places in the cache.
  top_k: keys between the two, n_global <= j <= i - n_local, that each head
    adds: those of the largest logits at distance top_k_distance (None for
    n_local // 2), which are also the logits that they keep. They need every
    key, hence time and a cache linear in the position. `allows` leaves them
    out, since they depend on more than positions.
  """

  n_global: int = 10
  n_local: int = 256
  limit: int | None = None
  sinks: str = 'limit'
  top_k: int = 0
  top_k_distance: int | None = None

  def __post_init__(self) -> None:
    for name in ('n_global', 'n_local'):
      if getattr(self, name) < 1:
        raise ValueError(
          f'mask.{name}={getattr(self, name)} must be >= 1; for recent tokens'
          ' alone use masks.Causal(window=...).'
        )
    if self.limit is not None and not 0 <= self.limit <= self.n_local:
      raise ValueError(
        f'mask.limit={self.limit} must be in 0..n_local={self.n_local}, or'
        f' None for {self.n_local - 1}.'
      )
    if self.sinks not in ('limit', 'cache'):
      raise ValueError(
        f"mask.sinks={self.sinks!r} must be 'limit' (LM-Infinite) or 'cache'"
        ' (StreamingLLM).'
      )
    if self.sinks == 'cache' and self.limit is not None:
      raise ValueError(
        f"mask.limit={self.limit} has no meaning with mask.sinks='cache';"
        ' leave it None.'
      )
    if self.top_k < 0 or (self.top_k_distance or 0) < 0:
      raise ValueError(
        f'mask.top_k={self.top_k} and'
        f' mask.top_k_distance={self.top_k_distance} must not be negative;'
        ' top_k=0 turns it off.'
      )

  @property
  def window(self) -> int:
    return self.n_local

  def allows(
    self, query_position: jax.Array, key_position: jax.Array
  ) -> jax.Array:
    """Boolean mask for broadcastable integer positions."""
    distance = query_position - key_position
    recent = (distance >= 0) & (distance < self.n_local)
    return recent | (distance >= self.n_local) & (key_position < self.n_global)

  def slots(self, length: int) -> int:
    """Cache entries of recent tokens that decode `length` positions."""
    return min(length, self.n_local)

  def sink_query(self, position: jax.Array) -> jax.Array:
    """Where a query stands as sinks see it."""
    if self.sinks == 'cache':
      return jnp.minimum(position, self.n_global + self.n_local - 1)
    limit = self.n_local - 1 if self.limit is None else self.limit
    return jnp.full_like(position, limit)

  def sink_key(self, position: jax.Array) -> jax.Array:
    """Where a sink stands as queries see it."""
    return position if self.sinks == 'cache' else jnp.zeros_like(position)

  def middle_query(self, position: jax.Array) -> jax.Array:
    """Where a query stands as seen from keys between, which stand at 0."""
    distance = self.top_k_distance
    if distance is None:
      distance = self.n_local // 2
    return jnp.full_like(position, distance)


def visible(mask: Any, queries: Tokens, keys: Tokens) -> jax.Array:
  """The pattern, within documents, never to padding: bool [B, T, S]."""
  allowed = mask.allows(
    queries.position_BT[:, :, None], keys.position_BT[:, None, :]
  )
  query_document = queries.document_BT[:, :, None]
  key_document = keys.document_BT[:, None, :]
  return allowed & (query_document == key_document) & (key_document > 0)


def distance(queries: Tokens, keys: Tokens) -> jax.Array:
  """How far each key lies behind each query: int32 [B, T, S]."""
  return queries.position_BT[:, :, None] - keys.position_BT[:, None, :]
