"""Metrics of a run: JSON lines for programs, progress for people."""

import collections
import contextlib
import json
import math
import os
import pathlib
import statistics
import sys
import time
from typing import Any, TextIO

import jax
import tqdm
from absl import logging

from training import manifest

_NAME = 'metrics.jsonl'


class Writer:
  """Appends one JSON object per `write` to `metrics.jsonl` on process 0.

  Lines of steps after `step`, the one training resumes from, are removed, and
  so is a line that a kill cut short, so nothing stands in the file twice; a
  step that trains and evaluates has a line of each. JSON has no NaN or
  infinity; they are written as the strings "nan", "inf" and "-inf", which
  `read` turns back into floats. With `tensorboard`, scalars also go to
  TensorBoard event files in the same directory.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    step: int = 0,
    tensorboard: bool = False,
  ) -> None:
    self._path = path = pathlib.Path(directory) / _NAME
    self._files = contextlib.ExitStack()
    self._file = None
    self._events = None
    if jax.process_index() != 0:
      return
    if tensorboard:
      self._events = _open_events(path.parent, step)
      self._files.callback(self._events.close)
    path.parent.mkdir(parents=True, exist_ok=True)
    _keep_until(path, step)
    # Unbuffered, so that a kill loses no line that was written.
    self._file = self._files.enter_context(path.open('ab', buffering=0))

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Writes the metrics of one step: arrays of one element, or JSON values.

    This waits for the arrays, so pass those of the step before the one that
    was dispatched last. Write a step before saving its checkpoint.
    """
    if self._file is None:
      return
    values = {
      key: value.item() if hasattr(value, 'item') else value
      for key, value in jax.device_get(values).items()
    }
    line = json.dumps({'step': step} | _spelled(values), allow_nan=False)
    data = line.encode() + b'\n'
    try:
      while data:
        data = data[self._file.write(data) :]
    except OSError as error:
      raise OSError(
        f'metrics of step {step} could not be written to {self._path}'
        f' ({error.strerror}); put that right and run the same command again'
        ' to resume'
      ) from error
    if self._events is not None:
      for key, value in values.items():
        if isinstance(value, int | float):
          self._events.add_scalar(key, value, step)

  def close(self) -> None:
    """Closes the files."""
    self._files.close()


class Progress:
  """Shows step, loss, speed and time left: a live bar, or a line per interval.

  The bar appears where `stream` is a terminal, elsewhere a log line every
  `every` steps; only process 0 shows anything. `bytes_per_step` counts the
  bytes of the global batch. Speed is a median over recent reports, so neither
  compilation nor an evaluation distorts it; the time left counts evaluations.
  """

  def __init__(
    self,
    total_steps: int,
    *,
    bytes_per_step: int,
    every: int = 1,
    step: int = 0,
    stream: TextIO | None = None,
  ) -> None:
    stream = sys.stderr if stream is None else stream
    self._total = total_steps
    self._bytes = bytes_per_step
    self._every = every
    self._last = (step, time.monotonic())
    self._first: tuple[int, float] | None = None
    self._seconds = collections.deque[float](maxlen=25)
    self._bar = None
    self._shown = jax.process_index() == 0
    if self._shown and stream.isatty():
      self._bar = tqdm.tqdm(
        total=total_steps,
        initial=step,
        file=stream,
        dynamic_ncols=True,
        bar_format='{percentage:3.0f}%|{bar}| {desc}',
      )

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def report(self, step: int, bits_per_byte: Any) -> None:
    """Shows that `step` steps are done and the loss of the last one.

    Call after every step; it waits for the loss when it is due to be shown,
    so pass it one step late, like `Writer.write`.
    """
    if not self._shown or not self._due(step):
      return
    text = f'step {step}/{self._total}  {float(bits_per_byte):.3f} bits/byte'
    text = f'{text}  {self._pace(step)}'
    if self._bar is None:
      logging.info('%s', text)
    else:
      self._bar.n = step
      self._bar.set_description_str(text)

  def say(self, text: str) -> None:
    """Shows a line of its own: above the bar, or in the log."""
    if self._bar is not None:
      self._bar.write(text, file=self._bar.fp)
    elif self._shown:
      logging.info('%s', text)

  def close(self) -> None:
    """Leaves the last state of the bar on the terminal."""
    if self._bar is not None:
      self._bar.close()

  def _due(self, step: int) -> bool:
    if step >= self._total:
      return True
    if self._bar is None:
      return step % self._every == 0
    return self._first is None or time.monotonic() - self._last[1] >= 0.2

  def _pace(self, step: int) -> str:
    """Takes the time and returns speed and time left."""
    now = time.monotonic()
    last_step, last_time = self._last
    if step > last_step:
      self._seconds.append((now - last_time) / (step - last_step))
    self._last = (step, now)
    if self._first is None:
      # The time until here holds the compilation and says little.
      self._first = (step, now)
      return 'time left unknown'
    first_step, first_time = self._first
    per_step = (now - first_time) / max(step - first_step, 1)
    speed = self._bytes / max(statistics.median(self._seconds), 1e-9)
    left = _duration(per_step * (self._total - step))
    return f'{_quantity(speed)}B/s  {left} left'


def read(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Reads the metrics of a run directory, one dict per line."""
  lines = (pathlib.Path(directory) / _NAME).read_bytes().splitlines()
  names = ('nan', 'inf', '-inf')
  return [
    {
      key: float(value) if value in names else value
      for key, value in json.loads(line).items()
    }
    for line in lines
  ]


def _keep_until(path: pathlib.Path, step: int) -> None:
  """Rewrites the file, if need be, without later steps and torn lines."""
  try:
    data = path.read_bytes()
  except FileNotFoundError:
    return
  kept = b''.join(
    line
    for line in data.splitlines(keepends=True)
    if (found := _step_of(line)) is not None and found <= step
  )
  if kept != data:
    manifest.write_file(path, kept.decode())


def _step_of(line: bytes) -> int | None:
  if not line.endswith(b'\n'):
    return None
  try:
    return int(json.loads(line)['step'])
  except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
    return None


def _open_events(directory: pathlib.Path, step: int) -> Any:
  try:
    import tensorboardX
  except ImportError as error:
    raise ValueError(
      'TensorBoard output needs the package tensorboardX; install it with'
      " pip install '.[tensorboard]', or leave the flag out"
    ) from error
  return tensorboardX.SummaryWriter(str(directory), purge_step=step + 1)


def _spelled(value: Any) -> Any:
  """Replaces non-finite floats, at any depth, by their names."""
  if isinstance(value, dict):
    return {key: _spelled(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_spelled(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value


def _quantity(value: float) -> str:
  """Spells a rate with three digits and a prefix: 12345 is '12.3 k'."""
  prefixes = ['', 'k', 'M', 'G', 'T']
  while value >= 999.5 and len(prefixes) > 1:
    value /= 1000
    prefixes.pop(0)
  return f'{value:.3g} {prefixes[0]}'


def _duration(seconds: float) -> str:
  """Spells a duration: '1:02:03' or '2:03'."""
  minutes, second = divmod(round(seconds), 60)
  hours, minute = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minute:02}:{second:02}'
  return f'{minute}:{second:02}'
