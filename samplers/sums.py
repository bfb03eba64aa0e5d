"""Sums of rows that do not depend on how many rows there are.

XLA sums arrays of fewer than 4096 numbers in another order than larger ones,
and the products of a lone row in a third (jaxlib 0.10.2, CPU): its neighbours
would decide what lies within rounding of a threshold.
"""

import jax
import jax.numpy as jnp

_LEAST = 4096


def last(x: jax.Array) -> jax.Array:
  """Over the last axis of [B, ...], in an order that B does not change."""
  count = len(x)
  rows = max(2, -(-_LEAST * count // max(x.size, 1)))
  if count < rows:
    fill = [(0, rows - count)] + [(0, 0)] * (x.ndim - 1)
    x = jnp.pad(x, fill)
  return jnp.sum(x, axis=-1)[:count]


def column(x_BV: jax.Array) -> jax.Array:
  """[B, 1]: the sum of each row."""
  return last(x_BV)[:, None]
