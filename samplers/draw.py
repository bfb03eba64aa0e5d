"""One draw per row from its logits, with its own key.

Inverse transform sampling in two steps, a block of ids and then an id in it:
two uniform numbers per row, where Gumbel noise needs one per id.
"""

import jax
import jax.numpy as jnp

from samplers import sums


def draw(keys_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
  """One int32 id per row, id 0 for a row of nothing but -inf.

  Each step resolves 2**-23 of its mass. An id of weight 0 is never drawn.
  """
  num_ids = logits_BV.shape[1]
  size = 1 << (num_ids.bit_length() + 1) // 2
  weights_BV = weigh(logits_BV.astype(jnp.float32))
  weights_BV = jnp.pad(weights_BV, ((0, 0), (0, -num_ids % size)))
  weights_BGS = weights_BV.reshape(len(weights_BV), -1, size)
  uniform_B2 = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys_B)
  block_B = _invert(sums.last(weights_BGS), uniform_B2[:, :1])
  weights_BS = jnp.take_along_axis(weights_BGS, block_B[:, None, None], axis=1)[
    :, 0
  ]
  return block_B * size + _invert(weights_BS, uniform_B2[:, 1:])


def weigh(logits_BV: jax.Array) -> jax.Array:
  """Weights proportional to the law, at most 1; 0 in a row of only -inf."""
  max_B1 = jnp.max(logits_BV, axis=1, keepdims=True)
  # A row of nothing but -inf would otherwise turn into NaN.
  return jnp.exp(logits_BV - jnp.where(max_B1 == -jnp.inf, 0.0, max_B1))


def _invert(weights_BN: jax.Array, uniform_B1: jax.Array) -> jax.Array:
  """First index where the running sum exceeds a uniform share of the total."""
  sums_BN = jnp.cumsum(weights_BN, axis=1)
  # A parallel sum may round upwards and down again: weight 0 is ruled out.
  reached_BN = (sums_BN > uniform_B1 * sums_BN[:, -1:]) & (weights_BN > 0)
  index_B = jnp.argmax(reached_BN, axis=1)
  heaviest_B = jnp.argmax(weights_BN, axis=1)
  any_B = jnp.any(reached_BN, axis=1)
  return jnp.where(any_B, index_B, heaviest_B).astype(jnp.int32)
