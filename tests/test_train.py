"""Whole training runs: resume, signals, compilation, metrics, bad numbers."""

import functools
import logging
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types
from typing import NamedTuple

import jax
import numpy as np
import pytest

import train
from tests import tiny_runs
from training import checkpoint
from training import metrics
from training import sharding

ROOT = pathlib.Path(__file__).parent.parent


class Killed(BaseException):
  """Ends a run as no handler expects it."""


class Record(NamedTuple):
  """What a run did: batches taken, states saved by step, last step done."""

  batches: list[bytes]
  saved: dict[int, list[bytes]]
  end: int | None


def as_bytes(tree):
  """Every leaf, bit for bit."""
  leaves = [
    jax.random.key_data(x)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    else x
    for x in jax.tree.leaves(tree)
  ]
  return [np.asarray(x).tobytes() for x in leaves]


def run(config, workdir, *, before_batch=None, change=None, **options):
  """Trains, calling `before_batch` and changing batches as asked."""
  put, save = sharding.put_batch, checkpoint.Checkpoints.save
  record = Record([], {}, None)

  def put_batch(batch, where):
    if before_batch is not None:
      before_batch(len(record.batches))
    if change is not None:
      batch = change(len(record.batches), batch)
    record.batches.append(b''.join(batch[name].tobytes() for name in batch))
    return put(batch, where)

  def save_recorded(self, step, state, **fields):
    record.saved[step] = as_bytes(state)
    return save(self, step, state, **fields)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, 'put_batch', put_batch)
    patch.setattr(checkpoint.Checkpoints, 'save', save_recorded)
    try:
      end = train.train(config, str(workdir), **options)
    except Killed:
      end = None
  return record._replace(end=end)


def lines(workdir):
  """The metrics of a run without its times."""
  return [
    {key: value for key, value in line.items() if not key.startswith('time/')}
    for line in metrics.read(workdir)
  ]


@pytest.fixture(scope='module', autouse=True)
def _share_steps():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, '_make_job', train._make_job)
    tiny_runs.share_steps(train)
    yield


@pytest.fixture(scope='session')
def texts(tmp_path_factory):
  return tiny_runs.write_texts(tmp_path_factory.mktemp('train') / 'texts')


@pytest.fixture(scope='session')
def uninterrupted(texts):
  workdir = texts.parent / 'uninterrupted'
  record = run(tiny_runs.make_config(texts), workdir, tensorboard=True)
  return record, workdir


def test_run_leaves_checkpoints_metrics_and_events(uninterrupted):
  record, workdir = uninterrupted
  assert record.end == 10
  assert len(record.batches) == 10
  assert list(record.saved) == [4, 8, 10]
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == [
    '10', '8'
  ]  # fmt: skip
  written = lines(workdir)
  trained = [line['step'] for line in written if 'train/loss' in line]
  scored = [
    line['step'] for line in written if 'eval/validation/bits_per_byte' in line
  ]
  assert trained == [2, 4, 6, 8, 10]
  assert scored == [4, 8, 10]
  assert [line['step'] for line in written] == sorted(trained + scored)
  losses = [line['train/loss'] for line in written if 'train/loss' in line]
  assert losses == sorted(losses, reverse=True)
  first = written[0]
  assert first['train/bits_per_byte'] == pytest.approx(
    first['train/nats'] / math.log(2)
  )
  # The rate of a step is that before its update: 1 of 2 steps of warm-up.
  assert first['train/learning_rate'] == pytest.approx(5e-3)
  assert len(list(workdir.glob('events.out.tfevents.*'))) == 1


@pytest.mark.parametrize('at', [pytest.param(2, marks=pytest.mark.slow), 7])
def test_killed_and_resumed_equals_uninterrupted(
  texts, uninterrupted, tmp_path, monkeypatch, at
):
  tiny_runs.turn_clocks_back(monkeypatch)
  whole, whole_workdir = uninterrupted
  config = tiny_runs.make_config(texts)

  def kill(count):
    if count == at:
      raise Killed

  before = run(config, tmp_path, before_batch=kill)
  assert before.end is None
  assert before.batches == whole.batches[:at]
  for path in tmp_path.rglob('*'):
    os.utime(path, (5e9, 5e9))  # Written in the future, by another machine.
  resumed = run(config, tmp_path)
  start = max((step for step in before.saved), default=0)
  assert start == (4 if at == 7 else 0)
  assert resumed.batches == whole.batches[start:]
  assert resumed.end == 10
  for step, state in (before.saved | resumed.saved).items():
    assert state == whole.saved[step], f'step {step}'
  assert lines(tmp_path) == lines(whole_workdir)


