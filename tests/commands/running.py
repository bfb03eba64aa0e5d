"""Runs the commands in this process, and judges how they refuse."""

import functools
import importlib.util
import os
import pathlib
from typing import NamedTuple
from unittest import mock

from absl import flags

from tests import tiny_runs

ROOT = pathlib.Path(__file__).parents[2]


class Result(NamedTuple):
  """How a command ended: exit code, what it printed, its last words."""

  code: int
  out: str
  err: str


@functools.cache
def load(name):
  """An entry point with flags of its own: two of them define --checkpoint."""
  importlib.import_module('grain')  # Whose flags are not to be caught below.
  own = flags.FlagValues()
  defines = {
    define: functools.partial(getattr(flags, define), flag_values=own)
    for define in dir(flags)
    if define.startswith('DEFINE_')
  }
  spec = importlib.util.spec_from_file_location(
    name.replace('/', '.'), ROOT / f'{name}.py'
  )
  module = importlib.util.module_from_spec(spec)
  with mock.patch.multiple(flags, **defines):
    spec.loader.exec_module(module)
  if name == 'train':
    tiny_runs.share_steps(module)
  return module, own


def parse(own, *arguments):
  """Gives flags their values, and the others their defaults again."""
  own.unparse_flags()
  for flag in own:
    own[flag].unparse()
  own(['command', *map(str, arguments)])


def train(run, folder, workdir, *arguments, config='good'):
  return run(
    'train', f'--config={folder}/{config}.py', f'--workdir={workdir}',
    *arguments,
  )  # fmt: skip


def files_below(path):
  return {
    file.relative_to(path): file.read_bytes()
    for file in path.rglob('*')
    if file.is_file()
  }


def assert_refused(result, name, *words):
  """The command failed and said why in one sentence."""
  assert result.code == 1
  assert result.out == ''
  assert result.err.startswith(f'{name}.py: ')
  assert result.err.count('\n') == 1, result.err
  for word in words:
    assert word in result.err


def truncate(path):
  os.truncate(path, path.stat().st_size // 2)
