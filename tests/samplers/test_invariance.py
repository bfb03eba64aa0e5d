"""A row has the same results, to the last bit, in every batch.

In a process of its own, compiled as a user has it: what this suite asks of the
compiler would hide how it sums.
"""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
  'cases',
  [
    # Of more than 4096 ids only some blocks are read.
    pytest.param(('rules:6000', 'chain:32000'), id='often'),
    # Where the last bit of a sum decides.
    pytest.param(('edges:260', 'edges:6000'), id='edges'),
    pytest.param(
      ('rules:32000', 'bat:6000'), id='whole', marks=pytest.mark.slow
    ),
  ],
)
def test_rows_are_the_same_in_every_batch(cases):
  result = subprocess.run(
    [sys.executable, '-m', 'tests.samplers.by_batch', *cases],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert result.stdout == 'all rows are the same in every batch\n', (
    result.stdout[-2000:] + result.stderr[-2000:]
  )
