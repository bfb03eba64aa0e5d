"""Temperature, top-k and top-p: logits in, float32 logits out, -inf = dropped.

A knob is a number or one value per row; being a pytree leaf, it never causes a
recompilation. Thresholds are found without sorting the vocabulary: order is
that of the bits of a float, so the threshold is built from its highest bit down
(16 passes of two bits), exactly, and tied logits are kept together.
"""

import dataclasses
import numbers

import jax
import jax.numpy as jnp

# Below this temperature a row is greedy: dividing by less overflows float32.
GREEDY_BELOW = 1e-5

_BITS_PER_PASS = 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Temperature:
  """Divides the logits; 1 changes nothing, 0 keeps only the (first) argmax."""

  temperature: float | jax.Array = 1.0

  def __post_init__(self) -> None:
    if isinstance(self.temperature, numbers.Real):
      if not 0 <= self.temperature < float('inf'):
        raise ValueError(
          f'temperature={self.temperature} must be a finite number >= 0;'
          ' 0 is greedy, 1 leaves the distribution as it is'
        )
      object.__setattr__(self, 'temperature', float(self.temperature))

  def __call__(self, logits_BV: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    temperature_B1 = _column(self.temperature, jnp.float32)
    greedy_B1 = temperature_B1 < GREEDY_BELOW
    best_B1 = jnp.argmax(logits_BV, axis=-1, keepdims=True)
    is_best_BV = jnp.arange(logits_BV.shape[-1])[None] == best_B1
    return jnp.where(
      greedy_B1,
      jnp.where(is_best_BV, logits_BV, -jnp.inf),
      logits_BV / jnp.where(greedy_B1, 1.0, temperature_B1),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopK:
  """Keeps the logits not below the k-th largest; 0 or >= V changes nothing."""

  k: int | jax.Array = 0

  def __post_init__(self) -> None:
    if isinstance(self.k, numbers.Real):
      if self.k != self.k or self.k < 0 or self.k % 1:
        raise ValueError(
          f'top-k k={self.k} must be a whole number >= 0; 0 turns it off'
        )
      object.__setattr__(self, 'k', int(self.k))

  def __call__(self, logits_BV: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    k_B1 = _column(self.k, jnp.int32)
    # The k-th largest is the largest value with at most V - k logits below it.
    keep_BV = _drop_lowest(
      logits_BV,
      jnp.ones_like(logits_BV, jnp.int32),
      logits_BV.shape[-1] - k_B1,
    )
    return jnp.where((k_B1 <= 0) | keep_BV, logits_BV, -jnp.inf)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopP:
  """Keeps the fewest largest logits of mass >= p; 1 changes nothing.

  As in transformers, a token goes when it and all below it weigh <= 1 - p.
  """

  p: float | jax.Array = 1.0

  def __post_init__(self) -> None:
    if isinstance(self.p, numbers.Real):
      if not 0 < self.p <= 1:
        raise ValueError(f'top-p p={self.p} must lie in (0, 1]; 1 turns it off')
      object.__setattr__(self, 'p', float(self.p))

  def __call__(self, logits_BV: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    p_B1 = _column(self.p, jnp.float32)
    max_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    # A row of nothing but -inf would otherwise turn into NaN.
    weights_BV = jnp.exp(logits_BV - jnp.where(max_B1 == -jnp.inf, 0.0, max_B1))
    total_B1 = jnp.sum(weights_BV, axis=-1, keepdims=True)
    keep_BV = _drop_lowest(logits_BV, weights_BV, (1.0 - p_B1) * total_B1)
    # 1 - p = 0 would still drop tokens whose weight underflowed.
    return jnp.where((p_B1 >= 1.0) | keep_BV, logits_BV, -jnp.inf)


def _column(knob: float | jax.Array, dtype: jnp.dtype) -> jax.Array:
  """A knob as [B, 1], or [1, 1] when it is one number for all rows."""
  return jnp.reshape(jnp.asarray(knob, dtype), (-1, 1))


def _drop_lowest(
  logits_BV: jax.Array, weights_BV: jax.Array, budget_B1: jax.Array
) -> jax.Array:
  """True where kept after dropping, from below, tie groups within the budget.

  The threshold is the largest value under which the weights sum to no more
  than `budget_B1`. Sums of non-negative floats in one fixed order are monotone
  in the set summed, so the bisection is well defined under rounding too. The
  largest logit always stays.
  """
  ordered_BV = _ordered(logits_BV)
  digits_C = jnp.arange(1, 2**_BITS_PER_PASS, dtype=jnp.uint32)

  def refine(step: jax.Array, threshold_B1: jax.Array) -> jax.Array:
    shift = (32 - _BITS_PER_PASS * (step + 1)).astype(jnp.uint32)
    candidates_BC = threshold_B1 + (digits_C << shift)[None]
    below_BCV = ordered_BV[:, None, :] < candidates_BC[:, :, None]
    sums_BC = jnp.sum(jnp.where(below_BCV, weights_BV[:, None, :], 0), axis=-1)
    digit_B1 = jnp.sum(sums_BC <= budget_B1, axis=-1, keepdims=True)
    return threshold_B1 + (digit_B1.astype(jnp.uint32) << shift)

  threshold_B1 = jax.lax.fori_loop(
    0,
    32 // _BITS_PER_PASS,
    refine,
    jnp.zeros((logits_BV.shape[0], 1), jnp.uint32),
  )
  largest_B1 = jnp.max(ordered_BV, axis=-1, keepdims=True)
  return ordered_BV >= jnp.minimum(threshold_B1, largest_B1)


def _ordered(values: jax.Array) -> jax.Array:
  """Unsigned integers in the order of float32 values; -0 and 0 are equal."""
  bits = jax.lax.bitcast_convert_type(
    jnp.where(values == 0, 0.0, values), jnp.uint32
  )
  sign = jnp.uint32(1 << 31)
  return jnp.where(bits >= sign, ~bits, bits | sign)
