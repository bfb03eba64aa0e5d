"""structure.py: the table of a coordinate check, and what it refuses."""

import json

import pytest

from configs import restore
from configs import theta_search
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


def test_costs_of_layers_are_printed(run, experiment):
  result = run('structure', f'--config={experiment}', '--layers', '--nomeasure')
  assert result.code == 0, result.err
  lines = result.out.splitlines()
  assert lines[0].split()[:3] == ['layer', 'structure', 'sizes']
  assert 'block_0/feed_forward/down' in result.out
  assert 'BlockTensorTrain()' in result.out
  assert lines[-1].startswith('8 projections: ')


def test_a_search_prints_its_table(run, experiment, monkeypatch):
  monkeypatch.setattr(theta_search, '_PARTS', (4,))
  result = run(
    'structure', f'--config={experiment}', '--search', '--time=1e6'
  )
  assert result.code == 0, result.err
  lines = result.out.splitlines()
  assert lines[0].startswith('alpha beta gamma')
  assert lines[1].startswith('dense') and len(lines) == 15
  assert 'linear=structured.Einsum(theta=(' in lines[-1]


def test_a_run_becomes_a_structured_one(
  run, folder, experiment, finished, tmp_path
):
  workdir, whole = tmp_path / 'structured', folder / 'full_rank.py'
  whole.write_text(
    experiment.read_text().replace(
      'structured.BlockTensorTrain()', 'structured.LowRank(fraction=1.0)'
    )
  )
  arguments = (
    f'--config={whole}', f'--convert={finished}', f'--workdir={workdir}',
    '--set=steps=2',
  )  # fmt: skip
  result = run('structure', *arguments)
  assert result.code == 0, result.err
  stages = json.loads((workdir / 'conversion.json').read_text())
  assert [stage['name'] for stage in stages] == [
    'dense', 'projected', 'after 2 steps'
  ]  # fmt: skip
  dense, projected, trained = (stage['bits'] for stage in stages)
  # Of full rank, nothing is lost.
  assert abs(projected - dense) < 1e-3 and trained < dense
  assert f'{dense:.4f}' in result.out and f'{trained:.4f}' in result.out
  # What eval.py and sample.py read.
  found = restore.restore(workdir)
  assert found.step == 2 and found.config.model.max_length == 32
  assert 'core_0_kernel' in found.params['block_0']['attention']['query']
  running.assert_refused(
    run('structure', *arguments), 'structure', 'holds something already'
  )


@pytest.mark.slow
def test_a_sweep_prints_the_best_rates(run, experiment):
  result = run(
    'structure', f'--config={experiment}', '--factors=1,4', '--steps=3',
    '--sweep=1e-4,1e-3', '--rules=transfer',
  )  # fmt: skip
  assert result.code == 0, result.err
  lines = [line.split() for line in result.out.splitlines()]
  assert lines[0][2:] == ['transfer', '16', 'transfer', '64']
  assert 'transfer: the best rates by width are' in result.out


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ((), ('--config is missing', 'configs/tiny.py')),
    (('--config={}', '--factors=1,x'), ('--factors=1,x', 'positive numbers')),
    (('--config={}', '--factors=0'), ('--factors=0', 'positive numbers')),
    (('--config={}', '--factors=0.1'), ('ByteLM.width=16 times 0.1', 'whole')),
    (('--config={}', '--rules=up'), ("rule='up'", 'transfer, width, none')),
    (('--config={}', '--sweep=1,x'), ('--sweep=1,x', 'positive numbers')),
    (('--config={}', '--search'), ('needs a budget', '--macs', '--bytes')),
    (('--config={}', '--convert=run'), ('--workdir is missing',)),
    (
      ('--config={}', '--layers', '--search'),
      ('--layers and --search', 'give one'),
    ),
  ],
)
def test_bad_flags(run, experiment, arguments, words):
  result = run('structure', *(a.format(experiment) for a in arguments))
  running.assert_refused(result, 'structure', *words)
