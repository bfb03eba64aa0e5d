"""Work on batches that the processes of a job share."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_alone = False


@contextlib.contextmanager
def alone() -> Iterator[None]:
  """Within it this process shares nothing, as the others do something else."""
  global _alone
  before, _alone = _alone, True
  try:
    yield
  finally:
    _alone = before


def shared(
  work: Callable[[Any], tuple[Any, ...]], batches: Iterable[Any], params: Any
) -> Iterator[tuple[Any, tuple[np.ndarray, ...]]]:
  """Yields every batch with work(batch), arrays that one process computed.

  All processes of a job get all results, in order and bit for bit those of a
  job of one: who computes a batch is all that differs. The arrays are of the
  same shapes for all batches. Where `params` are spread over the processes,
  all of them compute every batch together instead.
  """
  batches = iter(batches)
  count = 1 if _alone or not _is_here(params) else jax.process_count()
  if count == 1:
    for batch in batches:
      yield batch, tuple(np.asarray(x) for x in work(batch))
    return
  while several := list(itertools.islice(batches, count)):
    # In the last round some repeat the last: gathering takes all processes.
    mine = several[min(jax.process_index(), len(several) - 1)]
    found = _gathered([np.asarray(x) for x in work(mine)])
    yield from zip(several, found, strict=False)


def _is_here(params: Any) -> bool:
  """Whether this process holds all of the parameters."""
  return all(
    getattr(leaf, 'is_fully_addressable', True)
    for leaf in jax.tree.leaves(params)
  )


def _gathered(arrays: list[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
  """The arrays of every process, as bytes: JAX would round float64."""
  flat = np.concatenate(
    [np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in arrays]
  )
  stops = np.cumsum([x.nbytes for x in arrays])[:-1]
  return [
    tuple(
      part.view(like.dtype).reshape(like.shape)
      for part, like in zip(np.split(row, stops), arrays, strict=True)
    )
    for row in multihost_utils.process_allgather(flat)
  ]
