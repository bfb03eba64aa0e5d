"""Folders of prepared data: made once, whole or not at all."""

import contextlib
import fcntl
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any


def make_once(
  folder: pathlib.Path, build: Callable[[pathlib.Path], None]
) -> pathlib.Path:
  """Makes a folder unless it is there; returns it.

  `build` fills a folder beside it, metadata.json last, which is then renamed:
  without that file a folder is not taken as made, whoever left it there.
  Processes that ask at the same time wait for the first one.
  """
  if _is_complete(folder):
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
  return folder


def _build(
  folder: pathlib.Path, build: Callable[[pathlib.Path], None]
) -> None:
  partial = folder.with_suffix('.incomplete')
  shutil.rmtree(partial, ignore_errors=True)
  try:
    partial.mkdir()
    build(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _is_complete(folder: pathlib.Path) -> bool:
  return (folder / 'metadata.json').exists()


@contextlib.contextmanager
def _locked(file: Any) -> Iterator[None]:
  """Waits for the lock of an open file; a killed holder loses it."""
  fcntl.flock(file, fcntl.LOCK_EX)
  try:
    yield
  finally:
    fcntl.flock(file, fcntl.LOCK_UN)
