"""Constraints on single ids and on the length, to be applied first.

`ids` are a tuple for all rows or an array [B, M] padded with -1. A constraint
that would leave nothing leaves the best logit, with its ties.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from samplers import history
from samplers import knobs


@knobs.register
@dataclasses.dataclass(frozen=True)
class Bias:
  """Adds a value to the logit of each id; -inf forbids it, 0 is off."""

  ids: knobs.Ids = ()
  values: tuple[float, ...] | jax.Array | np.ndarray = ()

  def __post_init__(self) -> None:
    knobs.settle_ids(self, 'ids', 'bias id')
    knobs.settle(
      self,
      'values',
      float,
      'bias value',
      'must be a number below inf; -inf forbids the id',
      lambda values: values < float('inf'),
    )
    pair = self.ids, self.values
    are_tuples = [isinstance(x, tuple) for x in pair]
    if any(are_tuples) and not all(are_tuples):
      # jit would fill up a tuple, and not what it belongs to.
      field = 'ids' if are_tuples[0] else 'values'
      object.__setattr__(self, field, np.asarray(getattr(self, field)))
      pair = self.ids, self.values
    counts = [
      len(x) if isinstance(x, tuple) else x.shape[-1]
      for x in pair
      if isinstance(x, tuple) or getattr(x, 'shape', ())
    ]
    if len(set(counts)) > 1:
      raise ValueError(
        f'bias has {counts[0]} ids and {counts[1]} values; give one value per'
        ' id'
      )

  def __call__(self, logits_BV: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    bias_BV = knobs.spread(self.ids, self.values, *logits_BV.shape)
    limit = float(jnp.finfo(jnp.float32).max)
    # Sums of finite logits stay finite; -0 + 0 would be 0.
    biased_BV = jnp.minimum(logits_BV + bias_BV, limit)
    biased_BV = jnp.where(
      bias_BV > -jnp.inf, jnp.maximum(biased_BV, -limit), -jnp.inf
    )
    is_same_BV = (bias_BV == 0) | (logits_BV == -jnp.inf)
    return _not_empty(jnp.where(is_same_BV, logits_BV, biased_BV), logits_BV)


@knobs.register
@dataclasses.dataclass(frozen=True)
class Allow:
  """Keeps the listed ids only; a row without any keeps all."""

  ids: knobs.Ids = ()

  def __post_init__(self) -> None:
    knobs.settle_ids(self, 'ids', 'allow id')

  def __call__(self, logits_BV: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    allowed_BV = knobs.is_listed(self.ids, *logits_BV.shape)
    allowed_BV |= ~jnp.any(allowed_BV, axis=1, keepdims=True)
    kept_BV = jnp.where(allowed_BV, logits_BV, -jnp.inf)
    return _not_empty(kept_BV, logits_BV)


@knobs.register
@dataclasses.dataclass(frozen=True)
class Deny:
  """Drops the listed ids, as those of padding; none changes nothing."""

  ids: knobs.Ids = ()

  def __post_init__(self) -> None:
    knobs.settle_ids(self, 'ids', 'deny id')

  def __call__(self, logits_BV: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    denied_BV = knobs.is_listed(self.ids, *logits_BV.shape)
    kept_BV = jnp.where(denied_BV, -jnp.inf, logits_BV)
    return _not_empty(kept_BV, logits_BV)


@knobs.register
@dataclasses.dataclass(frozen=True)
class MinLength:
  """Drops the ids that end a text while fewer tokens are drawn; 0 is off.

  The memory is the number of tokens drawn, the prompt not counted. A length
  needs the ids.
  """

  length: knobs.Number = 0
  ids: knobs.Ids = ()

  def __post_init__(self) -> None:
    _settle_length(self, 'min-length')
    knobs.settle_ids(self, 'ids', 'min-length id')
    ids = knobs.on_host(self.ids)
    if ids is not None:
      ids = np.asarray(ids)
      is_given = np.any(ids >= 0, axis=-1) if ids.size else np.False_
      _need(self.length, is_given, 'min_length', 'ids')

  def init(self, prompt: history.Prompt) -> jax.Array:
    return jnp.zeros(prompt.lengths_B.shape, jnp.int32)

  def __call__(self, logits_BV: jax.Array, memory: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    is_short_B1 = memory[:, None] < knobs.column(self.length, jnp.int32)
    ends_BV = knobs.is_listed(self.ids, *logits_BV.shape)
    kept_BV = jnp.where(is_short_B1 & ends_BV, -jnp.inf, logits_BV)
    return _not_empty(kept_BV, logits_BV)

  def update(self, memory: jax.Array, drawn: history.Drawn) -> jax.Array:
    return memory + drawn.active_B.astype(jnp.int32)


@knobs.register
@dataclasses.dataclass(frozen=True)
class MaxLength:
  """Forces the id that ends a text as the token number `length`; 0 is off.

  With it a row has `length` tokens at most, the end included. A length needs
  the end, of which -1 is none.
  """

  length: knobs.Number = 0
  end: knobs.Number = -1

  def __post_init__(self) -> None:
    _settle_length(self, 'max-length')
    knobs.settle(
      self,
      'end',
      int,
      'max-length end',
      'must be a whole number >= 0, the id of a token',
      lambda end: end >= -1,
    )
    end = knobs.on_host(self.end)
    if end is not None:
      _need(self.length, np.asarray(end) >= 0, 'max_length', 'end')

  def init(self, prompt: history.Prompt) -> jax.Array:
    return jnp.zeros(prompt.lengths_B.shape, jnp.int32)

  def __call__(self, logits_BV: jax.Array, memory: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    length_B1 = knobs.column(self.length, jnp.int32)
    is_last_B1 = (length_B1 > 0) & (memory[:, None] >= length_B1 - 1)
    end_B1 = knobs.column(self.end, jnp.int32)
    is_end_BV = jnp.arange(logits_BV.shape[1])[None] == end_B1
    # Also where the end was dropped before.
    only_BV = jnp.where(is_end_BV, 0.0, -jnp.inf)
    return jnp.where(is_last_B1, only_BV, logits_BV)

  def update(self, memory: jax.Array, drawn: history.Drawn) -> jax.Array:
    return memory + drawn.active_B.astype(jnp.int32)


def check(rules: tuple[Any, ...], num_ids: int | None = None) -> None:
  """ValueError where rules contradict each other or name ids beyond V - 1."""
  _check_places(rules)
  if num_ids is not None:
    for rule in rules:
      _check_ids(rule, num_ids)
  _check_lengths(rules)
  _check_choice(rules, num_ids)


def _check_lengths(rules: tuple[Any, ...]) -> None:
  known = {
    kind: [
      np.asarray(knobs.on_host(rule.length))
      for rule in rules
      if isinstance(rule, kind) and knobs.on_host(rule.length) is not None
    ]
    for kind in (MinLength, MaxLength)
  }
  for least, most in itertools.product(known[MinLength], known[MaxLength]):
    if np.size(least) != np.size(most) and 1 not in (least.size, most.size):
      raise ValueError(
        f'min_length has {least.size} rows and max_length {most.size}; give'
        ' each one number, or one per row'
      )
    # A text of `most` tokens has most - 1 and its end.
    if np.any((most > 0) & (most <= least)):
      raise ValueError(
        f'min_length={least} contradicts max_length={most}, which the end is '
        'part of; make the first one smaller'
      )


def _check_choice(rules: tuple[Any, ...], num_ids: int | None) -> None:
  """Do allow and deny leave every row something, as far as it is known?"""
  lists = [
    (type(rule), rows)
    for rule in rules
    if isinstance(rule, Allow | Deny) and (rows := _id_sets(rule.ids))
  ]
  for row in range(max((len(rows) for _, rows in lists), default=0)):
    allowed = None if num_ids is None else set(range(num_ids))
    denied = set()
    for kind, rows in lists:
      ids = rows[min(row, len(rows) - 1)]
      if kind is Deny:
        denied |= ids
      elif ids:
        allowed = ids if allowed is None else allowed & ids
    if allowed is not None and not allowed - denied:
      raise ValueError(
        f'allow and deny leave no id of {sorted(allowed or denied)[:5]}; drop'
        ' one of them'
      )


def _id_sets(ids: knobs.Ids) -> list[set[int]]:
  """The ids of every row, or of all rows; none where they are not known."""
  known = knobs.on_host(ids)
  if known is None:
    return []
  known = np.asarray(known, np.int64)
  rows = known.tolist() if known.ndim > 1 else [known.reshape(-1).tolist()]
  return [set(row) - {-1} for row in rows]


def _check_places(rules: tuple[Any, ...]) -> None:
  for place, rule in enumerate(rules):
    name = type(rule).__name__
    if not getattr(rule, 'is_active', False):
      continue
    if getattr(rule, 'needs_raw_logits', False) and place:
      raise ValueError(
        f'{name} speaks of the law of the model itself, which'
        f' {type(rules[place - 1]).__name__} before it changes; put it first'
      )
    if getattr(rule, 'leaves_one', False) and place + 1 < len(rules):
      raise ValueError(
        f'{name} leaves one token, so that {type(rules[place + 1]).__name__}'
        ' behind it has no choice; drop that, or take bat_set'
      )


def _check_ids(rule: Any, num_ids: int) -> None:
  for field in ('ids', 'end', 'exempt', 'breakers'):
    ids = knobs.on_host(getattr(rule, field, None))
    if ids is not None and np.size(ids) and np.max(ids) >= num_ids:
      raise ValueError(
        f'{type(rule).__name__} {field} {int(np.max(ids))} is no id of a '
        f'vocabulary of {num_ids}; take one below'
      )


def _need(
  length: knobs.Number, is_given: np.ndarray, rule: str, field: str
) -> None:
  """ValueError for rows that have a length and no id that ends a text."""
  lengths = knobs.on_host(length)
  if lengths is None:
    return
  lengths = np.asarray(lengths)
  sizes = lengths.size, is_given.size
  # Others are named when the number of rows is known.
  if 1 not in sizes and sizes[0] != sizes[1]:
    return
  lacks = (lengths.reshape(-1) > 0) & ~is_given.reshape(-1)
  if lacks.any():
    length = int(np.broadcast_to(lengths.reshape(-1), lacks.shape)[lacks][0])
    raise ValueError(
      f'{rule}={length} needs {field}, which ends a text; write'
      f' {rule}({length}, {field}=2) if that is the id of the end'
    )


def _settle_length(rule: MinLength | MaxLength, label: str) -> None:
  knobs.settle(
    rule,
    'length',
    int,
    f'{label} length',
    'must be a whole number of tokens >= 0; 0 turns it off',
    lambda length: length >= 0,
  )


def _not_empty(kept_BV: jax.Array, logits_BV: jax.Array) -> jax.Array:
  """The kept logits, or the best with its ties where none is left."""
  is_empty_B1 = jnp.max(kept_BV, axis=1, keepdims=True) == -jnp.inf
  max_B1 = jnp.max(logits_BV, axis=1, keepdims=True)
  is_best_BV = logits_BV == max_B1
  return jnp.where(is_empty_B1 & is_best_BV, logits_BV, kept_BV)
