"""Numbers that set a rule: one for all rows, or an array with one per row.

A knob is a pytree leaf, so that no value of it causes a recompilation. What is
known on the host is checked there; a traced array cannot be.
"""

import dataclasses
import math
import numbers
import sys
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Number = int | float | jax.Array | np.ndarray
# Whole numbers are below it, for arrays have 32 bits.
_NO_INTEGER = 2.0**31
# Whole numbers in a row, or one such row per row of the batch, -1 = nothing.
Ids = tuple[int, ...] | jax.Array | np.ndarray


def register(rule: type) -> type:
  """Makes a dataclass a pytree whose leaves are its fields.

  A tuple of ids, or of a value for each, is one leaf: an array of one row.
  Sizes are powers of two, so that few of them are compiled.

  jax.tree_util.register_dataclass would not do: with jaxlib 0.10.2 two classes
  with alike fields have equal structures, and now and then jit runs for one
  rule what it compiled for another.
  """
  fields = dataclasses.fields(rule)
  names = tuple(field.name for field in fields)
  kinds = tuple(_item_kind(field) for field in fields)

  def flatten(value: Any) -> tuple[tuple[Any, ...], type]:
    leaves = (getattr(value, name) for name in names)
    return tuple(map(_packed, leaves, kinds)), rule

  def flatten_with_keys(value: Any) -> tuple[tuple[Any, ...], type]:
    keys = map(jax.tree_util.GetAttrKey, names)
    return tuple(zip(keys, flatten(value)[0], strict=True)), rule

  jax.tree_util.register_pytree_with_keys(
    rule, flatten_with_keys, lambda _, fields: rule(*fields), flatten
  )
  return rule


def _item_kind(field: dataclasses.Field) -> type | None:
  """What a field that may be a tuple of items has in it: int or float."""
  for kind in typing.get_args(field.type):
    if typing.get_origin(kind) is tuple:
      return typing.get_args(kind)[0]
  return None


def _packed(value: Any, kind: type | None) -> Any:
  """Items as [1, M]; those that fill it up are no id, or the value 0."""
  if kind is None or not isinstance(value, tuple) or on_host(value) is None:
    return value
  size = 1 << max(len(value) - 1, 0).bit_length()
  fill, dtype = (-1, np.int32) if kind is int else (0, np.float32)
  packed_1M = np.full((1, size), fill, dtype)
  packed_1M[0, : len(value)] = value
  return packed_1M


def settle(
  rule: Any,
  field: str,
  kind: type,
  label: str,
  demand: str,
  is_valid: Callable[[np.ndarray], Any],
) -> None:
  """Makes a plain number an int or a float; ValueError if it cannot be.

  Args:
    rule: A frozen dataclass, in its __post_init__.
    field: Which of its fields.
    kind: int or float.
    label: What the error calls it.
    demand: What the error asks for, as 'must be ...; 0 turns it off'.
    is_valid: Elementwise test, on what the rule computes with: float32 where
      the kind is float, and else float64.
  """
  value = getattr(rule, field)
  values = on_host(value)
  if values is None:
    return
  values = _as_floats(values).reshape(-1)
  used = values
  if kind is float:
    with np.errstate(over='ignore'):
      used = values.astype(np.float32).astype(np.float64)
  valid = np.asarray(is_valid(used))
  valid &= np.isinf(used) == np.isinf(values)
  if kind is int:
    valid &= (np.abs(values) < _NO_INTEGER) & (np.floor(values) == values)
  if not valid.all():
    place = int(np.argmin(valid))
    shown = f'{values[place]:g} of row {place}' if np.ndim(value) else value
    if kind is float and is_valid(values[place : place + 1]).all():
      shown = f'{shown}, which is {used[place]:g} in float32,'
    raise ValueError(f'{label}={shown} {demand}')
  if isinstance(value, numbers.Real):
    object.__setattr__(rule, field, kind(value))


def settle_ids(rule: Any, field: str, label: str) -> None:
  """Makes ids plain ints; ValueError if one is no id."""
  value = getattr(rule, field)
  values = on_host(value)
  if values is None:
    return
  values = _as_floats(values)
  is_whole = (values >= -1) & (np.floor(values) == values)
  is_whole &= values < _NO_INTEGER
  bad = values[~is_whole]
  if bad.size:
    raise ValueError(
      f'{label}={bad[0]:g} must be a whole number >= 0, the id of a token'
    )
  if isinstance(value, tuple):
    object.__setattr__(rule, field, tuple(map(int, value)))


