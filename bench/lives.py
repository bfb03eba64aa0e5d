"""Lives of one training process, watched from outside and ended by signals.

A life is one start of train.py until it ends or is ended by SIGKILL or SIGTERM.
Most are forked by a
server that has imported everything but has not touched a device, which saves
the seconds of the imports; the others are executed as the shell does it.
"""

import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

from configs import command

ROOT = pathlib.Path(__file__).parent.parent
KINDS = ('forked', 'executed')
# Of a run that SIGTERM has stopped, by its flag --stop_code.
STOPPED = 75
# In this order; a kill is planned for one of them.
STAGES = ('starting', 'compiling', 'training', 'finishing')
# What a kill can have met, as told by what it left.
PHASES = (
  'importing', 'opening', 'compiling', 'training', 'saving', 'finishing',
)  # fmt: skip
_LOOK = 0.02  # Seconds between two looks.
_PATIENCE = 600.0


class Run(NamedTuple):
  """One run: the command that starts it again and again, and its folder."""

  arguments: tuple[str, ...]
  workdir: pathlib.Path
  logs: pathlib.Path
  steps: int


class View(NamedTuple):
  """What can be seen of a run from outside.

  holder: process that the lock names; step: the last that the log tells of;
  resumed: the checkpoint that it tells of; newest: the newest on disk;
  unfinished: names of what is being saved or deleted; stopped: the step that
  it says it stopped at.
  """

  holder: int | None
  step: int | None
  resumed: int | None
  newest: int | None
  unfinished: tuple[str, ...]
  stopped: int | None = None


class Plan(NamedTuple):
  """When a signal is sent: so long after a stage or step of training began."""

  stage: str
  step: int
  seconds: float
  sent: signal.Signals = signal.SIGKILL


class Life(NamedTuple):
  """What is known of one life.

  floor: the newest checkpoint when it began; view: what it left; code: how it
  ended; seconds: how long each stage took that it has gone through; sent: the
  signal that it was sent, if any; steps: those of the whole run.
  """

  kind: str
  floor: int | None
  view: View
  code: int
  phase: str
  seconds: dict[str, float]
  log: pathlib.Path
  sent: signal.Signals | None = None
  steps: int = 0

  @property
  def killed(self) -> bool:
    """Whether a signal ended it, before the run was finished or after."""
    return self.sent is not None and self.code != 0

  @property
  def stopped(self) -> bool:
    """Whether it saved what it had and said that there is more to do."""
    return self.sent == signal.SIGTERM and self.code == STOPPED

  @property
  def lost(self) -> bool:
    """Whether the newest checkpoint vanished, or was not resumed from."""
    began = self.view.resumed is not None or self.view.step is not None
    vanished = (self.view.newest or 0) < (self.floor or 0)
    return vanished or (began and self.view.resumed != self.floor)

  def complaints(self) -> list[str]:
    """What should not have been, in words."""
    found = self._bad_ends()
    if self.lost:
      found.append(
        f'checkpoint {self.floor} was lost: resumed from {self.view.resumed},'
        f' and {self.view.newest} is the newest'
      )
    if self.log.exists():
      text = self.log.read_text('utf-8', 'replace')
      if 'is damaged' in text or 'Traceback' in text:
        found.append('said that something is wrong')
    return [f'{self.log}: {what}' for what in found]

  def _bad_ends(self) -> list[str]:
    """What is wrong with its exit code, and with what it saved before."""
    step, newest = self.view.step, self.view.newest
    if self.stopped:
      at = self.view.stopped
      # None is saved of a run that was stopped at its first step.
      if at is None or (newest or 0) != at or at < (step or 0):
        return [f'stopped at step {at} after {step}, but saved {newest}']
    elif self.code == -signal.SIGTERM == -(self.sent or 0):
      # Until there is something to save it just ends, and so it does after.
      if step is not None and newest != self.steps:
        return [f'died of SIGTERM after step {step} and saved {newest}']
    elif self.code not in (0, -(self.sent or 0)):
      return [f'ended with code {self.code}']
    return []


def look(run: Run, log: pathlib.Path) -> View:
  """Takes a view of a run and of the log of one of its lives."""
  text = log.read_text('utf-8', 'replace') if log.exists() else ''
  steps = re.findall(rf' step (\d+)/{run.steps} ', text)
  resumed = re.search(r' resuming from checkpoint (\d+) in ', text)
  stopped = re.search(rf'^stopped at step (\d+) of {run.steps};', text, re.M)
  lock = run.workdir / 'lock'
  held = lock.read_text('utf-8', 'replace') if lock.exists() else ''
  holder = re.match(r'process (\d+) on ', held)
  return View(
    int(holder[1]) if holder else None,
    int(steps[-1]) if steps else None,
    int(resumed[1]) if resumed else None,
    newest(run),
    tuple(name for name in _names(run) if not name.isdecimal()),
    int(stopped[1]) if stopped else None,
  )


