"""Any model of this package as a pure function of its parameters."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax


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
def step(
  model: nn.Module,
) -> Callable[[Any, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]:
  """(params, ids_BT, documents_BT, cache) -> (logits_BTV, cache), likewise."""

  def apply(
    params: Any, ids_BT: jax.Array, documents_BT: jax.Array, cache: Any
  ) -> tuple[jax.Array, Any]:
    return model.apply({'params': params}, ids_BT, documents_BT, cache)

  return apply
