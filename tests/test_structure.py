"""Searches, sweeps and costs of structured layers."""

import dataclasses
import itertools
import math
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import coordinates
from configs import fitting
from configs import layer_table
from configs import rate_sweep
from configs import theta_search
from models import event_lm
from models import forward
from models import linear
from models import stacks
from models import structured
from tests import tiny_runs
from tests.training import sharded_cases
from training import optimizer
from training import step as step_lib
from training import transfer

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
  # More than dense layers do is no use, whatever the budget.
  most = theta_search.search(wide, theta_search.Budget(macs=1e9))
  assert len(most) > len(found) + 1
  assert max(one.macs for one in most[1:]) < dense.macs
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


def test_a_search_replaces_what_a_prototype_does(config):
  found = {}
  for name in ('byte_latent', 'events'):
    model = sharded_cases.CASES[name].model
    one = dataclasses.replace(config, model=model)
    found[name] = {p.path for p in theta_search.replaceable(one)}
  # Neither heads, nor the language model that says where patches end.
  assert 'model/patch_query' in found['byte_latent']
  assert 'model/head' not in found['byte_latent']
  assert not any('entropy/' in path for path in found['byte_latent'])
  assert 'narrow' in found['events']
  assert not any('head' in path for path in found['events'])


@pytest.mark.usefixtures('coarse')
def test_a_search_without_or_within_no_budget_says_so(config):
  with pytest.raises(ValueError, match='needs a budget: --macs or --bytes'):
    theta_search.search(config, theta_search.Budget())
  with pytest.raises(ValueError, match=r'--chip=Z1 is not known; .* H100'):
    theta_search.search(config, theta_search.Budget(macs=1.0, chip='Z1'))
  with pytest.raises(
    ValueError, match=r'within 1 MACs and below .* the least .* \d+ MACs'
  ):
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
  assert seconds.forward > 0 and seconds.backward > 0


@pytest.mark.slow
def test_a_sweep_is_the_training_at_every_rate(config):
  adam = optimizer.AdamW(learning_rate=1e-2, warmup_steps=1)
  config = dataclasses.replace(config, optimizer=adam, initial=())
  batches = coordinates.read_batches(config, 3)
  run = rate_sweep.trial(config, 3)
  found = [run(config.seed, rate, batches) for rate in (1e-3, 3e-2)]
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


@pytest.fixture
def trainings(monkeypatch):
  """A formula in the place of training: runs done, and when one is killed."""
  seen = types.SimpleNamespace(runs=[], until=math.inf, data={})

  def trial(config, steps):
    width = coordinates.width_of(config.model)

    def run(seed, rate, batches):
      assert len(batches) == steps
      data = np.stack([batch['ids'] for batch in batches])
      known = seen.data.setdefault(seed, data)
      np.testing.assert_array_equal(known, data)
      if len(seen.runs) == seen.until:
        raise KeyboardInterrupt
      seen.runs.append((width, seed, rate))
      return math.inf if rate > 0.2 else seed + math.log(rate) ** 2 / width

    return run

  monkeypatch.setattr(rate_sweep, 'trial', trial)
  return seen


def test_a_sweep_that_is_killed_goes_on(config, trainings, tmp_path):
  sweep = rate_sweep.RateSweep(
    config, (0.01, 0.1, 0.5), (1.0, 2.0), ('transfer',), steps=3, seeds=2
  )
  every = list(itertools.product((16, 32), (0, 1), (0.01, 0.1, 0.5)))
  whole = sweep.run(tmp_path / 'whole')
  assert trainings.runs == every
  assert (trainings.data[0] != trainings.data[1]).any()
  assert whole[0].losses[2] == math.inf and whole[1].width == 32
  assert whole[1].losses[0] == pytest.approx(0.5 + math.log(0.01) ** 2 / 32)
  trainings.runs.clear()
  for until in (0, 4, 5, 11):
    trainings.until = until
    with pytest.raises(KeyboardInterrupt):
      sweep.run(tmp_path / 'killed')
  trainings.until = math.inf
  found = sweep.run(tmp_path / 'killed')
  # Errors of what is infinite are no numbers, which differ from themselves.
  assert repr(found) == repr(whole)
  assert trainings.runs == every
  # More of the same adds to it.
  more = dataclasses.replace(sweep, seeds=3, rates=(0.01, 0.1))
  assert len(more.run(tmp_path / 'killed')[0].losses) == 2
  added = list(itertools.product((16, 32), (2,), (0.01, 0.1)))
  assert trainings.runs == every + added
  # Another config does not.
  for change, words in (
    ({'steps': 4}, 'steps: 3 != 4'),
    (
      {'config': dataclasses.replace(config, batch_size=16)},
      'config.batch_size: 8 != 16',
    ),
  ):
    other = dataclasses.replace(sweep, **change)
    with pytest.raises(ValueError, match=f'sweep of other settings .{words}'):
      other.run(tmp_path / 'killed')


