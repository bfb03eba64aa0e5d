"""Truncation by probability and entropy (in nats) of the law entering a rule.

Logits in, float32 logits out, -inf = dropped. As in `samplers.truncation` each
rule keeps ties together, never drops all and takes `min_keep`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from samplers import knobs
from samplers import sums
from samplers import threshold
from samplers import truncation

_NOT_ABOVE_ONE = 'must lie in (0, 1]; 1 turns it off'
_BELOW_ONE = 'must lie in [0, 1); 0 turns it off'


class Law(NamedTuple):
  """What the logits of each row say."""

  p_BV: jax.Array
  log_p_BV: jax.Array  # -inf where dropped
  entropy_B1: jax.Array  # nats


def law(logits_BV: jax.Array) -> Law:
  """Normalised from the shifted row; a row of only -inf has p = 0."""
  max_B1 = jnp.max(logits_BV, axis=1, keepdims=True)
  shifted_BV = logits_BV - jnp.where(max_B1 == -jnp.inf, 0.0, max_B1)
  weights_BV = jnp.exp(shifted_BV)
  total_B1 = sums.column(weights_BV)
  total_B1 = jnp.where(total_B1 > 0, total_B1, 1.0)
  p_BV = weights_BV / total_B1
  log_p_BV = shifted_BV - jnp.log(total_B1)
  terms_BV = jnp.where(p_BV > 0, -p_BV * log_p_BV, 0.0)
  return Law(p_BV, log_p_BV, sums.column(terms_BV))


@knobs.register
@dataclasses.dataclass(frozen=True)
class Typical:
  """Keeps the fewest tokens of mass >= mass whose surprise is nearest H.

  The best token may go. 1 changes nothing. Meister et al. 2023, Locally
  Typical Sampling.
  """

  mass: knobs.Number = 1.0
  min_keep: knobs.Number | None = None

  truncates = True

  def __post_init__(self) -> None:
    knobs.settle(
      self,
      'mass',
      float,
      'typical mass',
      _NOT_ABOVE_ONE,
      lambda mass: (mass > 0) & (mass <= 1),
    )
    truncation.settle_min_keep(self, 'typical')

  def __call__(self, logits_BV: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    mass_B1 = knobs.column(self.mass)
    p_BV, log_p_BV, entropy_B1 = law(logits_BV)
    nearness_BV = -jnp.abs(-log_p_BV - entropy_B1)
    is_off_B1 = mass_B1 >= 1.0
    total_B1 = sums.column(p_BV)
    budget_B1 = jnp.where(is_off_B1, jnp.inf, (1.0 - mass_B1) * total_B1)
    keep_BV = threshold.drop_lowest(nearness_BV, p_BV, budget_B1)
    keep_BV = truncation.with_best(keep_BV, nearness_BV, self.min_keep)
    return jnp.where(is_off_B1 | keep_BV, logits_BV, -jnp.inf)


@knobs.register
@dataclasses.dataclass(frozen=True)
class Epsilon:
  """Keeps what has a probability >= epsilon; 0 changes nothing.

  Hewitt, Manning and Liang 2022, Truncation Sampling as Language Model
  Desmoothing.
  """

  epsilon: knobs.Number = 0.0
  min_keep: knobs.Number | None = None

  truncates = True

  def __post_init__(self) -> None:
    _settle_epsilon(self, 'epsilon')

  def __call__(self, logits_BV: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    keep_BV = law(logits_BV).p_BV >= knobs.column(self.epsilon)
    return _kept(keep_BV, logits_BV, self.min_keep)


@knobs.register
@dataclasses.dataclass(frozen=True)
class Eta:
  """Keeps p >= min(epsilon, sqrt(epsilon) exp(-H)); 0 changes nothing.

  Source as Epsilon; H is of the row, not of the batch.
  """

  epsilon: knobs.Number = 0.0
  min_keep: knobs.Number | None = None

  truncates = True

  def __post_init__(self) -> None:
    _settle_epsilon(self, 'eta')

  def __call__(self, logits_BV: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    epsilon_B1 = knobs.column(self.epsilon)
    p_BV, _, entropy_B1 = law(logits_BV)
    relative_B1 = jnp.sqrt(epsilon_B1) * jnp.exp(-entropy_B1)
    keep_BV = p_BV >= jnp.minimum(epsilon_B1, relative_B1)
    return _kept(keep_BV, logits_BV, self.min_keep)


@knobs.register
@dataclasses.dataclass(frozen=True)
class TopH:
  """Keeps the longest prefix, best first, of entropy <= alpha H; 1 is off.

  The entropy is that of the renormalised prefix, which grows with it, so that
  it can be bisected. Baghaei Potraghloo et al. 2025, Top-H Decoding.
  """

  alpha: knobs.Number = 1.0
  min_keep: knobs.Number | None = None

  truncates = True

  def __post_init__(self) -> None:
    _settle_alpha(self)
    truncation.settle_min_keep(self, 'top-h')

  def __call__(self, logits_BV: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    alpha_B1 = knobs.column(self.alpha)
    p_BV, log_p_BV, entropy_B1 = law(logits_BV)
    terms_BV = jnp.where(p_BV > 0, -p_BV * log_p_BV, 0.0)
    is_off_B1 = alpha_B1 >= 1.0
    limit_B1 = jnp.where(is_off_B1, -jnp.inf, alpha_B1 * entropy_B1)
    keys_BV = threshold.ordered(logits_BV)

    # A prefix of mass m has entropy (sum of -p log p) / m + log m.
    def fits(mass_B1: jax.Array, terms_B1: jax.Array) -> jax.Array:
      return terms_B1 / mass_B1 + jnp.log(mass_B1) <= limit_B1

    low_B1 = threshold.longest_prefix(logits_BV, (p_BV, terms_BV), fits)
    # The next group stays too if one token of it fits: ties are not split.
    rest_BV = keys_BV < low_B1
    next_B1, next_p_B1, next_log_p_B1 = (
      jnp.max(jnp.where(rest_BV, x_BV, least), axis=1, keepdims=True)
      for x_BV, least in (
        (logits_BV, -jnp.inf),
        (p_BV, 0.0),
        (log_p_BV, -jnp.inf),
      )
    )
    next_term_B1 = jnp.where(next_p_B1 > 0, -next_p_B1 * next_log_p_B1, 0.0)
    mass_B1, sum_B1 = (
      sums.column(jnp.where(rest_BV, 0.0, x_BV))
      for x_BV in (p_BV, terms_BV)
    )
    one_fits_B1 = fits(mass_B1 + next_p_B1, sum_B1 + next_term_B1)
    least_B1 = jnp.where(one_fits_B1, threshold.ordered(next_B1), low_B1)
    # Tokens of no weight would fit without end.
    keep_BV = (keys_BV >= least_B1) & (p_BV > 0)
    keep_BV = truncation.with_best(keep_BV, logits_BV, self.min_keep)
    return jnp.where(is_off_B1 | keep_BV, logits_BV, -jnp.inf)


@knobs.register
@dataclasses.dataclass(frozen=True)
class TopHOfHundred:
  """Top-h as transformers has it, among the 100 best only; 1 is off.

  Keeps the prefix, best first, whose terms -p log p sum to at most alpha times
  their total, p being renormalised once over those 100. At 1 transformers
  still keeps no more than 100 tokens; this rule then changes nothing.
  """

  alpha: knobs.Number = 1.0

  truncates = True

  def __post_init__(self) -> None:
    _settle_alpha(self)

  def __call__(self, logits_BV: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    alpha_B1 = knobs.column(self.alpha)
    best_BN = threshold.top_values(logits_BV, min(100, logits_BV.shape[1]))
    p_BN, log_p_BN, entropy_B1 = law(best_BN)
    terms_BN = jnp.where(p_BN > 0, -p_BN * log_p_BN, 0.0)
    fits_BN = jnp.cumsum(terms_BN, axis=1) <= alpha_B1 * entropy_B1
    fits_BN &= p_BN > 0
    # A slice of them would make XLA sort the whole row (jaxlib 0.10.2).
    first_B1 = jnp.max(best_BN, axis=1, keepdims=True)
    least_B1 = jnp.min(
      jnp.where(fits_BN, best_BN, first_B1), axis=1, keepdims=True
    )
    keep_BV = (alpha_B1 >= 1.0) | (logits_BV >= least_B1)
    return jnp.where(keep_BV, logits_BV, -jnp.inf)


def _kept(
  keep_BV: jax.Array, logits_BV: jax.Array, min_keep: knobs.Number | None
) -> jax.Array:
  """The kept logits and always the best, with its ties, or the best few."""
  keep_BV |= logits_BV == jnp.max(logits_BV, axis=1, keepdims=True)
  keep_BV = truncation.with_best(keep_BV, logits_BV, min_keep)
  return jnp.where(keep_BV, logits_BV, -jnp.inf)


def _settle_epsilon(rule: Epsilon | Eta, label: str) -> None:
  knobs.settle(
    rule,
    'epsilon',
    float,
    f'{label} epsilon',
    _BELOW_ONE,
    lambda epsilon: (epsilon >= 0) & (epsilon < 1),
  )
  truncation.settle_min_keep(rule, label)


def _settle_alpha(rule: TopH | TopHOfHundred) -> None:
  knobs.settle(
    rule,
    'alpha',
    float,
    'top-h alpha',
    _NOT_ABOVE_ONE,
    lambda alpha: (alpha > 0) & (alpha <= 1),
  )
