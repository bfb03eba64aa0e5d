import errno
import fcntl
import json
import os
import pathlib
import socket
import stat
import subprocess
import sys
import time

import pytest

from training import manifest
from training import workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = {'class': 'configs.base.Config', 'fields': {'steps': 3, 'rate': None}}

HOLD = """
import sys, os, time
from training import workdir
with workdir.hold(sys.argv[1]):
  print(os.getpid(), flush=True)
  time.sleep(600)
"""


def assert_refused(path: pathlib.Path, message: str) -> None:
  with pytest.raises(ValueError, match=message), workdir.hold(path):
    pass


def test_second_run_is_refused_until_the_first_dies(
  tmp_path: pathlib.Path,
) -> None:
  child = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path)], cwd=ROOT,
    stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  try:
    holder = child.stdout.readline().strip()
    assert_refused(tmp_path, f'in use by process {holder} on')
  finally:
    child.kill()
    child.communicate()
  with workdir.hold(tmp_path):
    assert_refused(tmp_path, f'in use by process {os.getpid()} on')
  with workdir.hold(tmp_path):
    pass


def test_a_lock_of_the_dead_is_taken_at_once(tmp_path, monkeypatch):
  """Its process may be another program by now: this one has its number."""
  lock = tmp_path / 'lock'
  here = f'process {os.getpid()} on {socket.gethostname()}\n'
  monkeypatch.setattr(workdir, '_wait_for_sign', None)
  for text in ('', here, f'{here}{workdir._machine()}\n000000007\n', 'x'):
    lock.write_text(text)
    with workdir.hold(tmp_path):
      assert lock.read_text().startswith(here)
    assert not lock.read_text()


ELSEWHERE = 'process 7 on far-away\nanother-machine\n{:09d}\n'


class Time:
  """Stands for `time`: sleeping calls `passes`, and nobody waits."""

  def __init__(self, passes):
    self.now, self.passes = 0.0, passes

  def monotonic(self):
    return self.now

  def sleep(self, seconds):
    self.now += seconds
    self.passes(self.now)


def no_locks(*_):
  raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize('locks', [fcntl.flock, no_locks])
def test_a_lock_of_another_machine(tmp_path, monkeypatch, locks):
  """The file system lets us have it, but who changes its file is alive."""
  lock = tmp_path / 'lock'
  lock.write_text(ELSEWHERE.format(1))
  # From a clock that is ahead of ours, and then behind it.
  times = iter((4e9, 1e9))

  def live_on(now):
    number = 1 + int(now / 3)
    if lock.read_text() != ELSEWHERE.format(number):
      lock.write_text(ELSEWHERE.format(number))
      os.utime(lock, (when := next(times), when))

  monkeypatch.setattr(fcntl, 'flock', locks)
  monkeypatch.setattr(workdir, 'time', Time(live_on))
  assert_refused(tmp_path, 'in use by process 7 on far-away; wait for it')
  assert lock.read_text() == ELSEWHERE.format(2)

  stands_still = Time(lambda _: None)
  monkeypatch.setattr(workdir, 'time', stands_still)
  with workdir.hold(tmp_path):
    assert stands_still.now >= 15
    assert lock.read_text().startswith(f'process {os.getpid()} on ')


@pytest.mark.parametrize('before', ['', ELSEWHERE.format(1)])
@pytest.mark.parametrize('locks', [fcntl.flock, no_locks])
def test_another_machine_begins_at_the_same_time(
  tmp_path, monkeypatch, before, locks
):
  """Both have seen no sign of life; the last to write its name has the lock."""
  lock = tmp_path / 'lock'
  lock.write_text(before)
  fsync = os.fsync

  def overtaken(handle):
    fsync(handle)
    lock.write_text(ELSEWHERE.format(0))

  monkeypatch.setattr(fcntl, 'flock', locks)
  monkeypatch.setattr(workdir, 'time', Time(lambda _: None))
  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', overtaken)
    assert_refused(tmp_path, 'in use by process 7 on far-away; wait for it')
  assert lock.read_text() == ELSEWHERE.format(0)


def test_another_machine_writes_its_name_a_little_later(tmp_path, monkeypatch):
  """While one waits for that where locks may not be shared."""
  lock = tmp_path / 'lock'
  came = []

  def comes(now):
    # Not before the name of this process, which no lock announces.
    if lock.read_text().startswith(f'process {os.getpid()} on '):
      came.append(now)
      lock.write_text(ELSEWHERE.format(0))

  monkeypatch.setattr(fcntl, 'flock', no_locks)
  monkeypatch.setattr(workdir, 'time', Time(comes))
  assert_refused(tmp_path, 'in use by process 7 on far-away; wait for it')
  assert came


def test_a_holder_ends_when_another_has_taken_its_place(tmp_path):
  """As one that was silent for long, and has not heard of it."""
  lock = tmp_path / 'lock'
  child = subprocess.Popen(
    [sys.executable, '-c', f'from training import workdir\n'
     f'workdir._BEAT = 0.05\n{HOLD}', str(tmp_path)],
    cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  try:
    assert child.stdout.readline()
    # A beat may have begun before.
    until = time.monotonic() + 600
    while child.poll() is None and time.monotonic() < until:
      lock.write_text(ELSEWHERE.format(3))
      time.sleep(0.2)
  finally:
    child.kill()
    _, err = child.communicate()
  assert child.returncode == 1
  assert 'in use by process 7 on far-away; wait for it' in err
  assert 'Traceback' not in err
  assert lock.read_text() == ELSEWHERE.format(3)


def test_the_holder_gives_signs_of_life(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir, '_BEAT', 0.01)
  with workdir.hold(tmp_path):
    first = second = (tmp_path / 'lock').read_text()
    until = time.monotonic() + 600
    while second == first and time.monotonic() < until:
      time.sleep(0.01)
      second = (tmp_path / 'lock').read_text()
  assert second > first
  assert second.splitlines()[:2] == first.splitlines()[:2]


def test_config_file(tmp_path: pathlib.Path) -> None:
  run = tmp_path / 'new' / 'run'
  assert workdir.read_config(run) is None
  workdir.write_config(run, CONFIG)
  assert workdir.read_config(run) == CONFIG
  assert [path.name for path in run.iterdir()] == ['config.json']
  with pytest.raises(TypeError):
    workdir.write_config(run, {'x': object()})
  assert workdir.read_config(run) == CONFIG
  (run / 'config.json').write_text(json.dumps(CONFIG)[:-3])
  with pytest.raises(ValueError, match=r'config\.json is not valid JSON'):
    workdir.read_config(run)


def test_a_pipe_is_written_to_and_stays(tmp_path):
  """A rename would put a file in the place of /dev/null for everybody."""
  pipe = tmp_path / 'pipe'
  os.mkfifo(pipe)
  reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
  manifest.write_file(pipe, 'text')
  assert os.read(reader, 9) == b'text'
  os.close(reader)
  assert stat.S_ISFIFO(pipe.stat().st_mode)
  assert [path.name for path in tmp_path.iterdir()] == ['pipe']
