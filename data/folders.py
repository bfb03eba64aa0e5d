"""Folders of prepared data: made once, whole or not at all, and checked."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from data import json_text

_CHECKSUMS = 'checksums.json'


def make_once(
  folder: pathlib.Path, build: Callable[[pathlib.Path], None]
) -> pathlib.Path:
  """Makes a folder unless it is there; returns it.

  `build` fills a folder beside it, metadata.json last, which is then renamed:
  without that file a folder is not taken as made, whoever left it there.
  Processes that ask at the same time wait for the first one. What was made is
  compared with its checksums where it has changed since this process last
  looked; ValueError names a file that is not what `build` wrote.
  """
  if _is_complete(folder):
    _check(folder)
    return folder
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_suffix('.lock').open('w')
  except OSError as error:
    raise ValueError(
      f'{folder.parent} cannot be written ({error.strerror}); set'
      ' data.directory to a folder of yours.'
    ) from error
  with lock, _locked(lock):
    if not _is_complete(folder):
      _build(folder, build)
  _check(folder)
  return folder


def _build(
  folder: pathlib.Path, build: Callable[[pathlib.Path], None]
) -> None:
  partial = folder.with_suffix('.incomplete')
  shutil.rmtree(partial, ignore_errors=True)
  try:
    partial.mkdir()
    build(partial)
    _write_checksums(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
  except (OSError, RuntimeError) as error:
    number = _number(error)
    if number is None or getattr(error, 'filename', None):
      raise
    raise OSError(number, os.strerror(number), str(folder)) from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _number(error: Exception) -> int | None:
  """Why the disk refused, also where array_record or TFDS says it in words."""
  numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
  told = [n for n in numbers if os.strerror(n) in str(error)]
  return getattr(error, 'errno', None) or next(iter(told), None)


def _is_complete(folder: pathlib.Path) -> bool:
  return (folder / 'metadata.json').exists()


def _write_checksums(folder: pathlib.Path) -> None:
  """Size and SHA-256 of every file that is read once the folder is made."""
  files = sorted(file for file in folder.rglob('*') if file.is_file())
  entries = {
    file.relative_to(folder).as_posix(): (file.stat().st_size, _digest(file))
    for file in files
    if '.array_record' not in file.name  # Read again only to make it anew.
  }
  (folder / _CHECKSUMS).write_text(json.dumps(entries, indent=1), 'utf-8')


def _check(folder: pathlib.Path) -> None:
  """ValueError if a file is missing or has changed; unlisted ones may be."""
  path = folder / _CHECKSUMS
  if not path.exists():  # Made before there were any.
    return
  try:
    entries = json_text.load(path, dict, 'remove it')
    expected = {n: (int(size), str(d)) for n, (size, d) in entries.items()}
    if any('\0' in n or '..' in n.split('/') or n[:1] == '/' for n in expected):
      raise ValueError('names files elsewhere')
  except (ValueError, OverflowError, TypeError) as error:
    raise _damage(folder, _CHECKSUMS, 'is no list of checksums') from error
  for name, wanted in expected.items():
    file = folder / name
    try:
      stat = file.stat()
      found = stat.st_size, _digest_of(file, stat.st_size, stat.st_mtime_ns)
    except FileNotFoundError as error:
      raise _damage(folder, name, 'is missing') from error
    except OSError as error:
      why = f'cannot be read ({error.strerror})'
      raise _damage(folder, name, why) from error
    if found[0] != wanted[0]:
      why = f'has {found[0]} bytes instead of {wanted[0]}'
      raise _damage(folder, name, why)
    if found != wanted:
      raise _damage(folder, name, 'has changed since it was written')


def _damage(folder: pathlib.Path, name: str, why: str) -> ValueError:
  return ValueError(
    f'{folder / name} {why}: the prepared data is damaged; remove {folder} to'
    ' have it prepared again.'
  )


@functools.lru_cache(maxsize=4096)
def _digest_of(file: pathlib.Path, size: int, changed: int) -> str:
  """SHA-256 of a file, read again once its size or time is another."""
  del size, changed
  return _digest(file)


def _digest(file: pathlib.Path) -> str:
  with open(file, 'rb') as opened:
    return hashlib.file_digest(opened, 'sha256').hexdigest()


@contextlib.contextmanager
def _locked(file: Any) -> Iterator[None]:
  """Waits for the lock of an open file; a killed holder loses it."""
  fcntl.flock(file, fcntl.LOCK_EX)
  try:
    yield
  finally:
    fcntl.flock(file, fcntl.LOCK_UN)
