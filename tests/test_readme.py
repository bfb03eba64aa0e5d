"""The commands in README.md run, in order, in a copy of the checkout.

A block that a test cannot afford carries the reason on the line above it:
<!-- not run: takes ten minutes -->
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / 'README.md'
LEFT_BEHIND = shutil.ignore_patterns(
  '.git', '.venv', 'runs', 'build', '*.egg-info', '__pycache__', '.*_cache',
  '.hypothesis',
)


class Block(NamedTuple):
  line: int
  commands: str
  reason: str | None


def find_blocks(text):
  """The bash blocks of a Markdown text."""
  pattern = (
    r'^(?:<!-- not run: (?P<reason>.+?) -->\n+)?'
    r'```bash\n(?P<commands>.*?)^```$'
  )
  for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
    line = text.count('\n', 0, match.start('commands')) + 1
    yield Block(line, match['commands'], match['reason'])


BLOCKS = list(find_blocks(README.read_text())) if README.is_file() else []
RUNNABLE = [block for block in BLOCKS if block.reason is None]


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
  """A copy of the checkout, where blocks find what earlier ones made."""
  copy = tmp_path_factory.mktemp('readme') / 'patchwork'
  shutil.copytree(ROOT, copy, ignore=LEFT_BEHIND)
  (copy / '.venv').symlink_to(sys.prefix, target_is_directory=True)
  return copy


@pytest.mark.parametrize('block', RUNNABLE, ids=lambda b: f'line {b.line}')
def test_block_runs(block, checkout):
  environment = os.environ | {
    'PATH': f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}',
    'JAX_PLATFORMS': 'cpu',
    # As a user has it: here more is computed than compiled.
    'XLA_FLAGS': '',
  }
  result = subprocess.run(
    ['bash', '-euo', 'pipefail', '-c', block.commands],
    cwd=checkout,
    env=environment,
    capture_output=True,
    text=True,
    timeout=1500,
  )
  assert result.returncode == 0, (
    f'README.md:{block.line}\n{block.commands}\n'
    f'{result.stdout[-2000:]}\n{result.stderr[-2000:]}'
  )


def test_readme_shows_commands_that_run():
  assert README.is_file()
  assert RUNNABLE


def test_readme_is_short():
  assert len(README.read_text().splitlines()) <= 150


def test_every_command_is_in_a_block_that_is_found():
  assert README.read_text().count('```bash') == len(BLOCKS)


def test_links_into_the_repository_resolve():
  links = re.findall(r'\]\(([^)#]+)', README.read_text())
  inside = [link for link in links if '://' not in link]
  assert not [link for link in inside if not (ROOT / link).exists()]


def test_not_run_needs_a_reason():
  text = (
    '```bash\nmake a\n```\n\n'
    '<!-- not run: slow -->\n```bash\nmake b\n```\n'
    '<!-- not run: -->\n```bash\nmake c\n```\n'
  )
  blocks = list(find_blocks(text))
  assert [b.reason for b in blocks] == [None, 'slow', None]
  assert [b.commands for b in blocks] == ['make a\n', 'make b\n', 'make c\n']
