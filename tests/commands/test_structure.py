"""structure.py: the table of a coordinate check, and what it refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import cluster
from configs import coordinates
from configs import restore
from configs import theta_search
from configs import warm_start
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
    optimizer=dataclasses.replace(config.optimizer, learning_rate=3e-3),
  )
"""


@pytest.fixture(scope='session')
def experiment(folder):
  file = folder / 'btt.py'
  file.write_text(BTT.format(texts=str(folder / 'texts')))
  return file


@pytest.mark.slow
def test_rates_that_transfer_move_features_alike(run, experiment, tmp_path):
  picture = tmp_path / 'new' / 'changes.svg'
  result = run(
    'structure', f'--config={experiment}', '--factors=1,64', '--steps=4',
    '--seeds=2', f'--plot={picture}',
  )  # fmt: skip
  assert result.code == 0, result.err
  lines = [line.split() for line in result.out.splitlines()]
  assert lines[0] == ['transfer', '16', '1024', 'ratio']
  names = ('block_0/output', 'attention/query', 'feed_forward/down')
  ratios = [
    [float(x[3]) for x in lines if x[0] == name and len(x) == 6]
    for name in names
  ]
  transfer, width = zip(*ratios, strict=True)
  # By the width alone a fan-in 64^1/2 as wide has a rate of 1 / 64.
  assert max(width) < 0.2
  # Alone, what begins with zeros moves by chance, too.
  assert 0.6 < transfer[0] < 1.8 and min(transfer) > 0.3
  means = re.findall(r'far, (.*) in their geometric', result.out)
  assert 0.6 < float(means[0]) < 1.8 and float(means[1]) < 0.2
  assert result.out.count('block_0/output moves') == 2
  assert result.out.count('structured layers move') == 2
  assert picture.read_text().count('<polyline') == 2


def test_verdicts_on_changes(tmp_path):
  module, own = running.load('structure')
  running.parse(own, '--steps=3')
  narrow = coordinates.Point(
    16, {'block_1/output': 0.2, 'block_0/output': 0.1, 'logits': 1.0}, 5.5,
    {'attention/query': 0.1, 'head': 0.2},
  )  # fmt: skip
  wide = coordinates.Point(
    1024, {'block_1/output': 0.03, 'block_0/output': 0.2, 'logits': 0.5}, 5.5,
    {'attention/query': 0.015, 'head': 0.05},
  )  # fmt: skip
  lines = module.table('width', [narrow, wide])
  assert lines[1].split() == ['block_1/output', '0.2000', '0.0300', '0.15']
  assert lines[-2] == (
    'block_1/output moves 0.15 times as far at width 1024 as at 16, not within'
    ' 0.8 to 1.6, below 0.2'
  )
  assert lines[-1] == (
    'structured layers move 0.15 to 0.25 times as far, 0.19 in their geometric'
    ' mean, not within 0.8 to 1.6, not below 0.2'
  )
  same = module.table('transfer', [narrow, narrow._replace(width=64)])
  assert [line.endswith(', within 0.8 to 1.6') for line in same[-2:]] == [1, 1]
  errors = dict.fromkeys((*narrow.changes, *narrow.layers), 0.03)
  twice = [narrow, wide._replace(errors=dict.fromkeys(errors, 0.04))]
  twice[0] = narrow._replace(errors=errors)
  # Relative errors of a ratio add up as squares: 0.05 times 0.5.
  assert module.table('width', twice)[3].endswith('   0.50 +- 0.03')
  silent = narrow._replace(changes=narrow.changes | {'logits': 0.0})
  with pytest.raises(ValueError, match='--steps=3: logits does not move at'):
    module.table('width', [silent, wide])
  file = tmp_path / 'changes.svg'
  module.plot({'width': [narrow, wide]}, str(file))
  assert 'block_1/output' in file.read_text()


def test_what_a_verdict_is_about():
  module, _ = running.load('structure')

  def watched(*names):
    return module.watched(
      coordinates.Point(8, dict.fromkeys(names, 1.0), 0.0, {})
    )

  deep = [f'block_{i}/output' for i in range(12)]
  assert watched('final', *deep, 'logits') == 'block_11/output'
  assert watched('blocks/output', 'final', 'logits') == 'blocks/output'
  stacks = [f'model/local_{x}/block_0/output' for x in ('decoder', 'encoder')]
  assert watched(*stacks, 'logits') == stacks[0]
  assert watched('logits') == 'logits'


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


def test_a_run_becomes_a_structured_one_however_often_it_is_killed(
  run, folder, experiment, finished, tmp_path, monkeypatch
):
  workdir, whole = tmp_path / 'structured', folder / 'full_rank.py'
  whole.write_text(
    experiment.read_text().replace(
      'structured.BlockTensorTrain()', 'structured.LowRank(fraction=1.0)'
    )
  )
  arguments = (
    f'--config={whole}', f'--convert={finished}', f'--workdir={workdir}',
    '--set=steps=2', '--set=checkpoint_every=1',
  )  # fmt: skip
  made, read, scored = warm_start.pipeline.batches, [], []

  class Batches:
    def __init__(self, *arguments, **options):
      self.all = made(*arguments, **options)

    def __getitem__(self, i):
      read.append(i)
      if read == [0, 1]:
        raise KeyboardInterrupt
      return self.all[i]

  def measure(name, *arguments, measure=warm_start.measure):
    if scored == ['dense']:
      scored.append('killed')
      raise KeyboardInterrupt
    scored.append(name)
    return measure(name, *arguments)

  monkeypatch.setattr(warm_start.pipeline, 'batches', Batches)
  monkeypatch.setattr(warm_start, 'measure', measure)
  for _ in range(2):
    with pytest.raises(KeyboardInterrupt):
      run('structure', *arguments)
    assert not workdir.exists()
  result = run('structure', *arguments)
  assert result.code == 0, result.err
  # Nothing that was complete is done again.
  assert scored == ['dense', 'killed', 'projected', 'after 2 steps']
  assert read == [0, 1, 1]
  stages = json.loads((workdir / 'conversion.json').read_text())
  assert [stage['name'] for stage in stages] == [
    'dense', 'projected', 'after 2 steps'
  ]  # fmt: skip
  dense, projected, trained = (stage['score'] for stage in stages)
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