CHILD = """
import os, signal, sys
from absl import app
import train
from training import sharding
name, at = sys.argv.pop(1), int(sys.argv.pop(1))
put, taken = sharding.put_batch, []
def put_batch(*arguments):
  if len(taken) == at: os.kill(os.getpid(), getattr(signal, name))
  taken.append(0)
  return put(*arguments)
sharding.put_batch = put_batch
app.run(train.main)
"""

EXPERIMENT = """
import pathlib
from tests import tiny_runs
def get_config():
  return tiny_runs.make_config(pathlib.Path({!r}), checkpoint_every=2)
"""


def test_real_signals_lose_nothing(texts, uninterrupted, tmp_path):
  whole, whole_workdir = uninterrupted
  file, workdir = tmp_path / 'experiment.py', tmp_path / 'run'
  file.write_text(EXPERIMENT.format(str(texts)))

  def child(name, at):
    return subprocess.run(
      [
        sys.executable, '-c', CHILD, name, str(at),
        f'--config={file}', f'--workdir={workdir}',
      ],
      cwd=ROOT, env=os.environ | {'JAX_NUM_CPU_DEVICES': '8'},
      capture_output=True, text=True, timeout=500,
    )  # fmt: skip

  killed = child('SIGKILL', 6)
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  names = {path.name for path in (workdir / 'checkpoints').iterdir()}
  steps = {name for name in names if name.isdecimal()}  # Not 6.saving, 2.old.
  assert steps in ({'2', '4'}, {'4', '6'}, {'2', '4', '6'})
  start = max(int(step) for step in steps)
  # Two batches on, between checkpoints and between lines of metrics.
  asked = child('SIGTERM', 2)
  assert asked.returncode == 0, asked.stderr
  assert f'resuming from checkpoint {start} in' in asked.stderr
  assert asked.stdout == (
    f'stopped at step {start + 3} of 10; {workdir} resumes when the same'
    ' command runs again\n'
  )
  # Only what this repository has to say.
  logged = re.findall(r'^[IWEF]\d{4} \S+ +\d+ (\w+\.py):', asked.stderr, re.M)
  assert logged and set(logged) <= {'train.py', 'metrics.py', 'text.py'}
  assert 'Traceback' not in asked.stderr
  resumed = run(tiny_runs.make_config(texts, checkpoint_every=2), workdir)
  assert resumed.batches == whole.batches[start + 3 :]
  assert resumed.saved[10] == whole.saved[10]
  assert lines(workdir) == lines(whole_workdir)


def test_sigterm_saves_at_the_next_boundary(texts, uninterrupted, tmp_path):
  whole, _ = uninterrupted
  config = tiny_runs.make_config(texts)
  handler = signal.getsignal(signal.SIGTERM)

  def ask(count):
    if count == 4:
      os.kill(os.getpid(), signal.SIGTERM)

  stopped = run(config, tmp_path, before_batch=ask)
  assert stopped.end == 5
  assert list(stopped.saved) == [4, 5]
  assert signal.getsignal(signal.SIGTERM) is handler
  assert run(config, tmp_path).batches == whole.batches[5:]
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
  again = run(config, tmp_path)
  assert (again.end, again.batches, again.saved) == (10, [], {})
  changed = {
    path.name for path, time in before.items() if path.stat().st_mtime_ns > time
  }
  assert changed <= {'lock', 'config.json', tmp_path.name}


def test_sigterm_ends_no_save(texts, uninterrupted, tmp_path, monkeypatch):
  """Neither one in the background nor the last, which nothing follows."""
  whole, _ = uninterrupted
  config = tiny_runs.make_config(texts)
  write, unheard = checkpoint.manifests.write, []

  def ask(path, manifest):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    write(path, manifest)

  before = signal.signal(signal.SIGTERM, lambda *_: unheard.append(1))
  monkeypatch.setattr(checkpoint.manifests, 'write', ask)
  try:
    records = [run(config, tmp_path)]
    while records[-1].end < 10:
      records.append(run(config, tmp_path))
  finally:
    signal.signal(signal.SIGTERM, before)
  assert not unheard
  assert 4 < records[0].end < 10
  taken = [batch for record in records for batch in record.batches]
  assert taken == whole.batches
  assert records[-1].saved[10] == whole.saved[10]