def _as_floats(values: Any) -> np.ndarray:
  """In float64, infinite where a number of Python's is too large for it."""
  try:
    return np.asarray(values, np.float64)
  except OverflowError:
    return np.asarray(
      [x if abs(x) < sys.float_info.max else math.inf for x in np.ravel(values)]
    )


def on_host(value: Any) -> Any:
  """The value as far as it can be looked at without a trace, or else None."""
  if isinstance(value, tuple):
    known = all(isinstance(item, numbers.Real) for item in value)
    return value if known else None
  if isinstance(value, numbers.Real | np.ndarray):
    return value
  if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer):
    usable = value.is_fully_addressable and not value.is_deleted()
    return np.asarray(value) if usable else None
  return None


def check_rows(rule: Any, num_rows: int) -> None:
  """ValueError for a field of a rule that does not fit a batch of so many."""
  for field in dataclasses.fields(rule):
    value, kinds = getattr(rule, field.name), typing.get_args(field.type)
    is_knob, is_ids = int in kinds, _item_kind(field) is not None
    shape = getattr(value, 'shape', None)
    if shape is None and is_knob and isinstance(value, tuple | list):
      shape = (len(value),)
    if not (is_knob or is_ids) or not shape:
      continue
    way_out, most_axes = 'one number, or one per row', 1
    if is_ids:
      way_out, most_axes = 'one list, or [B, M] with ids padded by -1', 2
    has_rows = len(shape) == most_axes
    if len(shape) > most_axes or (has_rows and shape[0] not in (1, num_rows)):
      raise ValueError(
        f'{type(rule).__name__} {field.name} has the shape {tuple(shape)} for a'
        f' batch of {num_rows} rows; give {way_out}'
      )


def column(knob: Number, dtype: Any = jnp.float32) -> jax.Array:
  """A knob as [B, 1], or [1, 1] when it is one number for all rows."""
  return jnp.reshape(jnp.asarray(knob, dtype), (-1, 1))


def is_listed(ids: Ids, num_rows: int, num_ids: int) -> jax.Array:
  """[B, V], True at the ids of each row; ids outside 0 to V - 1 are skipped."""
  rows_B1, ids_BM = _places(ids, num_rows, num_ids)
  listed_BV = jnp.zeros((num_rows, num_ids), bool)
  return listed_BV.at[rows_B1, ids_BM].set(True, mode='drop')


def is_among(tokens_BN: jax.Array, ids: Ids) -> jax.Array:
  """[B, N], True where a token is one of the ids of its row."""
  ids_BM = _rows(ids, len(tokens_BN), jnp.int32)
  return jnp.any(tokens_BN[:, :, None] == ids_BM[:, None, :], axis=2)


def spread(ids: Ids, values: Any, num_rows: int, num_ids: int) -> jax.Array:
  """[B, V] with the sum of the values given to each id, and 0 elsewhere."""
  rows_B1, ids_BM = _places(ids, num_rows, num_ids)
  values_BM = _rows(values, num_rows, jnp.float32)
  zeros_BV = jnp.zeros((num_rows, num_ids), jnp.float32)
  return zeros_BV.at[rows_B1, ids_BM].add(values_BM, mode='drop')


def _places(
  ids: Ids, num_rows: int, num_ids: int
) -> tuple[jax.Array, jax.Array]:
  """Row and column of each id, beyond the last column where it is none."""
  ids_BM = _rows(ids, num_rows, jnp.int32)
  return jnp.arange(num_rows)[:, None], jnp.where(ids_BM < 0, num_ids, ids_BM)


def _rows(items: Any, num_rows: int, dtype: Any) -> jax.Array:
  """[B, M] from M items for all rows or from M for each."""
  if isinstance(items, tuple) and on_host(items) is None:
    items = [jnp.asarray(item, dtype) for item in items]
  items = jnp.asarray(items, dtype)
  if items.ndim < 2:
    items = items.reshape(1, -1)
  return jnp.broadcast_to(items, (num_rows, items.shape[1]))
