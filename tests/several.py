"""Threads that stand for the processes of a job, where none has to be started.

What JAX does between processes is done between the threads.
"""

import contextlib
import threading
from unittest import mock

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

_PATIENCE = 300


class Job:
  """`count` threads, each of which takes itself for a process of that job."""

  def __init__(self, count):
    self.count = count
    self.index = threading.local()
    self._meeting = threading.Barrier(count)
    self._given = [None] * count

  def run(self, work):
    """What `work` gives in each of them, or the error that it raises."""
    results = [None] * self.count

    def enter(number):
      self.index.number = number
      try:
        results[number] = work()
      except Exception as error:
        results[number] = error
        if self._meeting.n_waiting:
          self._meeting.abort()

    threads = [
      threading.Thread(target=enter, args=(i,)) for i in range(self.count)
    ]
    with self._connected():
      for thread in threads:
        thread.start()
      for thread in threads:
        thread.join()
    return results

  def _number(self):
    return self.index.number

  def _all(self, mine):
    """What each of them gives."""
    self._given[self._number()] = np.array(mine)
    self._meeting.wait(_PATIENCE)
    found = np.stack(self._given)
    self._meeting.wait(_PATIENCE)
    return found

  def _gather(self, mine, tiled=False):
    found = self._all(mine)
    return np.concatenate(found) if tiled else found

  def _barrier(self, *, key, timeout_ms):
    del timeout_ms
    # Threads number their waits together, where processes do so each.
    name = key.rpartition(' ')[0]
    assert set(self._all(name)) == {name}

  @contextlib.contextmanager
  def _connected(self):
    with (
      mock.patch.multiple(
        jax, process_count=lambda: self.count, process_index=self._number
      ),
      mock.patch.multiple(
        multihost_utils,
        process_allgather=self._gather,
        broadcast_one_to_all=lambda mine: self._all(mine)[0],
      ),
      mock.patch.object(
        multihost, 'get_barrier_sync_fn', lambda: self._barrier
      ),
    ):
      yield
