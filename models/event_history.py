"""Events as they follow those of a history that has been read before."""

import jax
import jax.numpy as jnp

from models import masks


def tokens(
  documents_BE: jax.Array, length_B: jax.Array | None
) -> masks.Tokens:
  """Where events stand: in whole rows, or after `length_B` earlier ones."""
  if length_B is None:
    return masks.row_tokens(documents_BE)
  place_1E = jnp.arange(documents_BE.shape[1], dtype=jnp.int32)[None]
  return masks.Tokens(
    length_B[:, None] + place_1E, (documents_BE > 0).astype(jnp.int32)
  )


def latest(x_BSX: jax.Array, new_B: jax.Array, count: int) -> jax.Array:
  """`count` entries along S after the first new_B, as the new ones follow."""
  index_BC = new_B[:, None] + jnp.arange(count)[None]
  rest = (1,) * (x_BSX.ndim - 2)
  return jnp.take_along_axis(
    x_BSX, index_BC.reshape(*index_BC.shape, *rest), axis=1
  )
