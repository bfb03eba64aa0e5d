"""Being asked to stop, alone or together with other processes."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
  """Yields a function of the step: was this job asked to stop?"""
  asked = []
  previous = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))

  def stopping(step: int) -> bool:
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return bool(asked)

  try:
    yield stopping
  finally:
    signal.signal(signal.SIGTERM, previous)
