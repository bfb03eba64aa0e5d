"""A corpus and a config that train in a second, for tests of whole runs."""

import itertools
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from configs import base
from data import sources
from data import text
from evals import bits_per_byte
from models import lm
from samplers import chain
from training import objectives
from training import optimizer
from training import sharding
from training import step

MODEL = lm.ByteLM(width=16, layers=1, heads=2, key_value_heads=1, hidden=16)


def write_texts(folder: pathlib.Path, count: int = 10) -> pathlib.Path:
  """Writes `count` files of about 400 bytes of four words each."""
  folder.mkdir(parents=True)
  rng = np.random.default_rng(0)
  for number in range(count):
    words = rng.choice(['alpha', 'beta', 'gamma', 'delta'], 40 + 10 * number)
    (folder / f'{number}.txt').write_text(' '.join(words))
  return folder


def make_config(folder: pathlib.Path, **changes: Any) -> base.Config:
  """The config of a run on the files that `write_texts` put in `folder`."""
  fields = {
    'model': MODEL,
    'data': text.Text(
      source=sources.TextFiles(f'{folder}/*.txt'),
      directory=str(folder / 'prepared'),
      validation_fraction=0.2,
      test_fraction=0.2,
    ),
    'optimizer': optimizer.AdamW(learning_rate=1e-2, warmup_steps=2),
    'objective': objectives.NextToken(),
    'sampler': chain.Chain(),
    'evals': (bits_per_byte.BitsPerByte(window=32, stride=16, batch_size=8),),
    'mesh': sharding.MeshShape(data=4, fsdp=2),
    'shardings': sharding.TRANSFORMER,
    'row_length': 16,
    'batch_size': 8,
    'steps': 10,
    'log_every': 2,
    'eval_every': 4,
    'eval_bytes': 2000,
    'checkpoint_every': 4,
  }
  return base.Config(**fields | changes)


def draw(model: Any) -> Any:
  """Random parameters: faster than compiling the initial ones of a model."""
  rng = np.random.default_rng(0)
  ids_BT = np.zeros((1, 8), np.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), ids_BT)['params']
  return jax.tree.map(
    lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes
  )


def draw_initial(monkeypatch: Any, module: Any) -> None:
  """Makes runs of `train`, given as a module, begin with drawn parameters."""

  def init(config: base.Config, transformation: Any) -> step.TrainState:
    key = jax.random.key(config.seed)
    return step.create(draw(config.model), transformation, key)

  monkeypatch.setattr(module, '_init', init)


def turn_clocks_back(monkeypatch: Any) -> None:
  """Makes the time of day go backwards, as on a clock that is put right."""
  seconds = itertools.count(4_000_000_000, -1000)
  monkeypatch.setattr(time, 'time', lambda: float(next(seconds)))
  monkeypatch.setattr(time, 'time_ns', lambda: next(seconds) * 10**9)


def share_steps(module: Any) -> None:
  """Makes runs of `train`, given as a module, share programs of equal steps.

  A run resumed in a process of its own has its own, as test_train has it.
  """
  make, steps = module._make_job, {}

  def make_job(config: base.Config, mesh: Any, *rest: Any) -> Any:
    job = make(config, mesh, *rest)
    key = json.dumps(base.to_json(config)), mesh
    return job._replace(step=steps.setdefault(key, job.step))

  module._make_job = make_job
