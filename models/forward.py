"""Any model of this package as a pure function of its parameters."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax


@functools.lru_cache
def pure(
  model: nn.Module,
) -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
  """(params, ids_BT, documents_BT) -> logits_BTV, one object per model.

  Equal modules give the same function, so that a jitted caller that takes it
  as a static argument compiles once.
  """

  def apply(
    params: Any, ids_BT: jax.Array, documents_BT: jax.Array
  ) -> jax.Array:
    return model.apply({'params': params}, ids_BT, documents_BT)[0]

  return apply
