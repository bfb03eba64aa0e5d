"""Temperature and truncation: logits in, float32 logits out, -inf = dropped.

Each rule renormalises over what the rules before it left, keeps tied logits
together and never drops all. `min_keep` tokens stay whatever the rule says,
with their ties; None, or 1, asks for no more than the rule keeps by itself.
"""

import dataclasses

import jax
import jax.numpy as jnp

from samplers import draw
from samplers import knobs
from samplers import sums
from samplers import threshold

# Below this temperature a row is greedy: dividing by less overflows float32.
GREEDY_BELOW = 1e-5
# Above it all is uniform. XLA divides by way of the inverse, which a larger one
# would not have in float32, so that -inf became NaN.
_HOTTEST = 1e37


@knobs.register
@dataclasses.dataclass(frozen=True)
class Temperature:
  """Divides the logits; 1 changes nothing, 0 keeps only the (first) argmax."""

  temperature: knobs.Number = 1.0

  def __post_init__(self) -> None:
    knobs.settle(
      self,
      'temperature',
      float,
      'temperature',
      'must be a finite number >= 0; 0 is greedy, 1 leaves the distribution'
      ' as it is',
      lambda t: (t >= 0) & (t < float('inf')),
    )

  def is_greedy(self) -> jax.Array:
    """[B, 1] or [1, 1]."""
    return knobs.column(self.temperature) < GREEDY_BELOW

  def __call__(self, logits_BV: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    greedy_B1 = self.is_greedy()
    divisor_B1 = jnp.minimum(knobs.column(self.temperature), _HOTTEST)
    divisor_B1 = jnp.where(greedy_B1, 1.0, divisor_B1)
    max_B1 = jnp.max(logits_BV, axis=1, keepdims=True)
    # Huge logits must not become infinite, and thereby equal or dropped.
    overflows_B1 = jnp.isfinite(max_B1) & jnp.isinf(max_B1 / divisor_B1)
    shifted_BV = logits_BV - jnp.where(overflows_B1, max_B1, 0.0)
    # The argmax is several times the cost of the division.
    return jax.lax.cond(
      jnp.any(greedy_B1),
      lambda: jnp.where(
        greedy_B1, _best_only(logits_BV), shifted_BV / divisor_B1
      ),
      lambda: shifted_BV / divisor_B1,
    )


@knobs.register
@dataclasses.dataclass(frozen=True)
class TopK:
  """Keeps the logits not below the k-th largest; 0 or >= V changes nothing."""

  k: knobs.Number = 0
  min_keep: knobs.Number | None = None

  truncates = True

  def __post_init__(self) -> None:
    knobs.settle(
      self,
      'k',
      int,
      'top-k k',
      'must be a whole number >= 0; 0 turns it off',
      lambda k: k >= 0,
    )
    settle_min_keep(self, 'top-k')

  def __call__(self, logits_BV: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    k_B1 = knobs.column(self.k, jnp.int32)
    is_off_B1 = (k_B1 <= 0) | (k_B1 >= logits_BV.shape[1])
    if self.min_keep is not None:
      k_B1 = jnp.maximum(k_B1, knobs.column(self.min_keep, jnp.int32))
    # One is the quickest to find, for rows that do not use it.
    keep_BV = threshold.largest(logits_BV, jnp.where(is_off_B1, 1, k_B1))
    return jnp.where(is_off_B1 | keep_BV, logits_BV, -jnp.inf)


@knobs.register
@dataclasses.dataclass(frozen=True)
class TopP:
  """Keeps the fewest largest logits of mass >= p; 1 changes nothing.

  As in transformers, a token goes when it and all below it weigh <= 1 - p.
  Holtzman et al. 2020, The Curious Case of Neural Text Degeneration.
  """

  p: knobs.Number = 1.0
  min_keep: knobs.Number | None = None

  truncates = True

  def __post_init__(self) -> None:
    knobs.settle(
      self,
      'p',
      float,
      'top-p p',
      'must lie in (0, 1]; 1 turns it off',
      lambda p: (p > 0) & (p <= 1),
    )
    settle_min_keep(self, 'top-p')

  def __call__(self, logits_BV: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    p_B1 = knobs.column(self.p)
    weights_BV = draw.weigh(logits_BV)
    total_B1 = sums.column(weights_BV)
    # 1 - p = 0 would still drop tokens whose weight underflowed.
    is_off_B1 = p_B1 >= 1.0
    budget_B1 = jnp.where(is_off_B1, jnp.inf, (1.0 - p_B1) * total_B1)
    keep_BV = threshold.drop_lowest(logits_BV, weights_BV, budget_B1)
    keep_BV = with_best(keep_BV, logits_BV, self.min_keep)
    return jnp.where(is_off_B1 | keep_BV, logits_BV, -jnp.inf)


@knobs.register
@dataclasses.dataclass(frozen=True)
class MinP:
  """Keeps what is at least m times as probable as the best; 0 is off.

  Nguyen et al. 2025, Turning Up the Heat: Min-p Sampling.
  """

  m: knobs.Number = 0.0
  min_keep: knobs.Number | None = None

  truncates = True

  def __post_init__(self) -> None:
    knobs.settle(
      self,
      'm',
      float,
      'min-p m',
      'must lie in [0, 1]; 0 turns it off',
      lambda m: (m >= 0) & (m <= 1),
    )
    settle_min_keep(self, 'min-p')

  def __call__(self, logits_BV: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    max_B1 = jnp.max(logits_BV, axis=1, keepdims=True)
    keep_BV = logits_BV >= max_B1 + jnp.log(knobs.column(self.m))
    keep_BV = with_best(keep_BV, logits_BV, self.min_keep)
    return jnp.where(keep_BV, logits_BV, -jnp.inf)


@knobs.register
@dataclasses.dataclass(frozen=True)
class TopNSigma:
  """Keeps logits within n standard deviations of the largest; 0 is off.

  The deviation is the population's, over finite logits. A temperature before
  it changes nothing. Tang et al. 2025, Top-n-sigma: Not All Logits Are You
  Need.
  """

  n: knobs.Number = 0.0
  min_keep: knobs.Number | None = None

  truncates = True

  def __post_init__(self) -> None:
    knobs.settle(
      self,
      'n',
      float,
      'top-n-sigma n',
      'must be a finite number >= 0; 0 turns it off',
      lambda n: (n >= 0) & (n < float('inf')),
    )
    settle_min_keep(self, 'top-n-sigma')

  def __call__(self, logits_BV: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    n_B1 = knobs.column(self.n)
    finite_BV = logits_BV > -jnp.inf
    max_B1 = jnp.max(logits_BV, axis=1, keepdims=True)
    # Halved, and in units of the largest gap, so that nothing overflows.
    gaps_BV = jnp.where(finite_BV, 0.5 * max_B1 - 0.5 * logits_BV, 0.0)
    widest_B1 = jnp.max(gaps_BV, axis=1, keepdims=True)
    gaps_BV /= jnp.where(widest_B1 > 0, widest_B1, 1.0)
    count_B1 = jnp.maximum(jnp.sum(finite_BV, axis=1, keepdims=True), 1)
    mean_B1 = sums.column(gaps_BV) / count_B1
    squares_BV = jnp.where(finite_BV, jnp.square(gaps_BV - mean_B1), 0.0)
    sigma_B1 = jnp.sqrt(sums.column(squares_BV) / count_B1)
    keep_BV = with_best(gaps_BV <= n_B1 * sigma_B1, logits_BV, self.min_keep)
    return jnp.where((n_B1 <= 0) | keep_BV, logits_BV, -jnp.inf)


def settle_min_keep(rule: object, label: str) -> None:
  knobs.settle(
    rule,
    'min_keep',
    int,
    f'{label} min_keep',
    'must be a whole number >= 1; 1 keeps no more than the rule itself',
    lambda m: m >= 1,
  )


def with_best(
  keep_BV: jax.Array, values_BV: jax.Array, min_keep: knobs.Number | None
) -> jax.Array:
  """The kept set and the `min_keep` largest values, with their ties."""
  if min_keep is None:
    return keep_BV
  return keep_BV | threshold.largest(
    values_BV, knobs.column(min_keep, jnp.int32)
  )


def _best_only(logits_BV: jax.Array) -> jax.Array:
  """-inf everywhere but at the first largest logit."""
  best_B1 = jnp.argmax(logits_BV, axis=1, keepdims=True)
  is_best_BV = jnp.arange(logits_BV.shape[1])[None] == best_B1
  return jnp.where(is_best_BV, logits_BV, -jnp.inf)
