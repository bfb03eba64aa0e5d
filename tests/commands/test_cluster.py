"""One job in several processes: as one process, in all that it gives."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import base
from configs import certify
from configs import restore
from configs import stored
from data import pipeline
from tests import ports
from tests.commands import running
from training import metrics

READING = ('--window=32', '--stride=16')
# Of float32 sums in another order.
RTOL = 1e-5

# Of patches that an entropy model sets, which is frozen as it begins.
PATCHED = """
import dataclasses, pathlib
from models import byte_latent, patched, patching, stacks
from tests import tiny_runs
def get_config():
  stack = stacks.Stack(width=16, layers=1, heads=2, hidden=16)
  latent = byte_latent.ByteLatent(
    encoder=stack, latent=stack.copy(width=32), decoder=stack,
    patching=patching.Patching(patching.Entropy(0.9), max_length=4),
    reserve=1.0)
  config = tiny_runs.make_config(
    pathlib.Path('{folder}/texts'), steps=1, evals=(),
    model=patched.Patched(patched.LMEntropy(tiny_runs.MODEL), latent))
  frozen = dataclasses.replace(config.optimizer, frozen=('^entropy/',))
  return dataclasses.replace(config, optimizer=frozen)
"""


def start(commands, devices, environment=None, **watch):
  """A process of its own that runs commands, as tests.commands.in_job."""
  options = json.dumps({'commands': commands} | watch)
  return subprocess.Popen(
    [sys.executable, '-m', 'tests.commands.in_job', options],
    cwd=running.ROOT,
    env=os.environ
    | {'JAX_NUM_CPU_DEVICES': str(devices)}
    | (environment or {}),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(processes, codes=(0,)):
  """What each process printed, when all have left with one of the codes."""
  said = []
  for process in processes:
    out, err = process.communicate(timeout=1500)
    assert process.returncode in codes, err[-3000:]
    said.append(running.Result(process.returncode, out, err))
  return said


def slurm(number, count, port):
  """What srun sets, as JAX reads it."""
  return {
    'SLURM_JOB_ID': '1',
    'SLURM_STEP_NODELIST': '127.0.0.1',
    'SLURM_NTASKS': str(count),
    'SLURM_PROCID': str(number),
    'SLURM_LOCALID': str(number),
    'JAX_COORDINATOR_PORT': str(port),
  }


def scores(run):
  return {
    (record['step'], name): value
    for record in metrics.read(run)
    for name, value in record.items()
    if name.startswith(('train/bits', 'eval/'))
  }


def assert_same_run(found, expected):
  assert found.keys() == expected.keys()
  for place, value in expected.items():
    np.testing.assert_allclose(found[place], value, rtol=RTOL, err_msg=place)


def recorded(paths):
  """Hashes of the rows of every batch, put together from all processes."""
  shares = [
    [json.loads(line) for line in path.read_text().splitlines()]
    for path in paths
  ]
  # Row i of a batch is in process i modulo their number.
  return [
    [row for rows in zip(*parts, strict=True) for row in rows]
    for parts in zip(*shares, strict=False)
  ]


def expected_rows(run, start, stop):
  """The same of batches made in one process, without a model."""
  config = base.from_json(json.loads((run / 'config.json').read_text()))
  batches = pipeline.batches(
    config.data.open('train'), row_length=config.row_length,
    batch_size=config.batch_size, seed=config.seed,
  )  # fmt: skip
  return [
    [hashlib.sha256(row.tobytes()).hexdigest() for row in batches[i]['ids']]
    for i in range(start, stop)
  ]


@pytest.fixture(scope='module')
def two(folder, tmp_path_factory):
  """Two processes that train, evaluate and certify, as srun starts them.

  The run directory and what each process printed.
  """
  run, port = tmp_path_factory.mktemp('two'), ports.free()
  commands = [
    ['train', f'--config={folder}/good.py', f'--workdir={run}'],
    ['eval', f'--checkpoint={run}', f'--out={run}/together.json'],
    [
      'bounds/__main__', f'--checkpoint={run}', '--bits=2', *READING,
      f'--out={run}/certificate',
    ],
  ]  # fmt: skip
  said = finish(
    [
      start(commands, 4, slurm(number, 2, port), record=f'{run}/rows.{number}')
      for number in range(2)
    ]
  )
  return run, said


def test_two_processes_train_as_one(two, finished):
  assert_same_run(scores(two[0]), scores(finished))


def test_two_processes_read_the_rows_of_one(two):
  run, _ = two
  found = recorded([run / 'rows.0', run / 'rows.1'])
  assert found == expected_rows(run, 0, 10)


def test_two_processes_evaluate_as_one(two, run, monkeypatch):
  """The same batches are scored, only by others: the same bits."""
  workdir, _ = two
  # As many as each of the two has.
  monkeypatch.setattr(jax, 'local_devices', lambda: jax.devices()[:4])
  alone = workdir / 'alone.json'
  assert run('eval', f'--checkpoint={workdir}', f'--out={alone}').code == 0
  found, expected = (
    json.loads(path.read_text()) for path in (workdir / 'together.json', alone)
  )
  for report in (found, expected):
    del report['devices'], report['eval/test/seconds']
  assert found == expected


def test_one_process_goes_on_where_two_were(
  run, two, finished, folder, tmp_path
):
  """From their checkpoint before the last, on the mesh of one process."""
  copy = shutil.copytree(two[0], tmp_path / 'copy')
  shutil.rmtree(copy / 'checkpoints' / '10')
  assert running.train(run, folder, copy).code == 0
  steps = [record['step'] for record in metrics.read(copy)]
  assert steps == [record['step'] for record in metrics.read(two[0])]
  assert_same_run(scores(copy), scores(finished))


def test_two_processes_certify_as_one(two):
  """One process finds in the file and the stream what two have claimed."""
  out = two[0] / 'certificate'
  claim = certify.read(out / 'certificate.json')
  stream = certify.claimed_stream(claim)
  found = certify.check(claim, (out / 'model.pw').read_bytes(), stream)
  assert found.bound.value == claim['bound']['value']
  assert found.bound.terms['empirical_risk'] == claim['bound']['empirical_risk']


def test_one_process_prints_and_the_other_says_that_it_waits(two):
  first, second = two[1]
  for words in ('holds the trained model', 'bits per byte', 'model.pw'):
    assert words in first.out
  assert second.out == ''
  assert 'process 1 waits for process 0 to prepare the data' in second.err
  assert 'waits for' not in first.err


@pytest.mark.slow
def test_two_processes_measure_entropies_as_one(folder, tmp_path):
  (tmp_path / 'patched.py').write_text(PATCHED.format(folder=folder))
  run, port = tmp_path / 'run', ports.free()
  command = ['train', f'--config={tmp_path}/patched.py', f'--workdir={run}']
  finish([start([command], 4, slurm(number, 2, port)) for number in range(2)])
  trained = restore.restore(run)
  corpus = trained.config.data.open('train')
  [path] = corpus.path.glob('entropy_*')
  found = np.load(path / 'numbers.npy')
  shutil.rmtree(path)
  alone = stored.entropies(trained.config, trained.params, corpus)['entropy']
  assert path.exists()
  np.testing.assert_array_equal(found, alone)
  assert np.std(found.astype(np.float32)) > 0


def start_job(folder, run, count, *flags, marked=None, **watch):
  """Starts `count` processes of 8 / count devices; one of them is watched."""
  port = ports.free()
  job = '--coordinator=127.0.0.1', f'--processes={count}', '--stop_code=75'
  command = ['train', f'--config={folder}/good.py', f'--workdir={run}', *flags]
  return [
    start(
      [[*command, f'{job[0]}:{port}', *job[1:], f'--process_id={number}']],
      8 // count,
      record=f'{run}.{count}.{number}',
      **(watch if number == marked else {}),
    )
    for number in range(count)
  ]


def rows_of(run, count):
  return recorded(
    [run.with_name(f'{run.name}.{count}.{i}') for i in range(count)]
  )


@pytest.mark.slow
def test_four_processes_lose_one_then_two_are_stopped_then_one_finishes(
  folder, finished, tmp_path
):
  run = tmp_path / 'run'
  saved = f'{run}/checkpoints/4'
  # The third of four is killed once there is a checkpoint.
  four = start_job(
    folder, run, 4, marked=2, signal=signal.SIGKILL, at=6, after=saved
  )
  assert four[2].wait(timeout=1500) == -signal.SIGKILL
  died = time.monotonic()
  others = finish([four[0], four[1], four[3]], codes=(75,))
  took = time.monotonic() - died
  print(f'the others left after {took:.1f} s')
  assert took < 60
  for result in others:
    assert 'another process of the job was lost' in result.err
  assert rows_of(run, 4)[:6] == expected_rows(run, 0, 6)
  # Two go on, on another mesh, until one of them is told to stop.
  said = finish(
    start_job(
      folder, run, 2, '--set=mesh.data=2', '--set=mesh.fsdp=4', marked=1,
      signal=signal.SIGTERM, at=2, after=saved,
    ),
    codes=(75,),
  )  # fmt: skip
  stop = int(said[0].out.split('stopped at step ')[1].split()[0])
  assert 6 <= stop < 10
  assert rows_of(run, 2) == expected_rows(run, 4, stop)
  # One process with one device ends it.
  command = ['train', f'--config={folder}/good.py', f'--workdir={run}']
  alone = [*command, '--set=mesh.data=1', '--set=mesh.fsdp=1']
  finish([start([alone], 1, record=f'{run}.1.0')])
  assert rows_of(run, 1) == expected_rows(run, stop, 10)
  found, expected = scores(run), scores(finished)
  for place, value in expected.items():
    np.testing.assert_allclose(found[place], value, rtol=RTOL, err_msg=place)


@pytest.mark.slow
def test_process_0_is_lost_and_the_other_says_so(folder, tmp_path):
  """It is the one that all others are connected to, to hear of one another."""
  run = tmp_path / 'run'
  first, other = start_job(
    folder, run, 2, marked=0, signal=signal.SIGKILL, at=6,
    after=f'{run}/checkpoints/4',
  )  # fmt: skip
  assert first.wait(timeout=1500) == -signal.SIGKILL
  died = time.monotonic()
  [result] = finish([other], codes=(75,))
  took = time.monotonic() - died
  print(f'the other left after {took:.1f} s')
  assert took < 60
  last = result.err.strip().splitlines()[-1]
  assert 'another process of the job was lost' in last
  assert 'what was saved is taken up' in last
