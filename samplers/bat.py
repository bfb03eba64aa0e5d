"""Basis-aware truncation (BAT): ids that the output layer proves possible.

Below the threshold t of another rule, where that rule drops everything, an id
stays if `samplers.support` certifies it. Finlayson et al. 2024, Closing the
Curious Case of Neural Text Degeneration (arXiv 2310.01693). The proof speaks of
the model's own law: no other rule may change the logits before.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import draw
from samplers import entropy
from samplers import knobs
from samplers import support
from samplers import truncation

_COLUMNS = 20
_SHARE = 'must lie in [0, 1); 0 turns it off'
# Field, kind, demand, what is valid, the value that turns it off.
_THRESHOLDS = (
  ('eta', float, _SHARE, lambda x: (x >= 0) & (x < 1), 0),
  ('epsilon', float, _SHARE, lambda x: (x >= 0) & (x < 1), 0),
  (
    'top_p',
    float,
    'must lie in (0, 1]; 1 turns it off',
    lambda p: (p > 0) & (p <= 1),
    1,
  ),
  (
    'top_k',
    int,
    'must be a whole number >= 0; 0 turns it off',
    lambda k: k >= 0,
    0,
  ),
)


@dataclasses.dataclass(frozen=True)
class _Basis:
  """One threshold t, and the basis that looks below it.

  eta, epsilon, top_p, top_k: t as these rules have it, the smallest
    probability that they keep; at most one of them.
  columns: how many of the basis are used, by `attach`.
  basis_VC: from `support.columns`; without it the rule is that of t alone.
  """

  eta: knobs.Number = 0.0
  epsilon: knobs.Number = 0.0
  top_p: knobs.Number = 1.0
  top_k: knobs.Number = 0
  columns: knobs.Number = _COLUMNS
  basis_VC: jax.Array | np.ndarray | None = None

  truncates = True
  # For samplers.constraints.
  needs_raw_logits = True

  def __post_init__(self) -> None:
    for field, kind, demand, is_valid, _ in _THRESHOLDS:
      knobs.settle(self, field, kind, f'bat {field}', demand, is_valid)
    given = self._given()
    # Rows of arrays may differ in which of them they use.
    are_numbers = all(np.ndim(getattr(self, field)) == 0 for field in given)
    if len(given) > 1 and are_numbers:
      raise ValueError(
        f'bat has the thresholds {" and ".join(given)}; give it one'
      )
    knobs.settle(
      self,
      'columns',
      int,
      'bat columns',
      'must be a whole number >= 1; 20 is usual',
      lambda columns: columns >= 1,
    )
    if isinstance(self.basis_VC, int | float):
      raise ValueError(
        f'bat basis_VC={self.basis_VC} is made from the output layer of the'
        ' model; leave it out'
      )

  @property
  def is_active(self) -> bool:
    """Is it known to do anything?"""
    return bool(self._given())

  def _given(self) -> list[str]:
    given = []
    for field, _, _, _, off in _THRESHOLDS:
      value = knobs.on_host(getattr(self, field))
      if value is not None and np.any(np.asarray(value) != off):
        given.append(field)
    return given

  def threshold(self, law: entropy.Law, logits_BV: jax.Array) -> jax.Array:
    """[B, 1]: t, 0 where the rule is off."""
    eta_B1, top_p_B1 = knobs.column(self.eta), knobs.column(self.top_p)
    top_k_B1 = knobs.column(self.top_k, jnp.int32)
    t_B1 = jnp.maximum(
      jnp.minimum(eta_B1, jnp.sqrt(eta_B1) * jnp.exp(-law.entropy_B1)),
      knobs.column(self.epsilon),
    )

    def least_kept(rule: Any, is_on_B1: jax.Array) -> jax.Array:
      def find() -> jax.Array:
        kept_BV = rule(logits_BV) > -jnp.inf
        p_BV = jnp.where(kept_BV, law.p_BV, jnp.inf)
        least_B1 = jnp.min(p_BV, axis=1, keepdims=True)
        return jnp.where(is_on_B1 & jnp.isfinite(least_B1), least_B1, 0.0)

      return jax.lax.cond(jnp.any(is_on_B1), find, lambda: jnp.zeros_like(t_B1))

    by_p_B1 = least_kept(truncation.TopP(self.top_p), top_p_B1 < 1)
    by_k_B1 = least_kept(truncation.TopK(self.top_k), top_k_B1 > 0)
    return jnp.maximum(t_B1, jnp.maximum(by_p_B1, by_k_B1))


@knobs.register
@dataclasses.dataclass(frozen=True)
class Bat(_Basis):
  """Draws ids until one is certified, and keeps that one alone.

  After `tries` rejected ids, drawn without replacement, it is the best one.
  Where float32 cannot decide, an id is accepted. Other fields as `BatSet`.
  """

  tries: knobs.Number = 10

  # For samplers.constraints: nothing behind it has a choice left.
  leaves_one = True

  def __post_init__(self) -> None:
    super().__post_init__()
    knobs.settle(
      self,
      'tries',
      int,
      'bat tries',
      'must be a whole number >= 1; 10 is usual',
      lambda tries: tries >= 1,
    )

  def toss(self, keys_B: jax.Array) -> jax.Array:
    return keys_B

  def __call__(self, logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    law = entropy.law(logits_BV)
    t_B1 = self.threshold(law, logits_BV)
    first_B = draw.draw(_fold(keys_B, 0), logits_BV)
    is_sure_B = _at(law.p_BV, first_B) >= t_B1[:, 0]
    # Mostly the first of every row is above the threshold.
    chosen_B = jax.lax.cond(
      jnp.all(is_sure_B),
      lambda: first_B,
      lambda: self._choose(law.p_BV, logits_BV, t_B1, keys_B),
    )
    is_chosen_BV = jnp.arange(logits_BV.shape[1])[None] == chosen_B[:, None]
    return jnp.where((t_B1 <= 0) | is_chosen_BV, logits_BV, -jnp.inf)

  def _choose(
    self,
    p_BV: jax.Array,
    logits_BV: jax.Array,
    t_B1: jax.Array,
    keys_B: jax.Array,
  ) -> jax.Array:
    accepts = _judge(self.basis_VC, p_BV, t_B1)
    tries_B = knobs.column(self.tries, jnp.int32)[:, 0]
    rows_B = jnp.arange(len(p_BV))

    def advance(trial: _Trial) -> _Trial:
      active_B = ~trial.done_B & (trial.count < tries_B)
      candidate_B = draw.draw(_fold(keys_B, trial.count), trial.logits_BV)
      accepted_B = active_B & accepts(candidate_B, active_B)
      out_B = jnp.where(active_B & ~accepted_B, candidate_B, p_BV.shape[1])
      return _Trial(
        trial.count + 1,
        trial.logits_BV.at[rows_B, out_B].set(-jnp.inf, mode='drop'),
        jnp.where(accepted_B, candidate_B, trial.chosen_B),
        trial.done_B | accepted_B,
      )

    def goes_on(trial: _Trial) -> jax.Array:
      return jnp.any(~trial.done_B & (trial.count < tries_B))

    best_B = jnp.argmax(logits_BV, axis=1).astype(jnp.int32)
    start = _Trial(
      jnp.int32(0), logits_BV, best_B, jnp.zeros(len(best_B), bool)
    )
    return jax.lax.while_loop(goes_on, advance, start).chosen_B


@knobs.register
@dataclasses.dataclass(frozen=True)
class BatSet(_Basis):
  """Keeps all certified ids, at least the best; other rules may follow.

  Decides on every id of the vocabulary in every step, so it is for small ones
  and for analysis.
  """

  def __call__(self, logits_BV: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    law = entropy.law(logits_BV)
    t_B1 = self.threshold(law, logits_BV)
    keep_BV = certified(self.basis_VC, law.p_BV, t_B1)
    keep_BV |= logits_BV == jnp.max(logits_BV, axis=1, keepdims=True)
    return jnp.where((t_B1 <= 0) | keep_BV, logits_BV, -jnp.inf)


class _Trial(NamedTuple):
  """How far the rows are."""

  count: jax.Array
  logits_BV: jax.Array  # -inf where rejected
  chosen_B: jax.Array
  done_B: jax.Array


def certified(
  basis_VC: jax.Array | None, p_BV: jax.Array, t_B1: jax.Array
) -> jax.Array:
  """[B, V]: ids that are not proved to be possibly impossible."""
  if basis_VC is None:
    return p_BV >= t_B1
  accepts = _judge(basis_VC, p_BV, t_B1)
  open_BV = (p_BV < t_B1) & (p_BV > 0)
  order_BV = jnp.argsort(~open_BV, axis=1, stable=True)
  count_B = jnp.sum(open_BV, axis=1)
  rows_B = jnp.arange(len(p_BV))

  def advance(carry: tuple[jax.Array, jax.Array]) -> tuple:
    place, keep_BV = carry
    id_B = jax.lax.dynamic_index_in_dim(order_BV, place, 1, keepdims=False)
    active_B = place < count_B
    accepted_B = active_B & accepts(id_B, active_B)
    out_B = jnp.where(accepted_B, id_B, p_BV.shape[1])
    return place + 1, keep_BV.at[rows_B, out_B].set(True, mode='drop')

  return jax.lax.while_loop(
    lambda carry: carry[0] < jnp.max(count_B),
    advance,
    (jnp.int32(0), p_BV >= t_B1),
  )[1]


def attach(
  rules: tuple[Any, ...], output_VD: Callable[[], Any]
) -> tuple[Any, ...]:
  """The rules, those of BAT with the basis of a model.

  output_VD: called if there is such a rule; gives the output layer, logits =
    output_VD @ hidden.
  """
  return tuple(
    dataclasses.replace(
      rule, basis_VC=support.columns(output_VD(), rule.columns)
    )
    if isinstance(rule, _Basis) and rule.basis_VC is None and rule.is_active
    else rule
    for rule in rules
  )


def _judge(
  basis_VC: Any, p_BV: jax.Array, t_B1: jax.Array
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """What says of an id per row, where the row is active, if it may stay."""
  if basis_VC is None:
    return lambda id_B, _: _at(p_BV, id_B) >= t_B1[:, 0]
  if len(basis_VC) != p_BV.shape[1]:
    raise ValueError(
      f'bat has a basis of {len(basis_VC)} ids for logits of {p_BV.shape[1]};'
      ' attach the output layer of this model'
    )
  # XLA multiplies a single matrix in another order than several.
  times = 2 if len(p_BV) == 1 else 1
  geometry = support.whiten(
    jnp.asarray(basis_VC), jnp.repeat(p_BV, times, axis=0)
  )

  def accepts(id_B: jax.Array, active_B: jax.Array) -> jax.Array:
    status_B = support.decide(
      geometry,
      *(jnp.repeat(x, times, axis=0) for x in (id_B, t_B1, active_B)),
    )
    return status_B[: len(id_B)] != support.REJECTED

  return accepts


def _fold(keys_B: jax.Array, number: int | jax.Array) -> jax.Array:
  return jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)


def _at(x_BV: jax.Array, id_B: jax.Array) -> jax.Array:
  return jnp.take_along_axis(x_BV, id_B[:, None], axis=1)[:, 0]
