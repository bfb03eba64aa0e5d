"""One job in several processes: the flags, and equality with one process."""

import os
import socket
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest

from configs import cluster
from tests.commands import running
from training import metrics


def free_port():
  with socket.socket() as own:
    own.bind(('127.0.0.1', 0))
    return own.getsockname()[1]


def start(folder, workdir, devices, *flags):
  return subprocess.Popen(
    [
      sys.executable, 'train.py', f'--config={folder}/good.py',
      f'--workdir={workdir}', *flags,
    ],
    cwd=running.ROOT,
    env=os.environ | {'JAX_NUM_CPU_DEVICES': str(devices)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )  # fmt: skip


def finish(processes):
  for process in processes:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]


def test_two_processes_train_as_one(folder, finished, tmp_path):
  """Same losses and scores; one process goes on where the two stopped."""
  port = free_port()
  finish(
    [
      start(
        folder, tmp_path, 4, f'--coordinator=127.0.0.1:{port}',
        '--processes=2', f'--process_id={number}', '--set=steps=10',
      )
      for number in range(2)
    ]
  )  # fmt: skip
  found, expected = (
    {
      (record['step'], name): value
      for record in metrics.read(run)
      for name, value in record.items()
      if name.startswith(('train/bits', 'eval/'))
    }
    for run in (tmp_path, finished)
  )
  assert found.keys() == expected.keys()
  for place, value in expected.items():
    np.testing.assert_allclose(found[place], value, rtol=1e-5, err_msg=place)
  again = start(folder, tmp_path, 8)
  finish([again])
  assert [r['step'] for r in metrics.read(tmp_path)][-1] == 10


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (('--processes=2',), ('--coordinator is missing', 'HOST:PORT')),
    (('--coordinator=here', '--processes=2', '--process_id=0'), ('HOST:PORT',)),
    (
      ('--coordinator=here:1', '--processes=2', '--process_id=2'),
      ('--process_id=2 must be from 0 to --processes=2',),
    ),
  ],
)
def test_flags_that_describe_no_job(run, folder, tmp_path, flags, words):
  result = running.train(run, folder, tmp_path / 'run', *flags)
  running.assert_refused(result, 'train', *words)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('environment', 'several'),
  [
    ({}, False),
    ({'SLURM_NTASKS': '1'}, False),
    ({'SLURM_NTASKS': '4'}, True),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, True),
  ],
)
def test_a_scheduler_is_asked_where_it_started_several(
  monkeypatch, environment, several
):
  asked = []
  monkeypatch.setattr(jax.distributed, 'initialize', lambda: asked.append(1))
  for name in ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE', 'TPU_WORKER_HOSTNAMES'):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  holders = [mock.Mock(value=None) for _ in cluster.Flags._fields]
  cluster.join(cluster.Flags(*holders))
  assert bool(asked) == several
