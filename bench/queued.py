"""Programs queued at once, so that the device never waits for Python."""

from collections.abc import Callable

import jax

REPEATS = 8


def several(run: Callable[[], object]) -> None:
  """Runs REPEATS of them, until all are done."""
  jax.block_until_ready([run() for _ in range(REPEATS)])
