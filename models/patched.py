"""A byte latent transformer together with what decides on its patches.

The entropy model is trained before and then stays as it is: nothing flows
back through its decisions (arXiv 2412.09871, section 2.3).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import byte_latent
from models import patching


class Cache(NamedTuple):
  """Decoding state: that of the entropy model, and of the model."""

  entropy: Any
  model: Any


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

  Its parameters are those of `entropy` and `model` under these names.
  """

  entropy: nn.Module | None
  model: byte_latent.ByteLatent

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
    return Cache(
      self.entropy and self.entropy.init_cache(batch_size, length),
      self.model.init_cache(batch_size, length),
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
    logits_BTV, inner = self.model(
      ids_BT, documents_BT, cache and cache.model, entropy_BT=entropy_BT
    )
    return logits_BTV, None if cache is None else Cache(state, inner)
