"""Rotary position embedding (Su et al., RoFormer, arXiv 2104.09864)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rotation(NamedTuple):
  """Cosines and sines of the angle of each position and feature pair.

  Computed once per forward pass: inside every layer XLA would evaluate them
  again for every head.
  """

  cos_BTK: jax.Array
  sin_BTK: jax.Array


def rotation(
  position_BT: jax.Array, *, head_width: int, theta: float
) -> Rotation:
  """Angles position * theta^(-2i/K) of the pairs i < K/2, in float32."""
  half = head_width // 2
  frequency_K = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle_BTK = (
    position_BT.astype(jnp.float32)[..., None] * frequency_K[None, None]
  )
  # A loop, because XLA fuses anything else into its users, through barriers.
  waves = jax.lax.map(
    lambda i: jnp.where(i == 0, jnp.cos(angle_BTK), jnp.sin(angle_BTK)),
    jnp.arange(2),
  )
  return Rotation(waves[0], waves[1])


def rotate(x_BTHK: jax.Array, turn: Rotation) -> jax.Array:
  """Rotates feature pairs (i, i + K/2); the dtype stays that of the input.

  The pairing is the half-split one of Llama; weights of an interleaved model
  (pairs 2i, 2i+1) need a fixed permutation of each head's outputs.
  """
  cos, sin = turn.cos_BTK[:, :, None], turn.sin_BTK[:, :, None]
  first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return rotated.astype(x_BTHK.dtype)
