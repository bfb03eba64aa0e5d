"""Counts of what follows the last ids in a corpus, looked up inside jit.

An n-gram is known by 64 bits of hash, as two numbers of 32 bits, for JAX has
no others by default. All orders share two sorted tables, of contexts and of
contexts with the id that follows.
"""

import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import stored_arrays

ORDERS = (2, 3, 4, 5, 6)
_MULTIPLIERS = 0x9E3779B1, 0x85EBCA77
_FIELDS = 'first_M', 'second_M', 'count_M'
_MOST_BITS = 20  # of a hash that say where to look
_Counts = tuple[np.ndarray, np.ndarray]  # hashes and how often


class Table(NamedTuple):
  """Hashes in the order of both numbers, and how often each came.

  start_K: where those begin whose highest bits are 0, 1 ..., and the end.
  """

  first_M: Any  # uint32
  second_M: Any
  count_M: Any  # float32
  start_K: Any


class Store(NamedTuple):
  """What `build` found."""

  contexts: Table
  pairs: Table


def build(documents: Iterable[np.ndarray]) -> Store:
  """The store of documents of ids; ValueError if they have no two ids."""
  found: list[tuple[_Counts, _Counts]] = []
  documents = [np.asarray(ids).astype(np.uint32) for ids in documents]
  for order in ORDERS:
    contexts, pairs = [], []
    for ids in documents:
      if len(ids) < order:
        continue
      windows = np.lib.stride_tricks.sliding_window_view(ids, order)
      context = _hash_context(windows[:, :-1], order)
      contexts.append(_join(context))
      pairs.append(_join(_hash_pair(context, windows[:, -1])))
    if pairs:
      found.append((_count(contexts), _count(pairs)))
  if not found:
    raise ValueError(
      'the corpus of the n-gram store has no document of two ids; take another'
    )
  return Store(*map(_merge, zip(*found, strict=True)))


def save(
  path: str | os.PathLike[str], store: Store, vocabulary_size: int
) -> None:
  """Writes a store as one .npz file."""
  arrays = {
    f'{name}_{field}': np.asarray(getattr(table, field))
    for name, table in store._asdict().items()
    for field in _FIELDS
  }
  np.savez(path, vocabulary_size=vocabulary_size, **arrays)


def load(path: str | os.PathLike[str], vocabulary_size: int) -> Store:
  """Reads a store; ValueError if it is none, or of other ids."""
  types = np.uint32, np.uint32, np.float32
  kinds = {
    f'{table}_{field}': (dtype, 1)
    for table in Store._fields
    for field, dtype in zip(_FIELDS, types, strict=True)
  }
  no_store = f'{path} is no n-gram store; remove it to have it built again'
  try:
    found = stored_arrays.read(path, kinds | {'vocabulary_size': (np.int64, 0)})
  except ValueError as error:
    raise ValueError(no_store) from error
  size = int(found['vocabulary_size'])
  if size != vocabulary_size:
    raise ValueError(
      f'{path} is an n-gram store of a vocabulary of {size} ids for a model of'
      f' {vocabulary_size}; name another file'
    )
  tables = [[found[f'{t}_{f}'] for f in _FIELDS] for t in Store._fields]
  if not all(_is_sound(*arrays) for arrays in tables):
    raise ValueError(no_store)
  return Store(*(_table(*arrays) for arrays in tables))


def _is_sound(
  first_M: np.ndarray, second_M: np.ndarray, count_M: np.ndarray
) -> bool:
  """Whether hashes are in order and have counts."""
  lengths = {len(array_M) for array_M in (first_M, second_M, count_M)}
  if len(lengths) > 1 or 0 in lengths:
    return False
  hash_M = _join((first_M, second_M))
  rises = bool((hash_M[1:] >= hash_M[:-1]).all())
  return rises and bool(((count_M > 0) & (count_M < np.inf)).all())


def _table(
  first_M: np.ndarray, second_M: np.ndarray, count_M: np.ndarray
) -> Table:
  bits = min(max(len(first_M).bit_length() - 1, 1), _MOST_BITS)
  parts_K = np.arange((1 << bits) + 1, dtype=np.uint64) << np.uint64(32 - bits)
  start_K = np.searchsorted(first_M.astype(np.uint64), parts_K)
  return Table(first_M, second_M, count_M, start_K.astype(np.int32))


def load_or_build(
  path: str, vocabulary_size: int, documents: Callable[[], list[np.ndarray]]
) -> Store:
  """The store of a file, made from the documents first if there is none."""
  file = pathlib.Path(path)
  if file.suffix != '.npz':
    raise ValueError(f'n-gram store {path} must end in .npz')
  if not file.exists():
    found = build(documents())
    file.parent.mkdir(parents=True, exist_ok=True)
    save(file, found, vocabulary_size)
  return load(file, vocabulary_size)


