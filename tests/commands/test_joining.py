"""How processes of a job find one another, and what they say if they do not."""

import json
import os
import socket
import subprocess
import sys
from unittest import mock

import jax
import pytest

from configs import cluster
from tests import ports
from tests.commands import running

# The processes wait for a second for one another.
HURRIED = """
from absl import app
from configs import cluster
from tests.commands import in_job
cluster._COMING = 1
app.run(in_job.main)
"""


def hurry(folder, run, address, number):
  command = [
    'train', f'--config={folder}/good.py', f'--workdir={run}',
    f'--coordinator={address}', '--processes=2', f'--process_id={number}',
  ]  # fmt: skip
  return subprocess.run(
    [sys.executable, '-c', HURRIED, json.dumps({'commands': [command]})],
    cwd=running.ROOT, capture_output=True, text=True, timeout=1500,
  )  # fmt: skip


@pytest.mark.parametrize(
  ('number', 'host'),
  [
    (0, '127.0.0.1'),
    (1, 'no.invalid'),
    pytest.param(1, '127.0.0.1', marks=pytest.mark.slow),
  ],
)
def test_others_that_do_not_come_are_waited_for_in_vain(
  folder, tmp_path, number, host
):
  run, address = tmp_path / 'run', f'{host}:{ports.free()}'
  result = hurry(folder, run, address, number)
  assert result.returncode == 75, result.stderr[-3000:]
  last = result.stderr.strip().splitlines()[-1]
  assert f'--coordinator={address} was not reached by all of 2' in last
  assert 'start them all with the same --coordinator' in last
  assert not run.exists()


def test_a_port_that_another_program_has(folder, tmp_path):
  """Nobody can come there; when all are started again, it may be free."""
  with socket.socket() as taken:
    taken.bind(('', 0))
    taken.listen()
    address = f'127.0.0.1:{taken.getsockname()[1]}'
    result = hurry(folder, tmp_path / 'run', address, 0)
  assert result.returncode == 75, result.stderr[-3000:]
  last = result.stderr.strip().splitlines()[-1]
  assert last.startswith(f'train.py: --coordinator={address} was not reached')
  assert 'ddress already in use' in last


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (('--processes=2',), ('--coordinator is missing', 'HOST:PORT')),
    (('--coordinator=here', '--processes=2', '--process_id=0'), ('HOST:PORT',)),
    (
      ('--coordinator=here:1', '--processes=2', '--process_id=2'),
      ('--process_id=2 must be from 0 to --processes=2',),
    ),
    (('--coordinator=auto',), ('scheduler does not describe', 'srun')),
  ],
)
def test_flags_that_describe_no_job(run, folder, tmp_path, flags, words):
  result = running.train(run, folder, tmp_path / 'run', *flags)
  running.assert_refused(result, 'train', *words)
  assert not (tmp_path / 'run').exists()


STEP = {'SLURM_STEP_NODELIST': 'a[1-2]'}
PODS = {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '1'}


@pytest.mark.parametrize(
  ('environment', 'package', 'several'),
  [
    ({}, True, False),
    (STEP | {'SLURM_NTASKS': '1'}, True, False),
    (STEP | {'SLURM_NTASKS': '4'}, False, True),
    ({'SLURM_NTASKS': '4'}, True, False),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, True, False),
    (
      {'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_MCA_orte_hnp_uri': '1.0;tcp://a:1'},
      False,
      True,
    ),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, True, False),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, False, True),
    (PODS, True, True),
    (PODS, False, False),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, True, False),
  ],
)
def test_a_scheduler_is_asked_where_it_started_several(
  monkeypatch, environment, package, several
):
  asked = []
  monkeypatch.setattr(cluster._State, 'number', None)
  monkeypatch.setattr(cluster, '_end_aborts', lambda *_: None)
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *a, **b: asked.append(a)
  )
  monkeypatch.setattr(
    cluster.importlib.util, 'find_spec', lambda _: True if package else None
  )
  names = ('SLURM', 'OMPI', 'TPU_WORKER', 'KUBERNETES', 'JOB_COMPLETION')
  for name in [*os.environ]:
    if name.startswith(names):
      monkeypatch.delenv(name)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  holders = [mock.Mock(value=None) for _ in cluster.Flags._fields]
  cluster.join(cluster.Flags(*holders))
  assert asked == [()] * several
  holders[1].value = 1  # --processes=1
  cluster.join(cluster.Flags(*holders))
  assert asked == [()] * several