def test_another_mesh_goes_on_with_the_run(texts, uninterrupted, tmp_path):
  _, whole_workdir = uninterrupted

  def kill(count):
    if count == 6:
      raise Killed

  run(tiny_runs.make_config(texts), tmp_path, before_batch=kill)
  mesh = sharding.MeshShape(data=1, fsdp=4, tensor=2)
  resumed = run(tiny_runs.make_config(texts, mesh=mesh), tmp_path)
  assert list(resumed.saved) == [8, 10]
  for got, want in zip(lines(tmp_path), lines(whole_workdir), strict=True):
    assert got == pytest.approx(want, rel=1e-4)


def test_nothing_compiles_after_the_first_step_of_each_shape(
  texts, tmp_path, caplog
):
  caplog.set_level(logging.WARNING)
  marker = logging.getLogger('jax').warning
  config = tiny_runs.make_config(texts)
  jax.clear_caches()
  with jax.log_compiles():
    run(config, tmp_path, before_batch=functools.partial(marker, 'batch %d'))
  messages = [
    message.split(' with ')[0]
    for message in caplog.messages
    if message.startswith(('Compiling ', 'batch '))
  ]
  assert messages.count('Compiling jit(train_step)') == 1
  assert messages.count('Compiling jit(score)') == 1
  # By then there has been an evaluation and a checkpoint.
  late = messages[messages.index('batch 5') :]
  assert late == [f'batch {count}' for count in range(5, 10)]


def test_next_step_is_dispatched_before_metrics_are_read(
  texts, tmp_path, monkeypatch
):
  events = []

  class Finite:
    """What the loop reads first of a step's metrics."""

    def __init__(self, step, value):
      self.step, self.value = step, value

    def __bool__(self):
      events.append(f'r{self.step}')
      return bool(self.value)

  make_job = train._make_job

  def make_watched(*arguments):
    job = make_job(*arguments)

    def step(state, batch):
      number = 1 + sum(event.startswith('d') for event in events)
      events.append(f'd{number}')
      state, values = job.step(state, batch)
      return state, values._replace(finite=Finite(number, values.finite))

    return job._replace(step=step)

  monkeypatch.setattr(train, '_make_job', make_watched)
  run(tiny_runs.make_config(texts), tmp_path)
  # A state is known to be good before it is scored and saved (4, 8, 10).
  wanted = 'd1 d2 r1 d3 r2 d4 r3 r4 d5 d6 r5 d7 r6 d8 r7 r8 d9 d10 r9 r10'
  assert events == wanted.split()


def poison(at):
  """Makes the batch of one step count an infinite number of targets."""

  def change(count, batch):
    if count + 1 == at:
      batch = batch | {'mask': np.full_like(batch['mask'], np.nan)}
    return batch

  return change


@pytest.mark.parametrize('at', [3, 8, pytest.param(10, marks=pytest.mark.slow)])
def test_loss_that_is_not_finite_ends_the_run(
  texts, uninterrupted, tmp_path, at
):
  whole, _ = uninterrupted
  good = {3: None, 8: 4, 10: 8}[at]
  words = f'checkpoint {good} is good' if good else 'there is no checkpoint yet'
  with pytest.raises(
    FloatingPointError,
    match=f'not finite at step {at} .*; {words}: try a lower optimizer.learn',
  ):
    run(tiny_runs.make_config(texts), tmp_path, change=poison(at))
  assert all(line['step'] < at for line in lines(tmp_path))
  steps = sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir())
  assert steps == [step for step in (4, 8) if step < at]
  if good:
    # The run can be taken up at the checkpoint that the message names.
    resumed = run(tiny_runs.make_config(texts), tmp_path)
    assert resumed.saved[10] == whole.saved[10]


def test_seconds_per_step_leave_out_evaluations(texts, tmp_path, monkeypatch):
  clock = [0.0]
  of_loop = types.SimpleNamespace(monotonic=lambda: clock[0])
  monkeypatch.setattr(train.logger_lib, 'time', of_loop)
  evaluate = train.evaluate

  def evaluate_slowly(*arguments):
    clock[0] += 1000.0
    return evaluate(*arguments)

  def tick(count):
    del count
    clock[0] += 1.0

  monkeypatch.setattr(train, 'evaluate', evaluate_slowly)
  config = tiny_runs.make_config(texts, eval_every=3)
  run(config, tmp_path, before_batch=tick)
  seconds = [
    line['time/step_seconds']
    for line in metrics.read(tmp_path)
    if 'time/step_seconds' in line
  ]
  # The clock runs at most one step ahead of the metrics.
  np.testing.assert_allclose(seconds, 1.0, atol=0.5)
