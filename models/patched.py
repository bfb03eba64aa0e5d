"""A byte latent transformer together with what decides on its patches.

The entropy model is trained before and then stays as it is: nothing flows
back through its decisions (arXiv 2412.09871, section 2.3).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import byte_latent
from models import patching

_ENDLESS = 2**30  # bytes


class Held(NamedTuple):
  """The byte of each row that waits, which the model has yet to read."""

  waiting_B: jax.Array
  id_B: jax.Array
  entropy_B: jax.Array


class Cache(NamedTuple):
  """Decoding state: that of the entropy model, and of the model.

  held: only where rows may wait, see `Patched`.
  """

  entropy: Any
  model: Any
  held: Held | None = None

  @property
  def waiting_B(self) -> jax.Array | None:
    """Rows whose logits come with a later step; None if no row ever waits."""
    return self.held and self.held.waiting_B


class LMEntropy(nn.Module):
  """Entropy in nats of what a byte language model predicts after each id.

  lm: the language model, as models.lm.ByteLM.
  """

  lm: nn.Module

  def init_cache(self, batch_size: int, length: int) -> Any:
    """An empty cache for up to `length` ids per row."""
    return self.lm.init_cache(batch_size, length)

  def __call__(
    self,
    ids_BT: jax.Array,
    documents_BT: jax.Array | None = None,
    cache: Any = None,
  ) -> tuple[jax.Array, Any]:
    """Float32 nats [B, T] and the extended cache, as models.lm.ByteLM."""
    logits_BTV, cache = self.lm(ids_BT, documents_BT, cache)
    return patching.entropy(logits_BTV), cache


class Patched(nn.Module):
  """models.byte_latent.ByteLatent with the entropies that its rule needs.

  entropy: module from ids to nats, as `LMEntropy`; it is not trained. None
    for a rule that looks at bytes only.
  model: the transformer; `model.patching` says what ends a patch.
  wait: while decoding, rows whose byte ends a patch wait until so many do, or
    all that have anything to read: the latent transformer, run for all rows at
    once, then runs less often, and the byte layers more often. Logits are the
    same, later: those of `Cache.waiting_B` mean nothing, and such a row is to
    be given padding. With 1 no row waits.

  Its parameters are those of `entropy` and `model` under these names.
  """

  entropy: nn.Module | None
  model: byte_latent.ByteLatent
  wait: int = 1

  @property
  def max_length(self) -> int | None:
    """Longest row or stream that is accepted, None for any."""
    return self.model.max_length

  @property
  def vocabulary_size(self) -> int:
    """Ids are below it."""
    return self.model.vocabulary_size

  def init_cache(self, batch_size: int, length: int) -> Cache:
    """An empty cache for up to `length` bytes per row."""
    if self.wait < 1:
      raise ValueError(f'wait={self.wait} must be at least 1, which waits not.')
    held = Held(
      jnp.zeros(batch_size, bool),
      jnp.zeros(batch_size, jnp.int32),
      jnp.zeros(batch_size, jnp.float32),
    )
    return Cache(
      self.entropy and self.entropy.init_cache(batch_size, length),
      self.model.init_cache(batch_size, length),
      held if self.wait > 1 else None,
    )

  def __call__(
    self,
    ids_BT: jax.Array,
    documents_BT: jax.Array | None = None,
    cache: Cache | None = None,
    *,
    entropy_BT: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """Logits for the byte after each position, and the extended cache.

    ids_BT, documents_BT, cache: as models.lm.ByteLM.
    entropy_BT: nats that were stored beforehand, instead of the entropy
      model's. Without a cache only.
    """
    if cache is not None and entropy_BT is not None:
      raise ValueError(
        'stored entropies are for whole rows; with a cache the entropy model'
        ' has to read the bytes itself.'
      )
    state = None
    if self.entropy is not None and (
      entropy_BT is None or self.is_initializing()
    ):
      computed_BT, state = self.entropy(
        ids_BT, documents_BT, cache and cache.entropy
      )
      entropy_BT = computed_BT if entropy_BT is None else entropy_BT
    if entropy_BT is not None:
      entropy_BT = jax.lax.stop_gradient(entropy_BT.astype(jnp.float32))
    if cache is None:
      logits_BTV, _ = self.model(ids_BT, documents_BT, entropy_BT=entropy_BT)
      return logits_BTV, None
    if documents_BT is None:
      documents_BT = jnp.ones_like(ids_BT)
    inner, held = cache.model, cache.held
    if held is not None and ids_BT.shape[1] > 1:
      inner, held = self._read_held(inner, held)
    elif held is not None:
      if entropy_BT is None:
        entropy_BT = jnp.zeros(ids_BT.shape, jnp.float32)
      new = Held(documents_BT[:, 0] > 0, ids_BT[:, 0], entropy_BT[:, 0])
      reads_B, new, held = self._release(inner, held, new)
      ids_BT, entropy_BT = new.id_B[:, None], new.entropy_B[:, None]
      documents_BT = reads_B.astype(jnp.int32)[:, None]
    logits_BTV, inner = self.model(
      ids_BT, documents_BT, inner, entropy_BT=entropy_BT
    )
    return logits_BTV, Cache(state, inner, held)

  def _release(
    self, inner: Any, held: Held, new: Held
  ) -> tuple[jax.Array, Held, Held]:
    """Rows that read now, every row's unread byte, and those that stay held.

    new: a byte of each row, `waiting_B` where it is one and not padding.
    """
    unread = jax.tree.map(
      lambda old_B, new_B: jnp.where(held.waiting_B, old_B, new_B), held, new
    )
    closes_B, _ = self.model.patching.step(
      inner.patching, unread.id_B, unread.entropy_B
    )
    closes_B &= unread.waiting_B
    enough = jnp.minimum(self.wait, jnp.sum(unread.waiting_B))
    stays_B = closes_B & (jnp.sum(closes_B) < enough)
    reads_B = unread.waiting_B & ~stays_B
    return reads_B, unread, unread._replace(waiting_B=stays_B)

  def _read_held(self, inner: Any, held: Held) -> tuple[Any, Held]:
    """The model's cache after the bytes that waited, and none that waits."""
    _, inner = self.model(
      held.id_B[:, None],
      held.waiting_B.astype(jnp.int32)[:, None],
      inner,
      entropy_BT=held.entropy_B[:, None],
    )
    return inner, held._replace(waiting_B=jnp.zeros_like(held.waiting_B))


@functools.lru_cache
def ahead(model: Patched) -> Callable[..., tuple[jax.Array, Cache]]:
  """As models.forward.step, but no patch ends: a draft of several patches.

  (params, ids_BT, documents_BT, cache) -> (logits_BTV, cache): the byte layers
  alone, which go on reading the last patch that is complete. Only `model`
  itself may read on from the cache that this one was given.
  """
  if not isinstance(model, Patched):
    raise ValueError(
      f'{type(model).__name__} has no patches to draft beyond; take a'
      ' models.patched.Patched, or a smaller model as draft'
    )
  endless = patching.Patching(patching.Stride(_ENDLESS), max_length=None)
  bytes_only = model.model.clone(patching=endless)

  def apply(
    params: Any, ids_BT: jax.Array, documents_BT: jax.Array, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    logits_BTV, inner = bytes_only.apply(
      {'params': params['model']}, ids_BT, documents_BT, cache.model
    )
    return logits_BTV, cache._replace(model=inner)

  return apply
