"""Rotary embedding as a product of complex numbers in float64."""

import jax.numpy as jnp
import numpy as np

from models import positions

POSITIONS = np.array([[0, 1, 5, 1000], [3, 2, 70_000, 4]])


def _turned(x, theta):
  half = x.shape[-1] // 2
  frequency = float(theta) ** (-np.arange(half) / half)
  wave = np.exp(1j * POSITIONS[:, :, None, None] * frequency)
  pair = (x[..., :half] + 1j * x[..., half:]) * wave
  return np.concatenate([pair.real, pair.imag], axis=-1)


def _rotate(x, theta):
  turn = positions.Rotary(theta).turn(
    jnp.asarray(POSITIONS, jnp.int32), x.shape[-1]
  )
  return positions.rotate(x, turn)


def test_pairs_turn_by_position_times_frequency():
  x = np.random.default_rng(0).normal(size=(2, 4, 3, 6)).astype(np.float32)
  for theta in (10_000.0, 500_000.0):
    # Angles of thousands of turns are rounded to float32.
    found, expected = _rotate(jnp.asarray(x), theta), _turned(x, theta)
    np.testing.assert_allclose(found, expected, atol=2e-2)
    np.testing.assert_allclose(found[:, [0, 1, 3]], expected[:, [0, 1, 3]],
                               atol=5e-4)


def test_the_angles_stay_float32_for_bfloat16_inputs():
  x = np.random.default_rng(1).normal(size=(2, 4, 3, 6))
  half = jnp.asarray(x, jnp.bfloat16)
  found = _rotate(half, 10_000.0)
  assert found.dtype == jnp.bfloat16
  expected = _turned(np.asarray(half, np.float64), 10_000.0)
  np.testing.assert_allclose(found.astype(np.float32), expected, atol=0.04)
