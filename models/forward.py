"""Any model of this package as a pure function of its parameters."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


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
) -> Callable[..., tuple[jax.Array, Any]]:
  """(params, ids_BT, documents_BT, cache) -> (logits_BTV, cache), likewise."""

  def apply(
    params: Any,
    ids_BT: jax.Array,
    documents_BT: jax.Array,
    cache: Any,
    **stored: jax.Array,
  ) -> tuple[jax.Array, Any]:
    extra = {f'{name}_BT': x_BT for name, x_BT in stored.items()}
    return model.apply({'params': params}, ids_BT, documents_BT, cache, **extra)

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