def test_a_base_for_tables_has_the_columns_of_the_data():
  column = types.SimpleNamespace
  data = types.SimpleNamespace(
    trained=lambda: data,
    untrained=lambda: data,
    tokenizer=column(
      columns=[column(size=5, is_binned=True), column(size=3, is_binned=False)]
    ),
  )
  model = event_lm.EventLM(
    trunk=stacks.Stack(width=16, layers=1, heads=2, hidden=16)
  )
  given = tiny_runs.make_config(
    pathlib.Path(), data=data, model=model,
    optimizer=optimizer.AdamW(base=model),
  )  # fmt: skip
  found = fitting.with_codec(given, None)
  for one in (found.model, found.optimizer.base):
    assert (one.columns, one.numbers) == ((5, 3), (0,))
  assert fitting.as_given(found) == given
  wider = coordinates.at_width(found, 4, 'transfer')
  assert wider.model.trunk.width == 64 and wider.model.cell_width == 256
  assert coordinates.width_of(wider.model) == 64
  assert wider.optimizer.base.trunk.width == 16


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

  def losses(least):
    # The least of a parabola, wherever it was tried.
    return tuple(math.log2(rate / least) ** 2 for rate in rates)

  assert rate_sweep.vertex(rates, losses(3e-3)) == pytest.approx(3e-3)
  assert rate_sweep.vertex(rates, (4.0, 3.0, 2.0, 1.0)) is None
  column = rate_sweep.Column(
    'transfer', 8, losses(3e-3), (0.01, 0.02, 0.01, 0.03), (2e-3, 4e-3)
  )
  other = rate_sweep.Column('transfer', 16, losses(3e-3 * 2**0.5))
  lines = rate_sweep.table(rates, [column, other])
  # Of two seeds, at 1 and 2 in powers of two: 2^0.5 from their mean.
  assert lines[-2].endswith(
    'at 0.003 +- 2^0.50, 0.00424, within a factor 1.41 = 2^0.50'
  )
  assert lines[-1].endswith('over seeds are at most 0.030')


def step_by_sign(x_GA, kernels, rates):
  """RMS change of a block tensor train's output by Adam's first step.

  The loss is minus the mean of the outputs' products with random signs.
  """
  first_GAF, second_FGE = kernels
  signs_FE = np.sign(
    np.random.default_rng(1).normal(size=second_FGE[:, 0].shape)
  )

  def apply(first_GAF, second_FGE):
    z_GF = np.einsum('GA,GAF->GF', x_GA, first_GAF)
    return z_GF, np.einsum('GF,FGE->FE', z_GF, second_FGE)

  z_GF, before_FE = apply(first_GAF, second_FGE)
  of_z_GF = np.einsum('FE,FGE->GF', signs_FE, second_FGE)
  _, after_FE = apply(
    first_GAF + rates[0] * np.sign(x_GA[..., None] * of_z_GF[:, None]),
    second_FGE + rates[1] * np.sign(z_GF.T[..., None] * signs_FE[:, None]),
  )
  return np.sqrt(np.mean((after_FE - before_FE) ** 2))


def test_a_rule_keeps_the_multipliers_of_the_config(config):
  given = dataclasses.replace(
    config.optimizer, multipliers=(('^head', 3.0), ('norm|core', 2.0))
  )
  config = dataclasses.replace(config, optimizer=given)
  leaves = {
    'embed': 0, 'head': {'kernel': 0}, 'norm': {'scale': 0},
    'up': {'core_0_kernel': 0, 'core_0_gain': 0, 'kernel': 0},
  }  # fmt: skip
  found = {
    rule: optimizer._by_path(
      coordinates.at_width(config, 4, rule).optimizer.multipliers, leaves
    )
    for rule in coordinates.RULES
  }
  assert found['transfer'] == found['none'] == {
    'head/kernel': 3.0, 'norm/scale': 2.0, 'embed': 1.0, 'up/kernel': 1.0,
    'up/core_0_kernel': 2.0, 'up/core_0_gain': 2.0,
  }  # fmt: skip
  slower = ('head/kernel', 'up/kernel', 'up/core_0_kernel')
  expected = {
    name: factor / 4 if name in slower else factor
    for name, factor in found['none'].items()
  }
  assert found['width'] == expected


def test_only_the_rule_moves_wide_layers_as_far(config):
  model = config.model.clone(hidden=64, linear=BTT())
  given = dataclasses.replace(config, model=model)
  moved = {}
  for rule in coordinates.RULES:
    for factor in (1, 64):
      one = coordinates.at_width(given, factor, rule)
      cores = BTT().chain(one.model.width, one.model.hidden).shapes
      shapes = {
        f'up/core_{i}_kernel': jax.ShapeDtypeStruct(shape, jnp.float32)
        for i, shape in enumerate(cores)
      }
      factors = optimizer._by_path(one.optimizer.multipliers, shapes)
      base = one.optimizer.base
      if base is not None:
        dense = {'up/kernel': (base.width, base.hidden)}
        factors = transfer.rates(shapes, dense)
      rng = np.random.default_rng(0)
      kernels = [
        rng.normal(0, structured.deviation(shape), shape) for shape in cores
      ]
      x_GA = rng.normal(size=cores[0][:2])
      rates = [1e-3 * factor for factor in factors.values()]
      moved[rule, factor] = step_by_sign(x_GA, kernels, rates)
  ratios = {x: moved[x, 64] / moved[x, 1] for x in coordinates.RULES}
  assert 0.8 < ratios['transfer'] < 1.6
  # Fan-ins are eight times as wide, rates one 64th.
  assert ratios['width'] == pytest.approx(ratios['transfer'] / 8, rel=0.05)
  assert ratios['width'] < 0.2
  assert ratios['none'] > 4