def newest(run: Run) -> int | None:
  """The newest checkpoint that is on disk."""
  return max(map(int, filter(str.isdecimal, _names(run))), default=None)


def _names(run: Run) -> list[str]:
  folder = run.workdir / 'checkpoints'
  return sorted(os.listdir(folder)) if folder.is_dir() else []


def stage(view: View, pid: int, steps: int) -> str:
  """The stage that a process is in."""
  if view.holder != pid:
    return 'starting'
  if view.step is None:
    return 'compiling'
  return 'finishing' if view.step >= steps else 'training'


def phase(kind: str, where: str, view: View) -> str:
  """What a kill met, as told by what it left."""
  if where == 'starting':
    return 'importing' if kind == 'executed' else 'opening'
  if where != 'compiling' and view.unfinished:
    return 'saving'
  return where


def live(run: Run, kind: str, number: int, plan: Plan | None) -> Life:
  """Starts the run's command once; ends it as planned unless it does before.

  OSError if it neither ends nor can be killed within ten minutes.
  """
  log = run.logs / f'{number}.log'
  floor = newest(run)
  process = _start(kind, run, log)
  began = time.monotonic()
  entered: dict[str, float] = {}
  sent = None
  while (code := _code(process)) is None:
    view, now = look(run, log), time.monotonic()
    if _code(process) is not None:
      continue
    here = stage(view, process.pid, run.steps)
    entered.setdefault(here, now)
    if plan is not None and _is_due(plan, here, view, now - entered[here]):
      time.sleep(plan.seconds if here == plan.stage == 'training' else 0)
      if plan.sent == signal.SIGTERM:
        process.terminate()
      else:
        process.kill()
      sent, plan = plan.sent, None
    if now - began > _PATIENCE:
      process.kill()
      raise OSError(f'{log}: no end after {_PATIENCE:.0f} seconds in {here}')
    time.sleep(_LOOK)
  view, ended = look(run, log), time.monotonic()
  # Who ends in order leaves the lock, as if it had not begun.
  here = stage(view, process.pid, run.steps)
  here = max((here, *entered), key=STAGES.index)
  times = [*entered.values(), ended]
  seconds = {
    name: after - before
    for name, before, after in zip(entered, times, times[1:], strict=False)
    if name != here or not code
  }
  met = phase(kind, here, view)
  return Life(kind, floor, view, code, met, seconds, log, sent, run.steps)


def digest(workdir: pathlib.Path, out: pathlib.Path) -> str:
  """SHA-256 of the parameters of a run's newest checkpoint, step included."""
  process = _CONTEXT.Process(target=_write_digest, args=(workdir, out))
  process.start()
  process.join()
  if process.exitcode:
    raise OSError(f'the parameters of {workdir} could not be read')
  return out.read_text('utf-8')


_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(['train', 'data.builder'])


def _start(kind: str, run: Run, log: pathlib.Path) -> Any:
  if kind == 'forked':
    process = _CONTEXT.Process(target=_train, args=(run, log))
    process.start()
    return process
  with open(log, 'ab') as file:
    return subprocess.Popen(
      [sys.executable, 'train.py', *run.arguments],
      cwd=ROOT,
      stdout=file,
      stderr=file,
    )


def _code(process: Any) -> int | None:
  if isinstance(process, subprocess.Popen):
    return process.poll()
  return process.exitcode


def _is_due(plan: Plan, here: str, view: View, seconds: float) -> bool:
  late = STAGES.index(here) - STAGES.index(plan.stage)
  if late or plan.stage != 'training':
    return late > 0 or (late == 0 and seconds >= plan.seconds)
  return view.step >= plan.step


def _train(run: Run, log: pathlib.Path) -> None:
  """What a forked process does: all that `python train.py` does."""
  handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  os.dup2(handle, 1)
  os.dup2(handle, 2)
  import train

  sys.argv = ['train.py', *run.arguments]
  command.run(train.main)


def _write_digest(workdir: pathlib.Path, out: pathlib.Path) -> None:
  """To be called in a process of its own: this one touches a device."""
  import hashlib

  import jax
  import numpy as np

  from training import checkpoint

  loaded = checkpoint.load_params(workdir)
  found = hashlib.sha256(str(loaded.step).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(loaded.params):
    found.update(f'{path} {leaf.dtype} {leaf.shape}'.encode())
    found.update(np.ascontiguousarray(leaf).tobytes())
  out.write_text(found.hexdigest(), 'utf-8')
