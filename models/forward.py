"""Any model of this package as a pure function of its parameters."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import lm


@functools.lru_cache
def pure(
  model: nn.Module,
) -> Callable[..., jax.Array]:
  """(params, ids_BT, documents_BT, **stored) -> logits_BTV, one per model.

  stored: further inputs of the model, `name` for its argument `name_BT`.

  Equal modules give the same function, so that a jitted caller that takes it
  as a static argument compiles once.
  """

  def apply(
    params: Any,
    ids_BT: jax.Array,
    documents_BT: jax.Array,
    **stored: jax.Array,
  ) -> jax.Array:
    extra = {f'{name}_BT': x_BT for name, x_BT in stored.items()}
    return model.apply({'params': params}, ids_BT, documents_BT, **extra)[0]

  return apply


@functools.lru_cache
def counted(
  model: nn.Module,
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
  """As `pure`, with what the model counts: sums of all that it sows there.

  A count is a scalar of the whole batch, sown into 'counts' under its name;
  scanned layers have one each.
  """

  def apply(
    params: Any,
    ids_BT: jax.Array,
    documents_BT: jax.Array,
    **stored: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    extra = {f'{name}_BT': x_BT for name, x_BT in stored.items()}
    (logits_BTV, _), sown = model.apply(
      {'params': params}, ids_BT, documents_BT, mutable=['counts'], **extra
    )
    totals: dict[str, jax.Array] = {}
    for path, value in jax.tree_util.tree_leaves_with_path(sown):
      name = next(k.key for k in reversed(path) if hasattr(k, 'key'))
      totals[name] = totals.get(name, 0) + jnp.sum(value)
    return logits_BTV, totals

  return apply


@functools.lru_cache
def step(
  model: nn.Module,
) -> Callable[[Any, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]:
  """(params, ids_BT, documents_BT, cache) -> (logits_BTV, cache), likewise."""

  def apply(
    params: Any, ids_BT: jax.Array, documents_BT: jax.Array, cache: Any
  ) -> tuple[jax.Array, Any]:
    return model.apply({'params': params}, ids_BT, documents_BT, cache)

  return apply


@functools.lru_cache
def hidden_step(
  model: nn.Module,
) -> Callable[..., tuple[tuple[jax.Array, jax.Array], Any]]:
  """As `step`, but gives ((logits_BTV, hidden_BTD), cache).

  hidden_BTD is what the output layer reads, the module named final_norm.
  """

  def apply(
    params: Any, ids_BT: jax.Array, documents_BT: jax.Array, cache: Any
  ) -> tuple[tuple[jax.Array, jax.Array], Any]:
    (logits_BTV, cache), kept = model.apply(
      {'params': params},
      ids_BT,
      documents_BT,
      cache,
      capture_intermediates=lambda module, _: module.name == 'final_norm',
      mutable=['intermediates'],
    )
    found = [
      (len(path), value)
      for path, value in jax.tree_util.tree_leaves_with_path(kept)
      if any(getattr(key, 'key', None) == 'final_norm' for key in path)
    ]
    if not found:
      raise ValueError(
        f'{type(model).__name__} has no final_norm, whose output its hidden'
        ' states are; take a model with one'
      )
    # That of a model inside, as one for entropies, lies deeper.
    return (logits_BTV, min(found, key=lambda pair: pair[0])[1]), cache

  return apply


@functools.lru_cache
def mixing(model: nn.Module) -> tuple[int, Callable[..., Any]]:
  """For models.lm.ByteLM: what reads a weighted mean of input embeddings.

  Returns the ids before a token that its embedding depends on, C, and (params,
  recent_BMC, ids_BM, weights_BM, cache) -> (logits_BV, cache); recent_BMC are
  the ids before, oldest first and 0 where there is none.
  """
  if not isinstance(model, lm.ByteLM):
    raise ValueError(
      f'{type(model).__name__} takes no embeddings in the place of ids; use a'
      ' models.lm.ByteLM'
    )

  def mix(
    params: Any,
    recent_BMC: jax.Array,
    ids_BM: jax.Array,
    weights_BM: jax.Array,
    cache: Any,
  ) -> tuple[jax.Array, Any]:
    batch_size, count = ids_BM.shape
    ids_N1 = ids_BM.reshape(-1, 1)
    position_N1 = jnp.repeat(cache.length_B, count)[:, None]
    recent_NC = recent_BMC.reshape(batch_size * count, -1)
    embeds_N1D = params['embed']['embedding'][ids_N1]
    for name, lookup in (
      ('ngram_embed', model.ngrams),
      ('recall_embed', model.recall),
    ):
      if lookup.sizes:
        first = recent_NC.shape[1] - lookup.context
        embeds_N1D += lookup.copy(features=model.width).apply(
          {'params': params[name]}, ids_N1, position_N1, recent_NC[:, first:]
        )
    embeds_BMD = embeds_N1D.reshape(batch_size, count, -1)
    mean_BD = jnp.einsum(
      'BM,BMD->BD', weights_BM, embeds_BMD, precision='highest'
    )
    logits_B1V, cache = model.apply(
      {'params': params},
      ids_BM[:, :1],
      jnp.ones_like(ids_BM[:, :1]),
      cache,
      mean_BD[:, None],
    )
    return logits_B1V[:, 0], cache

  return max(model.ngrams.context, model.recall.context), mix
