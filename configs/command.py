"""What the commands share: flags, errors in one sentence, quiet logs."""

import contextlib
import linecache
import logging
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app
from absl import flags

from configs import base
from configs import cluster

_SCRIPTS = (
  '__main__', 'train', 'eval', 'sample', 'convert', 'patches', 'structure',
)  # fmt: skip
_NOISY = os.sep + 'tensorflow_datasets' + os.sep


def run(main: Callable[[Sequence[str]], Any]) -> None:
  """`absl.app.run`, but a wrong flag is one sentence too."""
  app.run(main, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> Sequence[str]:
  try:
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise flags.Error(f'{rest[1]!r} is no flag; write --name=value')
  except flags.Error as error:
    text = ' '.join(str(error).split()).rstrip('.')
    name = pathlib.Path(argv[0]).name
    sys.exit(f'{name}: {text} (--help lists the flags).')
  return rest


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
  """Ends the command with one sentence where the user can put things right.

  That is an error of the file system, or a ValueError or FloatingPointError
  that this repository raises itself. All others, also a ValueError out of a
  library, are bugs and keep their traceback. In a job of several processes it
  ends at once, and with exit code 75 if another one is gone.
  """
  try:
    yield
  except BrokenPipeError:
    raise
  except Exception as error:
    lost = cluster.lost(error)
    if lost is not None:
      cluster.leave(f'{name}: {lost}', cluster.TRY_AGAIN)
    text = _sentence(error)
    if text is None:
      cluster.leave(''.join(traceback.format_exception(error)), 1)
      raise
    text = f'{name}: {" ".join(text.split())}'
    cluster.leave(text, 1)
    raise SystemExit(text) from error


def quiet() -> None:
  """Drops what libraries log of their own affairs, warnings excepted."""
  logging.getLogger('jax').setLevel(logging.WARNING)
  logger = logging.getLogger('absl')
  if _is_worth_showing not in logger.filters:
    logger.addFilter(_is_worth_showing)


def _is_worth_showing(record: logging.LogRecord) -> bool:
  return record.levelno >= logging.WARNING or _NOISY not in record.pathname


def _is_raised_here(error: Exception) -> bool:
  """Is the error's origin a raise statement in a file of this repository?"""
  trace = error.__traceback__
  while trace.tb_next is not None:
    trace = trace.tb_next
  frame = trace.tb_frame
  package = frame.f_globals.get('__name__', '').split('.')[0]
  if package not in (*base.PACKAGES, 'bench', 'released', *_SCRIPTS):
    return False
  line = linecache.getline(frame.f_code.co_filename, trace.tb_lineno)
  return line.lstrip().startswith('raise ')


def _sentence(error: Exception) -> str | None:
  """What to tell the user of an error that is no bug."""
  if isinstance(error, OSError):
    return _described(error)
  if isinstance(error, ValueError | FloatingPointError):
    return str(error) if _is_raised_here(error) else None
  return None


def _described(error: OSError) -> str:
  """Our own words, or those of the system with its file and a way out."""
  if not error.strerror:
    return str(error)
  where = '' if error.filename is None else f'{error.filename}: '
  return (
    f'{where}{error.strerror}; put that right (the path, its permissions, disk'
    ' space) or name another path.'
  )
