import builtins
import io
import json
import logging
import math
import pathlib
import resource
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from training import metrics


def write(path: pathlib.Path, steps: range, **fields: Any) -> None:
  with metrics.Writer(path, **fields) as writer:
    for step in steps:
      writer.write(step, {'train/loss': jnp.float32(step / 8)})


def test_lines(tmp_path: pathlib.Path) -> None:
  with metrics.Writer(tmp_path) as writer:
    writer.write(
      4, {'a': jnp.bfloat16(0.5), 'b': np.int64(3), 'c': 0.1, 'd': 'é'}
    )
    # Visible at once: a killed run keeps every line.
    line = (tmp_path / 'metrics.jsonl').read_text()
  assert json.loads(line) == {'step': 4, 'a': 0.5, 'b': 3, 'c': 0.1, 'd': 'é'}
  assert line.count('\n') == 1 and line.endswith('\n')


def test_non_finite_values_are_valid_json(tmp_path: pathlib.Path) -> None:
  values = {'a': jnp.float32(jnp.nan), 'b': np.inf, 'c': [1.0, -math.inf]}
  with metrics.Writer(tmp_path) as writer:
    writer.write(1, values)

  def refuse(name: str) -> None:
    raise AssertionError(f'{name} is not JSON')

  text = (tmp_path / 'metrics.jsonl').read_text()
  found = json.loads(text, parse_constant=refuse)
  assert found == {'step': 1, 'a': 'nan', 'b': 'inf', 'c': [1.0, '-inf']}
  [row] = metrics.read(tmp_path)
  assert math.isnan(row['a']) and row['b'] == math.inf


@pytest.mark.parametrize('torn', [b'', b'{"step": 7, "train/l', b'\x00\x00\n'])
def test_resume_has_each_step_once(tmp_path: pathlib.Path, torn: bytes) -> None:
  write(tmp_path, range(1, 7))
  with open(tmp_path / 'metrics.jsonl', 'ab') as file:
    file.write(torn)
  write(tmp_path, range(5, 9), step=4)
  rows = metrics.read(tmp_path)
  assert [row['step'] for row in rows] == list(range(1, 9))
  assert [row['train/loss'] for row in rows] == [s / 8 for s in range(1, 9)]


def test_new_run_starts_empty(tmp_path: pathlib.Path) -> None:
  write(tmp_path, range(1, 7))
  write(tmp_path, range(1, 3))
  assert [row['step'] for row in metrics.read(tmp_path)] == [1, 2]


def test_only_process_0_writes(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(metrics.jax, 'process_index', lambda: 1)
  write(tmp_path, range(3))
  assert not list(tmp_path.iterdir())


def test_tensorboard_missing(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  real = builtins.__import__

  def missing(name: str, *args: Any) -> Any:
    if name == 'tensorboardX':
      raise ImportError(name)
    return real(name, *args)

  monkeypatch.setattr(builtins, '__import__', missing)
  with pytest.raises(ValueError, match=r"pip install '\.\[tensorboard\]'"):
    metrics.Writer(tmp_path, tensorboard=True)
  assert not list(tmp_path.iterdir())


def test_tensorboard_events(tmp_path: pathlib.Path) -> None:
  pytest.importorskip('tensorboardX')
  write(tmp_path, range(1, 3), tensorboard=True)
  [events] = tmp_path.glob('events.out.tfevents.*')
  data = events.read_bytes()
  assert data.count(b'train/loss') == 2
  assert np.float32(2 / 8).tobytes() in data


class Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


class Clock:
  now = 100.0

  def monotonic(self) -> float:
    return self.now


@pytest.fixture(name='clock')
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
  clock = Clock()
  monkeypatch.setattr(metrics, 'time', clock)
  return clock


def run(clock: Clock, progress: metrics.Progress) -> None:
  """Ten steps of 2 s after 60 s of compilation, and a pause of 80 s."""
  for step in range(1, 11):
    clock.now += 2 + 60 * (step == 1) + 80 * (step == 5)
    progress.report(step, jnp.float32(8 / step))
  progress.close()


def test_log_lines(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
  caplog.set_level(logging.INFO, 'absl')
  stream = io.StringIO()
  run(clock, metrics.Progress(5000, bytes_per_step=8192, stream=stream))
  assert not stream.getvalue()
  assert len(caplog.messages) == 10
  assert 'step 1/5000  8.000 bits/byte' in caplog.messages[0]
  assert 'time left unknown' in caplog.messages[0]
  # 8192 bytes in 2 s; (9 * 2 + 80) / 9 s for each of 4990 steps.
  last = 'step 10/5000  0.800 bits/byte  4.1 kB/s  15:05:36 left'
  assert caplog.messages[-1] == last


def test_one_log_line_per_interval(
  clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
  caplog.set_level(logging.INFO, 'absl')
  run(clock, metrics.Progress(10, bytes_per_step=1, every=4))
  shown = [message.split()[1] for message in caplog.messages]
  assert shown == ['4/10', '8/10', '10/10']


def test_full_disk(tmp_path: pathlib.Path) -> None:
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  with metrics.Writer(tmp_path) as writer:
    writer.write(1, {'text': 'x' * 50_000})
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
      with pytest.raises(OSError, match=r'step 2 .*jsonl \(File too large'):
        writer.write(2, {'text': 'x' * 50_000})
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  write(tmp_path, range(2, 3), step=1)
  assert [row['step'] for row in metrics.read(tmp_path)] == [1, 2]


def test_bar_on_a_terminal(
  clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
  caplog.set_level(logging.INFO, 'absl')
  stream = Terminal()
  progress = metrics.Progress(10, bytes_per_step=8192, stream=stream)
  run(clock, progress)
  assert not caplog.messages
  text = stream.getvalue()
  assert 'step 10/10  0.800 bits/byte  4.1 kB/s  0:00 left' in text
  assert '100%|' in text


def test_speed_after_resume_counts_new_steps(
  clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
  caplog.set_level(logging.INFO, 'absl')
  progress = metrics.Progress(200, bytes_per_step=1000, step=100)
  for step in (110, 120):
    clock.now += 5
    progress.report(step, 1.0)
  assert '2 kB/s  0:40 left' in caplog.messages[-1]


@pytest.mark.parametrize(
  ('value', 'text'),
  [(0, '0 '), (999.4, '999 '), (999.6, '1 k'), (12345, '12.3 k'),
   (4e9, '4 G'), (3e12, '3 T')],
)  # fmt: skip
def test_quantity(value: float, text: str) -> None:
  assert metrics._quantity(value) == text


@pytest.mark.parametrize(
  ('seconds', 'text'), [(0.4, '0:00'), (59.6, '1:00'), (3723, '1:02:03')]
)
def test_duration(seconds: float, text: str) -> None:
  assert metrics._duration(seconds) == text
