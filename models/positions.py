"""Relative positions: rotary embedding, and a bias linear in the distance."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rotation(NamedTuple):
  """Cosines and sines of the angle of each position and feature pair.

  Computed once per forward pass: inside every layer XLA would evaluate them
  again for every head.
  """

  cos_BTK: jax.Array
  sin_BTK: jax.Array


@dataclasses.dataclass(frozen=True)
class Linear:
  """Positions divided by a factor (arXiv 2306.15595)."""

  factor: float

  def __call__(self, frequency_K: np.ndarray) -> np.ndarray:
    return frequency_K / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3:
  """Slow pairs turn `factor` times slower, fast ones as before.

  Pairs that turn less than low_frequency times over original_length are slow,
  those that turn more than high_frequency times fast; between, the frequency
  is interpolated, as transformers does for Llama 3.1 (arXiv 2407.21783).
  """

  factor: float
  low_frequency: float
  high_frequency: float
  original_length: int

  def __call__(self, frequency_K: np.ndarray) -> np.ndarray:
    turns_K = self.original_length * frequency_K / (2 * math.pi)
    span = self.high_frequency - self.low_frequency
    kept_K = np.clip((turns_K - self.low_frequency) / span, 0.0, 1.0)
    return frequency_K * (kept_K + (1 - kept_K) / self.factor)


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Queries and keys turn with their position (RoFormer, arXiv 2104.09864).

  theta: pair i of K/2 turns by theta^(-2i/K) per position.
  scaling: changes these frequencies: Linear or Llama3.
  """

  theta: float = 10_000.0
  scaling: Any = None

  def turn(self, position_BT: jax.Array, head_width: int) -> Rotation:
    """Angles of integer positions, exact to 1e-6 at any position.

    An angle is a fraction of a turn in 32 bits, whose product with a position
    wraps around as the angle does. Rounding a frequency to such fractions
    moves keys d positions away by less than 1e-9 d, while the float32 product
    is wrong by 1e-2 at position 10^6.
    """
    half = head_width // 2
    frequency_K = self.theta ** (-np.arange(half) / half)
    if self.scaling is not None:
      frequency_K = self.scaling(frequency_K)
    step_K = np.round(frequency_K / (2 * math.pi) * 2**32).astype(np.uint32)
    phase_BTK = position_BT.astype(jnp.uint32)[..., None] * step_K[None, None]
    signed_BTK = jax.lax.bitcast_convert_type(phase_BTK, jnp.int32)
    angle_BTK = signed_BTK.astype(jnp.float32) * (2 * math.pi / 2**32)
    # A loop, because XLA fuses anything else into its users, through barriers.
    waves = jax.lax.map(
      lambda i: jnp.where(i == 0, jnp.cos(angle_BTK), jnp.sin(angle_BTK)),
      jnp.arange(2),
    )
    return Rotation(waves[0], waves[1])

  def slopes(self, heads: int) -> tuple[float, ...]:
    """None: distances add nothing to the logits."""
    return ()


@dataclasses.dataclass(frozen=True)
class Alibi:
  """Logits fall by slope * distance, a slope per head (arXiv 2108.12409)."""

  def turn(self, position_BT: jax.Array, head_width: int) -> None:
    """Nothing turns."""

  def slopes(self, heads: int) -> tuple[float, ...]:
    """2^(-8h/H) for h = 1..H; for H no power of two, as the authors fill up.

    That is every second slope of the next power of two after those of the one
    below.
    """
    below = 2 ** int(math.log2(heads))
    first = 2.0 ** (-8 * np.arange(1, below + 1) / below)
    more = 2.0 ** (-4 * np.arange(1, 2 * below, 2) / below)
    return tuple(np.concatenate([first, more])[:heads].tolist())


def rotate(x_BTHK: jax.Array, turn: Rotation | None) -> jax.Array:
  """Rotates feature pairs (i, i + K/2); the dtype stays that of the input.

  The pairing is the half-split one of Llama; weights of an interleaved model
  (pairs 2i, 2i+1) need a fixed permutation of each head's outputs.
  """
  if turn is None:
    return x_BTHK
  cos, sin = turn.cos_BTK[:, :, None], turn.sin_BTK[:, :, None]
  first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return rotated.astype(x_BTHK.dtype)