CHILD = """
import os, signal, sys
from absl import app
import structure
from configs import rate_sweep, warm_start
name, at, calls = sys.argv.pop(1), int(sys.argv.pop(1)), []
def counted(function):
  def call(*arguments):
    if len(calls) == at: os.kill(os.getpid(), getattr(signal, name))
    calls.append(0)
    return function(*arguments)
  return call
class Batches:
  def __init__(self, *arguments, **options):
    self.get = counted(batches(*arguments, **options).__getitem__)
  def __getitem__(self, i):
    return self.get(i)
trial, batches = rate_sweep.trial, warm_start.pipeline.batches
if any('--convert' in argument for argument in sys.argv):
  warm_start.pipeline.batches = Batches
rate_sweep.trial = lambda *arguments: counted(trial(*arguments))
app.run(structure.main)
"""


def stopped(name, at, *arguments):
  """structure.py in a process that gets a signal at a run or batch."""
  return subprocess.run(
    [sys.executable, '-c', CHILD, name, str(at), *arguments],
    cwd=running.ROOT, capture_output=True, text=True, timeout=500,
    env=os.environ | {'JAX_NUM_CPU_DEVICES': '8'},
  )  # fmt: skip


@pytest.mark.slow
def test_a_sweep_that_signals_end_goes_on(run, experiment, tmp_path):
  arguments = (
    f'--config={experiment}', '--factors=1,4', '--steps=3', '--sweep=1e-4,1e-3',
    '--rules=transfer',
  )  # fmt: skip
  workdir = f'--workdir={tmp_path / "killed"}'
  for name in ('SIGTERM', 'SIGKILL'):
    child = stopped(name, 1, *arguments, workdir)
    assert child.returncode == -getattr(signal, name), child.stderr
    assert child.stdout.count('seed 0, rate') == 1
  result = run('structure', *arguments, workdir)
  assert result.code == 0, result.err
  assert result.out.count('seed 0, rate') == 2
  table = result.out[result.out.index('learning rate') :]
  whole = run('structure', *arguments, f'--workdir={tmp_path / "whole"}')
  assert whole.out.count('seed 0, rate') == 4 and whole.out.endswith(table)
  lines = [line.split() for line in table.splitlines()]
  assert lines[0][2:] == ['transfer', '16', 'transfer', '64']
  assert 'transfer: the best rates by width are' in table
  running.assert_refused(
    run('structure', *arguments, workdir, '--set=seed=1'),
    'structure', 'sweep of other settings (config.seed: 0 != 1)', '--workdir',
  )  # fmt: skip


@pytest.mark.slow
def test_a_conversion_that_signals_end_goes_on(
  run, experiment, finished, tmp_path
):
  def arguments(name):
    return (
      f'--config={experiment}', f'--convert={finished}', '--set=steps=6',
      '--set=checkpoint_every=2', f'--workdir={tmp_path / name}',
    )  # fmt: skip

  killed = stopped('SIGKILL', 3, *arguments('killed'))
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  asked = stopped('SIGTERM', 2, *arguments('killed'))
  assert asked.returncode == cluster.TRY_AGAIN, asked.stderr
  # The batch that it came with is the last one.
  assert re.search(r'^stopped at step [35] of 6; ', asked.stdout, re.M)
  assert not (tmp_path / 'killed').exists()
  other = run('structure', *arguments('killed'), '--lead=0.25')
  running.assert_refused(
    other, 'structure', 'conversion of other settings (lead: 0.5 != 0.25)'
  )
  # Without what says whose checkpoints they are, it begins anew.
  other = tmp_path / 'other.incomplete'
  shutil.copytree(tmp_path / 'killed.incomplete', other)
  (other / 'stages.json').unlink()
  names = ('whole', 'killed', 'other')
  for name in names:
    result = run('structure', *arguments(name))
    assert result.code == 0, result.err
  whole, *found = (restore.restore(tmp_path / name) for name in names)
  stages = [(tmp_path / n / 'conversion.json').read_text() for n in names]
  for one in found:
    assert one.step == whole.step == 6
    jax.tree.map(np.testing.assert_array_equal, one.params, whole.params)
  assert stages[0] == stages[1] == stages[2]
  assert not list(tmp_path.glob('*.incomplete'))


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
    (('--config={}', '--sweep=1'), ('--workdir is missing', 'has found')),
    (
      ('--config={}', '--layers', '--search'),
      ('--layers and --search', 'give one'),
    ),
  ],
)
def test_bad_flags(run, experiment, arguments, words):
  result = run('structure', *(a.format(experiment) for a in arguments))
  running.assert_refused(result, 'structure', *words)