def probability(
  store: Store,
  recent_BMC: jax.Array,
  ids_BMK: jax.Array,
  weights: Sequence[float],
) -> jax.Array:
  """[B, M, K]: sum over orders of weight * c(context, id) / c(context).

  Contexts that the corpus lacks add 0.

  Args:
    store: From `build`.
    recent_BMC: The ids before, oldest first; C is at least the largest order
      less one.
    ids_BMK: What might follow.
    weights: One per order.
  """
  ids_BMK = ids_BMK.astype(jnp.uint32)
  contexts, pairs = [], []
  for order in ORDERS:
    first = recent_BMC.shape[-1] - order + 1
    context = _hash_context(recent_BMC[..., first:].astype(jnp.uint32), order)
    contexts.append(context)
    context_BM1 = tuple(h[..., None] for h in context)
    pairs.append(_hash_pair(context_BM1, ids_BMK))
  # Of all orders at once: a search is a loop of steps too small to be busy.
  before_OBM = _find(store.contexts, _stack(contexts))
  found_OBMK = _find(store.pairs, _stack(pairs))
  share_OBMK = found_OBMK / jnp.maximum(before_OBM, 1.0)[..., None]
  return jnp.tensordot(jnp.asarray(weights, jnp.float32), share_OBMK, 1)


def _hash_context(ids: Any, order: int) -> tuple[Any, Any]:
  """Two hashes over the last axis, for arrays of NumPy and of JAX."""
  hashes = []
  for multiplier in _MULTIPLIERS:
    # Far from 0, which a small number and a small id would cancel out to.
    seed = (order * 0x632BE5AB + multiplier) & 0xFFFFFFFF
    value = ids[..., 0] * np.uint32(0) + np.uint32(seed)
    for place in range(ids.shape[-1]):
      value = _absorb(value, ids[..., place], multiplier)
    hashes.append(value)
  return tuple(hashes)


def _hash_pair(context: tuple[Any, Any], ids: Any) -> tuple[Any, Any]:
  return tuple(
    _absorb(value ^ np.uint32(0x5BD1E995), ids, multiplier)
    for value, multiplier in zip(context, _MULTIPLIERS, strict=True)
  )


def _absorb(value: Any, ids: Any, multiplier: int) -> Any:
  value = (value ^ (ids + np.uint32(1))) * np.uint32(multiplier)
  value = (value ^ (value >> np.uint32(15))) * np.uint32(0xC2B2AE3D)
  return value ^ (value >> np.uint32(13))


def _stack(pairs: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
  first, second = zip(*pairs, strict=True)
  return jnp.stack(first), jnp.stack(second)


def _join(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
  return pair[0].astype(np.uint64) << np.uint64(32) | pair[1]


def _count(hashes: list[np.ndarray]) -> _Counts:
  return np.unique(np.concatenate(hashes), return_counts=True)


def _merge(parts: Sequence[_Counts]) -> Table:
  """One table of those of several orders, which share no hash."""
  values, counts = (np.concatenate(x) for x in zip(*parts, strict=True))
  order = np.argsort(values)
  values, counts = values[order], counts[order]
  return _table(
    (values >> np.uint64(32)).astype(np.uint32),
    (values & np.uint64(0xFFFFFFFF)).astype(np.uint32),
    counts.astype(np.float32),
  )


def _find(table: Table, wanted: tuple[jax.Array, jax.Array]) -> jax.Array:
  """The count of each hash, 0 where it is not in the table."""
  first_M, second_M, count_M, start_K = map(jnp.asarray, table)
  first, second = wanted

  def unfinished(bounds: tuple[jax.Array, jax.Array]) -> jax.Array:
    return jnp.any(bounds[0] < bounds[1])

  def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple:
    low, high = bounds
    middle = (low + high) // 2
    is_less = first_M[middle] < first
    is_less |= (first_M[middle] == first) & (second_M[middle] < second)
    is_open = low < high
    return (
      jnp.where(is_open & is_less, middle + 1, low),
      jnp.where(is_open & ~is_less, middle, high),
    )

  part = first >> np.uint32(33 - len(start_K).bit_length())
  begin = start_K[part.astype(jnp.int32)], start_K[part.astype(jnp.int32) + 1]
  place = jnp.minimum(
    jax.lax.while_loop(unfinished, halve, begin)[0], len(first_M) - 1
  )
  is_there = (first_M[place] == first) & (second_M[place] == second)
  return jnp.where(is_there, count_M[place], 0.0)
