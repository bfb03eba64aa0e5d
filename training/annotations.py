"""Numbers computed once for every id of a split and kept beside it."""

import hashlib
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

from training import manifest
from training import processes

_ROWS = 8  # At a time, or as many as there are devices.
_FILE = 'numbers.npy'


class Stream(Protocol):
  """A split as one stream of ids, as data.packing.Rows."""

  row_length: int
  stream_length: int

  def cut(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]: ...


def annotate(
  measure: Callable[[Any, jax.Array, jax.Array], jax.Array],
  params: Any,
  stream: Stream,
  folder: pathlib.Path,
  *,
  name: str,
  label: str,
  context: int,
) -> np.ndarray:
  """float16 numbers, one per id of `stream`, mapped from a file in `folder`.

  measure: pure (params, ids_BT, documents_BT) -> numbers [B, T], as the
    entropy of a language model.
  label: says what `measure` is; with the parameters and `context` it names
    what is kept, so that numbers of another model are never read.
  context: ids before the `row_length` measured at a time that are read too.

  The processes of a job share the rows, and process 0 writes the file, with its
  manifest, to a folder that all of them see. OSError if one does not see it. A
  file that is not what its manifest says is logged and made anew.
  """
  digest = hashlib.sha256(f'{label} {context} {stream.row_length}'.encode())
  for leaf in jax.tree.leaves(params):
    digest.update(np.ascontiguousarray(leaf).tobytes())
  kept = folder / f'{name}_{digest.hexdigest()[:16]}'
  # Only one looks: network file systems remember what was not there.
  if not _agreed(processes.is_first() and _is_intact(kept)):
    numbers_N = _computed(measure, params, stream, name, context)
    processes.first(f'write {kept.name}', lambda: _write(kept, numbers_N))
  try:
    return np.load(kept / _FILE, mmap_mode='r', allow_pickle=False)
  except FileNotFoundError as error:
    raise OSError(
      f'{kept} was written by process 0 but process {jax.process_index()} does'
      ' not see it; put data.directory where all hosts do'
    ) from error


def _agreed(said: bool) -> bool:
  """What process 0 says."""
  if jax.process_count() == 1:
    return said
  return bool(multihost_utils.broadcast_one_to_all(np.int32(said)))


def _computed(
  measure: Callable[[Any, jax.Array, jax.Array], jax.Array],
  params: Any,
  stream: Stream,
  name: str,
  context: int,
) -> np.ndarray:
  """Numbers of the whole stream, in process 0; zeros in the others."""
  numbers_N = np.zeros(stream.stream_length, np.float16)
  starts = range(0, stream.stream_length, stream.row_length)
  said = time.monotonic()
  # Every process computes its part of a batch on its own devices.
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ('data',))
  size = mesh.size * -(-_ROWS // mesh.size)
  part = slice(jax.process_index() * size, (jax.process_index() + 1) * size)
  size *= jax.process_count()
  by_row = jax.sharding.NamedSharding(mesh, P('data'))
  params = jax.device_put(params, jax.sharding.NamedSharding(mesh, P()))
  with jax.set_mesh(mesh):
    run = jax.jit(measure)
    for first in range(0, len(starts), size):
      # The last batch is filled up with its last row: all are of one shape.
      batch = [
        starts[min(i, len(starts) - 1)] for i in range(first, first + size)
      ]
      windows = [_window(stream, start, context) for start in batch[part]]
      # Placed here: of a job, JAX splits no arrays of the host.
      inputs = [
        jax.device_put(np.stack(x), by_row) for x in zip(*windows, strict=True)
      ]
      found_BT = np.asarray(run(params, *inputs), np.float16)
      if jax.process_count() > 1:
        found_BT = multihost_utils.process_allgather(found_BT, tiled=True)
      if not processes.is_first():
        continue
      for start, found_T in zip(batch, found_BT, strict=True):
        there = numbers_N[start : start + stream.row_length]
        there[:] = found_T[context : context + len(there)]
      if time.monotonic() - said > 10:
        said = time.monotonic()
        logging.info('%s of %d of %d rows', name, first, len(starts))
  return numbers_N


def _window(
  stream: Stream, start: int, context: int
) -> tuple[np.ndarray, np.ndarray]:
  """Ids and documents of a row and of what stands before it, if anything."""
  missing = max(context - start, 0)
  found = stream.cut(start - context + missing, start + stream.row_length)
  return tuple(np.pad(x, (missing, 0)) for x in found)


def _is_intact(kept: pathlib.Path) -> bool:
  """Whether a folder holds what was written; a damaged one is logged."""
  if not kept.exists():
    return False
  try:
    manifest.verify(kept)
  except manifest.Damaged as damage:
    logging.warning('%s is damaged (%s); it is made anew', kept, damage)
    return False
  return True


def _write(kept: pathlib.Path, numbers_N: np.ndarray) -> None:
  """Writes a folder wholly or not at all."""
  partial = kept.with_name(f'{kept.name}.{os.getpid()}')
  try:
    partial.mkdir()
    np.save(partial / _FILE, numbers_N)
    manifest.write(partial, {})
    shutil.rmtree(kept, ignore_errors=True)
    partial.rename(kept)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
