"""What the first process of a job does while the others wait for it."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

# Longest wait for process 0, in hours; a corpus may take as long to prepare.
_HOURS = 12

_waits = itertools.count()


def is_first() -> bool:
  """Whether this process prepares, prints and writes for the job."""
  return jax.process_index() == 0


def first(what: str, work: Callable[[], Any]) -> None:
  """Does `work` in process 0 only; the others wait until it is done.

  what: names the work in messages, as 'prepare the data'. All processes of a
  job call this in the same order. In a job of one it is just done.

  OSError in the others if process 0 fails, or takes longer than 12 hours.
  """
  told_by_first(what, lambda: (work(), b'')[1])


def told_by_first(what: str, work: Callable[[], bytes]) -> bytes:
  """As `first`, for work that gives bytes, which all processes get."""
  if jax.process_count() == 1:
    return work()
  found, failure = b'', None
  if is_first():
    try:
      found = work()
    except Exception as error:  # The others are told before it is raised.
      failure = error
  else:
    logging.info(
      'process %d waits for process 0 to %s, %d hours at most',
      jax.process_index(), what, _HOURS,
    )  # fmt: skip
  meet(what)
  size, done = multihost_utils.broadcast_one_to_all(
    np.array([len(found), failure is None], np.int32)
  )
  if failure is not None:
    raise failure
  if not done:
    raise OSError(f'process 0 could not {what}; its own message says why')
  if not size:
    return b''
  mine = np.frombuffer(found or bytes(size), np.uint8)
  return multihost_utils.broadcast_one_to_all(mine).tobytes()


def meet(what: str) -> None:
  """Waits until all processes have come here, hours if need be.

  No device is used. OSError after 12 hours, or if one of them is lost.
  """
  if jax.process_count() == 1:
    return
  barrier = multihost.get_barrier_sync_fn()
  try:
    barrier(key=f'{what} {next(_waits)}', timeout_ms=_HOURS * 3_600_000)
  except jax.errors.JaxRuntimeError as error:
    reason = ' '.join(str(error).split())[:300]
    raise OSError(
      f'to {what} took more than {_HOURS} hours, or another process of the job'
      f' was lost ({reason}); start all of them again'
    ) from error
