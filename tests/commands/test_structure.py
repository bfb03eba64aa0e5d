"""structure.py: the table of a coordinate check, and what it refuses."""

import pytest

from tests.commands import running

BTT = """
import dataclasses, pathlib
from configs import initial
from models import linear, structured
from tests import tiny_runs
def get_config():
  dense = tiny_runs.MODEL
  config = tiny_runs.make_config(pathlib.Path({texts!r}))
  return dataclasses.replace(
    config,
    model=dense.clone(
      hidden=64,
      linear=linear.Roles(
        structured.BlockTensorTrain(), head=linear.Dense(gain=0.0)
      ),
    ),
    # Embeddings, which no rule slows down, would hide what kernels do.
    optimizer=dataclasses.replace(
      config.optimizer, learning_rate=3e-3, frozen=('embed',)
    ),
  )
"""


@pytest.fixture(scope='session')
def experiment(folder):
  file = folder / 'btt.py'
  file.write_text(BTT.format(texts=str(folder / 'texts')))
  return file


@pytest.mark.slow
def test_rates_that_transfer_move_features_alike(run, experiment):
  result = run(
    'structure', f'--config={experiment}', '--factors=1,16', '--steps=3'
  )
  assert result.code == 0, result.err
  assert result.out.startswith('transfer')
  lines = [line.split() for line in result.out.splitlines()]
  assert lines[0] == ['transfer', '16', '256', 'ratio']
  transfer, width = (
    float(line[-1]) for line in lines if line[0] == 'block_0/output'
  )
  # Of rates by the width alone, a fan-in 16^1/2 as wide takes 1 / 16.
  assert 0.5 < transfer < 2
  assert width < 0.5 * transfer
  assert any('times as far at width 256 as at 16' in x for x in
             result.out.splitlines())


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ((), ('--config is missing', 'configs/tiny.py')),
    (('--config={}', '--factors=1,x'), ('--factors=1,x', 'positive numbers')),
    (('--config={}', '--factors=0'), ('--factors=0', 'positive numbers')),
    (('--config={}', '--factors=0.1'), ('ByteLM.width=16 times 0.1', 'whole')),
    (('--config={}', '--rules=up'), ("rule='up'", 'transfer, width, none')),
  ],
)
def test_bad_flags(run, experiment, arguments, words):
  result = run('structure', *(a.format(experiment) for a in arguments))
  running.assert_refused(result, 'structure', *words)
