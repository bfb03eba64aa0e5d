"""Searches, sweeps and conversions of structured layers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from configs import coordinates
from configs import layer_table
from configs import rate_sweep
from configs import restore
from configs import theta_search
from configs import warm_start
from models import forward
from models import linear
from models import structured
from tests import tiny_runs
from training import optimizer
from training import step as step_lib

BTT = structured.BlockTensorTrain


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  folder = tmp_path_factory.mktemp('structure') / 'texts'
  made = tiny_runs.make_config(tiny_runs.write_texts(folder))
  made.data.prepare()
  return made


@pytest.fixture
def coarse(monkeypatch):
  """Searches of quarters only."""
  monkeypatch.setattr(theta_search, '_PARTS', (4,))


def macs_of(theta, d_in, d_out):
  """The formula of the einsum family, in the cheaper order of its cores."""
  chain = structured.Einsum(theta=theta).chain(d_in, d_out)
  a, b, g, d, e, f, r = (chain.sizes[name] for name in (
    'alpha', 'beta', 'gamma', 'delta', 'epsilon', 'phi', 'rho'
  ))  # fmt: skip
  return min(
    a * b * g * d * f * r + b * g * r * d * e * f,
    a * b * g * e * f * r + a * g * r * d * e * f,
  )


@pytest.mark.usefixtures('coarse')
def test_a_search_keeps_its_budget_and_puts_the_best_first(config):
  model = tiny_runs.MODEL.clone(width=64, hidden=256)
  wide = dataclasses.replace(config, model=model)
  budget = theta_search.Budget(macs=20_000.0)
  dense, *found = theta_search.search(wide, budget)
  sizes = [(64, 64)] * 2 + [(64, 32)] * 2 + [(64, 256)] * 2 + [(256, 64)]
  assert dense.macs == sum(a * b for a, b in sizes)
  assert max(one.macs for one in found) <= 20_000
  for one in found[:3]:
    assert one.macs == sum(macs_of(one.theta, *size) for size in sizes)
    assert one.rank == 1.0
  assert found[0].macs == found[0].params
  # All of full rank without sharing stand before the others.
  lacking = [one.rank < 1 for one in found]
  shared = [one.macs > one.params for one in found if one.rank == 1.0]
  assert lacking == sorted(lacking) and shared == sorted(shared)
  # The block tensor train of rank one is among them.
  thetas = {one.theta for one in found}
  assert (0.5, 0.0, 0.5, 0.0, 0.5, 0.5, 0.0) in thetas
  # The same again, in the same order, but for what a second bound excludes.
  most = sorted(one.moved for one in found)[len(found) // 2]
  less = theta_search.search(wide, budget._replace(moved=most))
  assert less == [dense, *(one for one in found if one.moved <= most)]
  lines = theta_search.table([dense, *found])
  assert lines[1].startswith('dense') and str(found[0].theta) in lines[-1]


@pytest.mark.usefixtures('coarse')
def test_a_search_without_or_within_no_budget_says_so(config):
  with pytest.raises(ValueError, match='needs a budget: --macs or --bytes'):
    theta_search.search(config, theta_search.Budget())
  with pytest.raises(ValueError, match=r'--chip=Z1 is not known; .* H100'):
    theta_search.search(config, theta_search.Budget(macs=1.0, chip='Z1'))
  with pytest.raises(ValueError, match=r'within 1 MACs; the least .* \d+ MACs'):
    theta_search.search(config, theta_search.Budget(macs=1.0))


def test_the_layer_table_counts_every_projection(config):
  model = tiny_runs.MODEL.clone(
    layers=3, scan_layers=True, linear=BTT(rank=2)
  )
  found = layer_table.rows(
    dataclasses.replace(config, model=model), measured=False
  )
  rows = {row.path: row for row in found}
  query = rows['blocks/attention/query']
  assert (query.copies, query.tokens) == (3, 128)
  assert query.structure == 'BlockTensorTrain(rank=2)'
  assert query.cost.macs == query.cost.params == 2 * 2 * 4 * 16
  assert rows['head'].structure == 'Dense' and query.forward is None
  lines = layer_table.table(config, found)
  assert len(lines) == len(found) + 2
  total = sum(row.copies * row.cost.macs for row in found)
  assert lines[-1].startswith(f'8 projections: {total:.0f} MACs')
  assert layer_table.describe(BTT()) == 'BlockTensorTrain()'


def test_a_measured_layer_takes_time():
  seconds = layer_table.measure(linear.Dense(features=8), 8, 4)
  assert 0 < seconds.forward < 1 and 0 < seconds.backward < 1


@pytest.mark.slow
def test_a_sweep_is_the_training_at_every_rate(config):
  adam = optimizer.AdamW(learning_rate=1e-2, warmup_steps=1)
  config = dataclasses.replace(config, optimizer=adam, initial=())
  batches = coordinates.read_batches(config, 3)
  found = rate_sweep.sweeper(config, 3)(config.seed, (1e-3, 3e-2), batches)
  other = dataclasses.replace(adam, learning_rate=3e-2).build(3)
  init, key = jax.random.split(jax.random.key(config.seed))
  params = jax.jit(config.model.init)(init, batches[0]['ids'][:1])['params']
  state, losses = step_lib.create(params, other, key), []
  step = jax.jit(
    lambda state, batch: step_lib.train_step(
      state,
      batch,
      objective=config.objective,
      apply=forward.pure(config.model),
      optimizer=other,
    )
  )
  for batch in batches:
    state, metrics = step(state, batch)
    losses.append(float(metrics.loss))
  assert found[1] == pytest.approx(np.mean(losses), rel=1e-5)
  assert abs(found[0] - found[1]) > 1e-3


def test_the_table_of_a_sweep_marks_the_best_rates():
  rates = (1e-3, 1e-2, 1e-1)
  found = [
    rate_sweep.Column('transfer', 16, (3.0, 2.0, 4.0)),
    rate_sweep.Column('transfer', 64, (3.0, 1.9, math.inf)),
    rate_sweep.Column('none', 16, (3.0, 2.0, 4.0)),
    rate_sweep.Column('none', 64, (1.8, 1.9, math.inf)),
  ]
  lines = rate_sweep.table(rates, found)
  assert lines[2].split() == ['0.01', '2.0000*', '1.9000*', '2.0000*', '1.9000']
  assert lines[4].endswith('0.01, 0.01, at one place')
  assert lines[5].startswith('transfer: least of parabolas at 0.00')
  assert lines[6].endswith('0.01, 0.001, 1 rates apart')
  assert lines[7] == 'none: a best rate stands at an end; give more of them'


def test_the_best_rate_between_those_tried():
  rates = (1e-3, 2e-3, 4e-3, 8e-3)
  # (log2 of the rate over 3e-3)^2: least at 3e-3, wherever it was tried.
  losses = tuple(math.log2(rate / 3e-3) ** 2 for rate in rates)
  found = rate_sweep.vertex(rates, rate_sweep.Column('', 1, losses))
  assert found == pytest.approx(3e-3)
  falling = rate_sweep.Column('', 1, (4.0, 3.0, 2.0, 1.0))
  assert rate_sweep.vertex(rates, falling) is None
  column = rate_sweep.Column('transfer', 8, losses, (0.01, 0.02, 0.01, 0.03))
  lines = rate_sweep.table(rates, [column, column._replace(width=16)])
  assert lines[-2].endswith('at 0.003, 0.003, within a factor 1.00')
  assert lines[-1].endswith('over seeds are at most 0.030')


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
  with pytest.raises(ValueError, match='--config has dense projections only'):
    warm_start.target(config, config, [])


@pytest.mark.slow
def test_a_conversion_of_full_rank_loses_nothing_and_goes_on(config):
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
  made = warm_start.convert(run, wanted, 0.5)
  dense, projected, trained = made.stages
  assert projected.bits == pytest.approx(dense.bits, abs=1e-3)
  assert trained.bits < projected.bits - 0.05
  assert projected.flops > dense.flops
  assert base.from_json(base.to_json(made.config)) == made.config
  shapes = jax.eval_shape(
    wanted.model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32)
  )['params']
  assert jax.tree.map(jnp.shape, made.params) == jax.tree.map(
    jnp.shape, shapes
  )
  with pytest.raises(ValueError, match=r'--lead=2 must be in \[0, 1\]'):
    warm_start.convert(run, wanted, 2)
