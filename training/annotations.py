"""Numbers computed once for every id of a split and kept beside it."""

import hashlib
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

from training import processes

_ROWS = 8  # At a time, or as many as there are devices.


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
  """float16 numbers, one per id of `stream`, mapped from a file of `folder`.

  measure: pure (params, ids_BT, documents_BT) -> numbers [B, T], as the
    entropy of a language model.
  label: says what `measure` is; with the parameters and `context` it names the
    file, so that numbers of another model are never read.
  context: ids before the `row_length` measured at a time that are read too.

  The processes of a job share the rows, and process 0 writes the file to a
  folder that all of them see. OSError if one does not see it.
  """
  digest = hashlib.sha256(f'{label} {context} {stream.row_length}'.encode())
  for leaf in jax.tree.leaves(params):
    digest.update(np.ascontiguousarray(leaf).tobytes())
  path = folder / f'{name}_{digest.hexdigest()[:16]}.npy'
  # Only one looks: network file systems remember what was not there.
  if not _agreed(processes.is_first() and path.is_file()):
    numbers_N = _computed(measure, params, stream, name, context)
    processes.first(f'write {path.name}', lambda: _write(path, numbers_N))
  try:
    return np.load(path, mmap_mode='r', allow_pickle=False)
  except FileNotFoundError as error:
    raise OSError(
      f'{path} was written by process 0 but process {jax.process_index()} does'
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


def _write(path: pathlib.Path, numbers_N: np.ndarray) -> None:
  """Writes a file wholly or not at all."""
  temporary = path.with_name(f'{path.name}.{os.getpid()}')
  try:
    with open(temporary, 'wb') as file:
      np.save(file, numbers_N)
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)
