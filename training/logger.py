"""Metrics of a finished step, checked and written while the next one runs."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from training import metrics
from training import step

# Of bytes without room for their patch, what a run is warned of.
_OVERFLOW = 0.01


class Logger:
  """Writes the metrics of a finished step while the next one runs."""

  def __init__(
    self,
    writer: metrics.Writer,
    schedule: Callable[[jax.Array], jax.Array],
    *,
    start: int,
    steps: int,
    every: int,
    bytes_per_step: float,
    bytes_per_id: float = 1.0,
  ) -> None:
    self._writer = writer
    self._steps = steps
    self._every = every
    self._bytes_per_step = bytes_per_step
    self._bytes_per_id = bytes_per_id
    # All at once: an operation now and then would wait for the step that runs.
    self._rate_N = np.asarray(jax.jit(schedule)(jnp.arange(steps)))
    self._last = (start, time.monotonic())
    self._warned = False
    self.saved = start

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Keeps the time spent inside out of the seconds per step."""
    began = time.monotonic()
    yield
    step, then = self._last
    self._last = (step, then + time.monotonic() - began)

  def log(
    self,
    pending: tuple[int, step.Metrics] | None,
    progress: metrics.Progress,
  ) -> None:
    """Checks, shows and, when due, writes one step's metrics."""
    if pending is None:
      return
    number, values = pending
    if not values.finite:
      good = f'checkpoint {self.saved} is good'
      raise FloatingPointError(
        f'loss or gradient is not finite at step {number} (loss'
        f' {float(values.loss)}, gradient norm {float(values.gradient_norm)});'
        f' {good if self.saved else "there is no checkpoint yet"}: try a'
        ' lower optimizer.learning_rate, more optimizer.warmup_steps, a lower'
        " optimizer.clip or model.dtype='float32', in a new --workdir."
      )
    bits = float(values.means['nats']) / math.log(2) / self._bytes_per_id
    progress.report(number, bits)
    if number % self._every and number != self._steps:
      return
    now = time.monotonic()
    seconds = (now - self._last[1]) / max(number - self._last[0], 1)
    self._last = (number, now)
    self._writer.write(
      number,
      {
        'train/loss': values.loss,
        'train/bits_per_byte': bits,
        'train/gradient_norm': values.gradient_norm,
        'train/learning_rate': self._rate_N[number - 1],
        'time/step_seconds': seconds,
        'time/bytes_per_second': self._bytes_per_step / seconds,
      }
      | {f'train/{name}': value for name, value in values.means.items()},
    )
    self._warn(float(values.means.get('overflow', 0.0)), number, progress)

  def _warn(
    self, share: float, number: int, progress: metrics.Progress
  ) -> None:
    """Says once that patches have too little room."""
    if share <= _OVERFLOW or self._warned:
      return
    self._warned = True
    progress.say(
      f'step {number}: {share:.1%} of the bytes are in patches without room, as'
      " metrics' train/overflow counts; raise the reserve of the model or its"
      ' mean patch length (see patches.py).'
    )
