"""Counts of what follows the last ids in a corpus, looked up inside jit.

An n-gram is known by 64 bits of hash, as two numbers of 32 bits, for JAX has
no others by default. All orders share two sorted tables, of contexts and of
contexts with the id that follows.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import stored_arrays

ORDERS = (2, 3, 4, 5, 6)
_MULTIPLIERS = 0x9E3779B1, 0x85EBCA77
_FIELDS = 'first_M', 'second_M', 'count_M'
_MOST_BITS = 20  # of a hash that say where to look
_BLOCK = 1 << 20  # ids that are counted at a time
_Counts = tuple[np.ndarray, np.ndarray]  # hashes in their order, how often each
_HINT = 'python -m samplers.ngram_store --checkpoint=DIR --out=FILE'


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


class Vocabulary(NamedTuple):
  """What ids mean: how many there are, and a digest of their codec in hex."""

  size: int
  digest: str


def build(
  documents: Iterable[np.ndarray],
  *,
  say: Callable[[str], object] = lambda _: None,
) -> Store:
  """The store of documents of ids; ValueError if they have no two ids.

  What ends a document is counted if it is one of its ids, which lets drafts
  end. say: is told how far it is.
  """
  contexts, pairs = [], []
  for ids_N, left_N in _blocks(documents, say):
    counted = [
      _hashes(ids_N, left_N, order) for order in ORDERS if order <= len(ids_N)
    ]
    for place, found in enumerate((contexts, pairs)):
      hashes = [parts[place] for parts in counted]
      if hashes:
        _add(found, np.unique(np.concatenate(hashes), return_counts=True))
  if not any(len(values) for values, _ in pairs):
    raise ValueError(
      'the corpus of the n-gram store has no document of two ids; take another'
    )
  return Store(_merged(contexts), _merged(pairs))


def save(
  path: str | os.PathLike[str], store: Store, vocabulary: Vocabulary
) -> None:
  """Writes a store as one .npz file, wholly or not at all."""
  arrays = {
    f'{name}_{field}': np.asarray(getattr(table, field))
    for name, table in store._asdict().items()
    for field in _FIELDS
  }
  digest = np.frombuffer(bytes.fromhex(vocabulary.digest), np.uint8)
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(path.name + '.tmp')
  with temporary.open('wb') as file:
    np.savez(file, vocabulary_size=vocabulary.size, digest=digest, **arrays)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def load(path: str | os.PathLike[str], vocabulary: Vocabulary) -> Store:
  """Reads a store; ValueError if it is none, or of other ids."""
  types = np.uint32, np.uint32, np.float32
  kinds = {
    f'{table}_{field}': (dtype, 1)
    for table in Store._fields
    for field, dtype in zip(_FIELDS, types, strict=True)
  }
  kinds |= {'vocabulary_size': (np.int64, 0), 'digest': (np.uint8, 1)}
  no_store = f'{path} is no n-gram store; remove it to have it built again'
  try:
    found = stored_arrays.read(path, kinds)
  except ValueError as error:
    raise ValueError(no_store) from error
  size = int(found['vocabulary_size'])
  if size != vocabulary.size:
    raise ValueError(
      f'{path} is an n-gram store of a vocabulary of {size} ids for a model of'
      f' {vocabulary.size}; name another file'
    )
  if found['digest'].tobytes().hex() != vocabulary.digest:
    raise ValueError(
      f'{path} is an n-gram store of another codec, whose {size} ids stand for'
      f' other bytes than those of the model; build one with {_HINT}'
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
  path: str,
  vocabulary: Vocabulary,
  documents: Callable[[], Iterable[np.ndarray]],
  *,
  say: Callable[[str], object] = lambda _: None,
) -> Store:
  """The store of a file, made from the documents first if there is none."""
  file = checked(path)
  if not file.exists():
    save(file, build(documents(), say=say), vocabulary)
  return load(file, vocabulary)


def checked(path: str) -> pathlib.Path:
  """The path of a store; ValueError if its name cannot be one's."""
  file = pathlib.Path(path)
  if file.suffix != '.npz':
    raise ValueError(f'n-gram store {path} must end in .npz')
  return file


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


def _blocks(
  documents: Iterable[np.ndarray], say: Callable[[str], object]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Ids of many documents, and how many may be read from each place on.

  A long document is cut; what follows a cut is there to be read, and 0 for it.
  """
  ids, left, size, total = [], [], 0, 0
  for count, document in enumerate(documents, start=1):
    document = np.asarray(document).astype(np.uint32)
    for first in range(0, len(document), _BLOCK):
      part = document[first : first + _BLOCK + ORDERS[-1] - 1]
      left_N = np.arange(len(part), 0, -1)
      left_N[_BLOCK:] = 0
      ids.append(part)
      left.append(left_N)
      size += min(len(part), _BLOCK)
      if size >= _BLOCK:
        yield np.concatenate(ids), np.concatenate(left)
        ids, left, size, total = [], [], 0, total + size
        say(f'{total:,} ids counted, of {count:,} documents')
  if ids:
    yield np.concatenate(ids), np.concatenate(left)


def _hashes(
  ids_N: np.ndarray, left_N: np.ndarray, order: int
) -> tuple[np.ndarray, np.ndarray]:
  """Of the contexts, and of them with what follows, within documents."""
  windows = np.lib.stride_tricks.sliding_window_view(ids_N, order)
  is_whole_N = left_N[: len(windows)] >= order
  context = _hash_context(windows[:, :-1], order)
  pair = _hash_pair(context, windows[:, -1])
  return _join(context)[is_whole_N], _join(pair)[is_whole_N]


def _add(runs: list[_Counts], counts: _Counts) -> None:
  """Adds counts to sums of others, of which each is far smaller than the last.

  So every count is summed a few times only, however many blocks there are.
  """
  while runs and len(runs[-1][0]) < 2 * len(counts[0]):
    counts = _sum(runs.pop(), counts)
  runs.append(counts)


def _sum(first: _Counts, second: _Counts) -> _Counts:
  values, counts = map(np.concatenate, zip(first, second, strict=True))
  order = np.argsort(values, kind='stable')
  values, counts = values[order], counts[order]
  is_new = np.append(True, values[1:] != values[:-1])[: len(values)]
  starts = np.flatnonzero(is_new)
  return values[starts], np.add.reduceat(counts, starts)


def _merged(runs: list[_Counts]) -> Table:
  """One table of all orders, which share no hash."""
  values, counts = functools.reduce(_sum, reversed(runs))
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
