"""The run directory: its config file and the lock of the run that uses it."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging

from training import manifest

# Seconds between two signs of life of a lock's holder, and for which another
# machine waits for the next one.
_BEAT, _PATIENCE = 3.0, 15.0
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK)


def write_config(
  directory: str | os.PathLike[str], config: dict[str, Any]
) -> None:
  """Writes `config.json` of a run directory, wholly or not at all."""
  path = pathlib.Path(directory)
  path.mkdir(parents=True, exist_ok=True)
  text = json.dumps(config, indent=2) + '\n'
  manifest.write_file(path / 'config.json', text)


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Reads `config.json` of a run directory; None if there is none."""
  path = pathlib.Path(directory) / 'config.json'
  try:
    config = json.loads(path.read_bytes())
  except FileNotFoundError:
    return None
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f'{path} is not valid JSON ({error}); delete it and run train.py with'
      ' the same --config to write it again'
    ) from error
  if not isinstance(config, dict):
    raise ValueError(
      f'{path} holds no JSON object; delete it and run train.py with the same'
      ' --config to write it again'
    )
  return config


@contextlib.contextmanager
def hold(directory: str | os.PathLike[str]) -> Iterator[None]:
  """Holds the lock of a run directory; the system frees it if we die.

  Some file systems of several machines do not tell one of the locks of another.
  So a lock that names another machine also counts as held while its file goes
  on changing, as that of a living holder does, whatever the clocks say. Of two
  that begin at once, or where a holder was silent for so long that another one
  took its place, the one whose name is not in the file any more ends.
  Raises ValueError naming the holder if another run has it.
  """
  if jax.process_index() != 0:
    yield
    return
  path = pathlib.Path(directory) / 'lock'
  path.parent.mkdir(parents=True, exist_ok=True)
  handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
  try:
    is_sure = _lock(handle, path)
    found = path.read_text('utf-8', 'replace')
    _, machine, _ = (*found.splitlines(), '', '', '')[:3]
    is_ours = is_sure and machine in ('', _machine())
    if found and not is_ours:
      _wait_for_sign(path, found)
    # Time for another that has seen no sign either to write its name.
    with _beating(handle, path, settle=0 if is_ours else _BEAT):
      yield
  finally:
    os.close(handle)


def _lock(handle: int, path: pathlib.Path) -> bool:
  """Takes the lock; False where the file system knows of none."""
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    raise _refusal(path, path.read_text('utf-8', 'replace')) from error
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      raise
    return False
  return True


def _wait_for_sign(path: pathlib.Path, found: str) -> None:
  """Raises ValueError if the lock's file changes within `_PATIENCE`."""
  logging.info(
    '%s was in use by %s; waiting %.0f seconds for a sign of life',
    path.parent, _holder(found), _PATIENCE,
  )  # fmt: skip
  until = time.monotonic() + _PATIENCE
  while time.monotonic() < until:
    time.sleep(_BEAT / 4)
    # Opened anew: only then a network file system has to ask its server.
    now = path.read_text('utf-8', 'replace')
    if now and now != found:
      raise _refusal(path, now)


def _check(path: pathlib.Path, name: str) -> None:
  """Raises ValueError if another than `name` has written its name."""
  now = path.read_text('utf-8', 'replace')
  if now and not now.startswith(name):
    raise _refusal(path, now)


@contextlib.contextmanager
def _beating(
  handle: int, path: pathlib.Path, *, settle: float
) -> Iterator[None]:
  """Writes who holds the lock, and again and again that it is alive.

  Ends the process, as SIGKILL would, when another name stands there: all that
  it would do from then on is another's to do.
  settle: seconds after which to look for another name at first.
  """
  name = f'process {os.getpid()} on {socket.gethostname()}\n{_machine()}\n'
  ended = threading.Event()

  def beat(number: int) -> None:
    # Always as long, so that the file is never half of one and of another.
    os.pwrite(handle, f'{name}{number:09d}\n'.encode(), 0)
    os.fsync(handle)

  def go_on() -> None:
    number = 0
    while not ended.wait(_BEAT):
      number += 1
      try:
        _check(path, name)
        beat(number)
      except ValueError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)
      except OSError:
        pass  # The run has its own ways to fail.

  try:
    os.ftruncate(handle, 0)
    beat(0)
    time.sleep(settle)
    _check(path, name)
  except OSError as error:
    error.filename = str(path)
    raise
  thread = threading.Thread(target=go_on, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
    os.ftruncate(handle, 0)  # Nobody has to wait for a sign of us.


def _refusal(path: pathlib.Path, found: str) -> ValueError:
  return ValueError(
    f'{path.parent} is in use by {_holder(found)}; wait for it to end, stop it,'
    ' or pass another --workdir'
  )


def _holder(found: str) -> str:
  return found.split('\n')[0][:200].strip() or 'another process'


def _machine() -> str:
  """One for all processes of a running kernel, who see one another's locks."""
  try:
    return pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  except OSError:
    return socket.gethostname()
