"""Being asked to stop, alone or together with other processes."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
  """Yields a function of the step: was this job asked to stop?"""
  if jax.process_count() > 1:
    # jax.distributed listens for SIGTERM, and a handler of ours would be in its
    # way. It chooses a step that all processes have yet to reach.
    yield multihost_utils.reached_preemption_sync_point
    return
  asked = []
  previous = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
  try:
    yield lambda _: bool(asked)
  finally:
    signal.signal(signal.SIGTERM, previous)
