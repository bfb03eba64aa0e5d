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

  Process 0 computes, in the order of the stream; the others wait for it.
  """
  digest = hashlib.sha256(f'{label} {context} {stream.row_length}'.encode())
  for leaf in jax.tree.leaves(params):
    digest.update(np.ascontiguousarray(leaf).tobytes())
  path = folder / f'{name}_{digest.hexdigest()[:16]}.npy'
  if not path.is_file() and jax.process_index() == 0:
    _write(path, _computed(measure, params, stream, name, context))
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(str(path))
  return np.load(path, mmap_mode='r')


def _computed(
  measure: Callable[[Any, jax.Array, jax.Array], jax.Array],
  params: Any,
  stream: Stream,
  name: str,
  context: int,
) -> np.ndarray:
  numbers_N = np.zeros(stream.stream_length, np.float16)
  starts = range(0, stream.stream_length, stream.row_length)
  said = time.monotonic()
  # The devices of this process: the others of a job compute nothing meanwhile.
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ('data',))
  size = mesh.size * -(-_ROWS // mesh.size)
  with jax.set_mesh(mesh):
    run = jax.jit(measure, in_shardings=(P(), P('data'), P('data')))
    for first in range(0, len(starts), size):
      # The last batch is filled up with its last row: all are of one shape.
      batch = [
        starts[min(i, len(starts) - 1)] for i in range(first, first + size)
      ]
      windows = [_window(stream, start, context) for start in batch]
      ids_BT, documents_BT = map(np.stack, zip(*windows, strict=True))
      found_BT = np.asarray(run(params, ids_BT, documents_BT), np.float16)
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
