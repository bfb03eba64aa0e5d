"""Dense runs that become structured ones: what is kept, and who may."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from configs import fitting
from configs import restore
from configs import warm_start
from data import event_batches
from data import event_source
from evals import event_scores
from models import linear
from models import structured
from tests import tiny_runs
from tests.models import test_structured_models
from tests.training import sharded_cases
from training import checkpoint
from training import column_nats
from training import sharding

BTT = structured.BlockTensorTrain


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  folder = tmp_path_factory.mktemp('conversion') / 'texts'
  made = tiny_runs.make_config(tiny_runs.write_texts(folder))
  made.data.prepare()
  return made


def test_the_share_of_teachers_falls_along_a_cosine():
  for steps in (0, 4):
    following = warm_start._following(steps)
    share = {'share': jnp.full((2,), 1.0 if steps else 0.0)}
    state, seen = following.init(share), []
    for _ in range(6):
      updates, state = following.update(share, state)
      share = optax.apply_updates(share, updates)
      seen.append(float(share['share'][1]))
    expected = [
      (1 + math.cos(math.pi * min(i / 4, 1))) / 2 if steps else 0.0
      for i in range(1, 7)
    ]
    np.testing.assert_allclose(seen, expected, atol=1e-6)


def test_a_target_is_the_source_with_other_projections(config):
  like = dataclasses.replace(
    config, model=config.model.clone(width=64, linear=BTT(rank=2))
  )
  found = warm_start.target(config, like, ['steps=7', 'seed=3'])
  assert found.model == config.model.clone(linear=BTT(rank=2))
  assert (found.steps, found.seed, found.data) == (7, 3, config.data)
  # What is not structured goes where the source has it.
  assert found.shardings == (*sharding.CORES, *config.shardings)
  with pytest.raises(ValueError, match='--config has dense projections only'):
    warm_start.target(config, config, [])


def test_a_conversion_that_is_killed_leaves_no_run(
  config, tmp_path, monkeypatch
):
  params = tiny_runs.draw(config.model)
  stage = warm_start.Stage('dense', 'bits_per_byte', 2.0, 0.1, 10.0, 20)
  made = warm_start.Converted(config, params, [stage], config.steps)
  workdir, partial = tmp_path / 'run', tmp_path / 'run.incomplete'

  def stop(*_, **__):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, 'save', stop)
    with pytest.raises(KeyboardInterrupt):
      warm_start.save(made, workdir, partial)
  assert not workdir.exists() and len(list(tmp_path.iterdir())) == 1
  workdir.mkdir()
  (workdir / 'notes').touch()
  with pytest.raises(ValueError, match='run holds something already'):
    warm_start.save(made, workdir, partial)
  (workdir / 'notes').unlink()
  # The same command again takes what it finds away.
  warm_start.save(made, workdir, partial)
  assert [path.name for path in tmp_path.iterdir()] == ['run']
  found = restore.restore(workdir)
  assert (found.step, found.config) == (config.steps, config)
  jax.tree.map(np.testing.assert_array_equal, found.params, params)


@pytest.mark.slow
def test_a_conversion_of_full_rank_loses_nothing_and_goes_on(config, tmp_path):
  params = jax.jit(config.model.init)(
    jax.random.key(0), jnp.zeros((1, 8), jnp.int32)
  )['params']
  # No branch silent.
  params = jax.tree.map(
    lambda x: x + 0.2 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), params
  )
  like = dataclasses.replace(
    config, model=config.model.clone(linear=structured.LowRank(fraction=1.0))
  )
  wanted = warm_start.target(config, like, ['steps=8'])
  run = restore.Run(config, params, 0)
  made = warm_start.convert(run, wanted, 0.5, tmp_path / 'run')
  dense, projected, trained = made.stages
  assert projected.score == pytest.approx(dense.score, abs=1e-3)
  assert trained.score < projected.score - 0.05
  assert projected.flops > dense.flops
  assert base.from_json(base.to_json(made.config)) == made.config
  shapes = jax.eval_shape(
    wanted.model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32)
  )['params']
  assert jax.tree.map(jnp.shape, made.params) == jax.tree.map(jnp.shape, shapes)
  with pytest.raises(ValueError, match=r'--lead=2 must be in \[0, 1\]'):
    warm_start.convert(run, wanted, 2, tmp_path / 'other')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['byte_latent', 'events'])
def test_models_of_patches_and_of_tables_are_converted(name, config, tmp_path):
  whole = structured.LowRank(fraction=1.0)
  if name == 'byte_latent':
    model = test_structured_models.byte_latent_model(linear.Dense())
    given = dataclasses.replace(config, model=model)
  else:
    given = dataclasses.replace(
      config,
      model=test_structured_models.event_model(linear.Dense()),
      data=event_source.CardStream(users=20, events=8, directory=str(tmp_path)),
      rows=event_batches.EventRows(),
      objective=column_nats.ColumnNats(),
      evals=(event_scores.EventScores(window=8, context=2, batch_size=4),),
      row_length=64,
    )
    given = fitting.with_codec(given, None)
  params = sharded_cases.make_params(given.model)
  like = dataclasses.replace(config, model=config.model.clone(linear=whole))
  wanted = warm_start.target(given, like, ['steps=4'])
  made = warm_start.convert(
    restore.Run(given, params, 0), wanted, 0.5, tmp_path / 'run'
  )
  dense, projected, trained = made.stages
  assert dense.measure == projected.measure == trained.measure
  # Of full rank, nothing is lost.
  assert projected.score == pytest.approx(dense.score, abs=2e-3)
  assert trained.score < projected.score
