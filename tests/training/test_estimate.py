"""Estimates against real arrays on eight devices, and by hand."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import pytest

from configs import blt_8b
from configs import tiny
from models import forward
from training import estimate
from training import sharding
from training import step as step_lib

FLOPS = estimate.Flops({'decoder': 2e6, 'head': 1e6, 'entropy': 5e5}, 9e6, 12e6)


def make_config(**changes):
  changes = {'mesh': sharding.MeshShape(fsdp=4)} | changes
  return dataclasses.replace(tiny.get_config(), **changes)


def init(config):
  ids = jnp.zeros((1, 8), jnp.int32)
  key = jax.random.key(0)
  params = config.model.init(key, ids)['params']
  return step_lib.create(params, config.optimizer.build(config.steps), key)


def how(config, **more):
  return {
    'init': functools.partial(init, config),
    'apply': forward.pure(config.model),
    'flops': FLOPS,
    'devices': 8,
  } | more


@functools.cache
def predicted(chip='H100', devices=8, accumulate=1, **mesh):
  config = make_config(
    accumulate=accumulate, mesh=sharding.MeshShape(**(mesh or {'fsdp': 4}))
  )
  return estimate.predict(config, **how(config, devices=devices, chip=chip))


@pytest.mark.parametrize('sizes', [(2, 4, 1), (1, 4, 2), (8, 1, 1)])
def test_state_is_that_of_real_arrays(sizes):
  config = make_config(mesh=sharding.MeshShape(*sizes))
  mesh = config.mesh.build()
  shapes = jax.eval_shape(functools.partial(init, config))
  # Only shapes and places matter, so zeros do.
  state = jax.jit(
    lambda: jax.tree.map(
      lambda s: jnp.zeros(s.shape, s.dtype), (shapes.params, shapes.optimizer)
    ),
    out_shardings=sharding.shard_tree(
      (shapes.params, shapes.optimizer), mesh, config.shardings
    ),
  )()

  def on_first_device(tree):
    return sum(
      x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree)
    )

  found = predicted(**dict(zip(('data', 'fsdp', 'tensor'), sizes, strict=True)))
  assert found.memory.parameters == on_first_device(state[0])
  assert found.memory.moments == on_first_device(state[1])
  assert found.memory.gradients == found.memory.parameters
  assert sum(found.parameters.values()) == sum(
    leaf.size for leaf in jax.tree.leaves(shapes.params)
  )
  assert dict(found.mesh.shape) == dict(mesh.shape)


def test_parts_hold_fewer_activations_and_two_gradients():
  config = make_config(batch_size=64)
  whole, parts = (
    estimate.predict(c, **how(c))
    for c in (config, dataclasses.replace(config, accumulate=4))
  )
  assert (whole.rows, parts.rows) == (8, 2)
  assert whole.memory.activations == 4 * parts.memory.activations > 0
  assert parts.memory.gradients == 2 * whole.memory.gradients
  assert parts.memory.parameters == whole.memory.parameters


def test_time_is_that_by_hand():
  found = predicted()
  chip = estimate.CHIPS['H100']
  ids = 8 * 128 / 8
  assert found.seconds.compute == pytest.approx(12e6 * ids / chip.flops)
  assert found.step >= max(*found.seconds, found.seconds.compute / 0.4)
  share = 9e6 * ids / found.step / chip.flops
  assert found.utilisation == pytest.approx(share)
  assert found.utilisation <= 0.4 * 9 / 12
  state = found.memory.parameters + found.memory.moments
  assert found.seconds.memory > 2 * state / chip.bandwidth


def test_links_carry_what_mesh_axes_split():
  chip = estimate.CHIPS['H100']
  alone = predicted(devices=1, data=1, fsdp=1)
  assert alone.seconds.links == 0
  assert not alone.sent
  # Rings move the gradients twice but for a device's own share, those of
  # matrices in bf16.
  copies = predicted(devices=8, data=8)
  norms = 2 * 64 * 2
  matrices = sum(copies.parameters[n] for n in ('block', 'head')) - norms
  rest = sum(copies.parameters.values()) - matrices
  expected = 2 * 7 / 8 * (2 * matrices + 4 * rest)
  assert copies.seconds.links == pytest.approx(expected / chip.link)
  # Matrices come in bf16 twice and their gradients leave once; each of the 1024
  # ids has a sum of 64 numbers, that comes, and whose gradient leaves; the rest
  # is whole everywhere, and its gradients are summed.
  split = predicted(devices=8, fsdp=8)
  rest -= split.parameters['ngram_embed']
  moved = 7 / 8 * (6 * matrices + 2 * 4 * 1024 * 64 + 2 * 4 * rest)
  assert split.seconds.links == pytest.approx(moved / chip.link)


def test_far_devices_are_reached_by_the_network():
  chip = estimate.CHIPS['H100']
  # Eight devices are joined by links; each has the network to itself.
  mesh = estimate.abstract_mesh(sharding.MeshShape(fsdp=8), 64)
  assert estimate.speed(chip, mesh, ('fsdp',)) == chip.link
  assert estimate.speed(chip, mesh, ('data',)) == chip.network
  # A ring through all leaves eight devices at one of them.
  assert estimate.speed(chip, mesh, ('data', 'fsdp')) == 8 * chip.network
  mesh = estimate.abstract_mesh(sharding.MeshShape(fsdp=4, tensor=2), 64)
  assert estimate.speed(chip, mesh, ('tensor',)) == chip.link
  mesh = estimate.abstract_mesh(sharding.MeshShape(fsdp=16, tensor=2), 64)
  assert estimate.speed(chip, mesh, ('fsdp',)) == 4 * chip.network


def test_roofline_is_reached_where_only_computing_takes_time():
  # A part of the FLOPs is not needed: three quarters at the most.
  found = predicted(devices=1, data=1, fsdp=1)
  seconds = max(found.seconds)
  ideal = 9e6 * 8 * 128 / seconds / estimate.CHIPS['H100'].flops
  assert found.roofline == pytest.approx(ideal)
  assert found.utilisation <= found.roofline <= 0.75
  if seconds == found.seconds.compute:
    assert found.roofline == pytest.approx(0.75)


def test_a_batch_that_does_not_fit_says_what_would():
  config = make_config(batch_size=4096, row_length=512)
  small = estimate.CHIPS['H100']._replace(memory=100e6)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(estimate.CHIPS, 'small', small)
    text, refusal = estimate.report(config, **how(config, chip='small'))
    assert 'of 100MB: DOES NOT FIT' in ' '.join(text.split())
    assert 'per device do not fit into the 100MB of small; give' in refusal
    factor = re.search(r'--set accumulate=(\d+)\.$', refusal)
    config = dataclasses.replace(config, accumulate=int(factor[1]))
    found = estimate.predict(config, **how(config, chip='small'))
    assert found.memory.total <= small.memory
    text, refusal = estimate.report(config, **how(config, chip='small'))
    assert 'DOES NOT FIT' not in text
    assert refusal is None
    tiny_chip = small._replace(memory=1e6)
    patch.setitem(estimate.CHIPS, 'small', tiny_chip)
    _, refusal = estimate.report(config, **how(config, chip='small'))
    assert 'raise mesh.fsdp above 4, shorten row_length' in refusal


@pytest.mark.parametrize('accumulate', [1, 2])
def test_the_way_out_counts_the_gradients_of_a_part(accumulate):
  """They are there beside their sum as soon as there are two parts."""
  config = make_config(batch_size=4096, row_length=512, accumulate=accumulate)
  whole = estimate.predict(config, **how(config)).memory
  rows = 4096 // 8 // accumulate
  sums = 4 * whole.parameters + (whole.moments - 2 * whole.parameters)
  # As much as the state with two gradients and a quarter of the rows, less one
  # byte, so that only an eighth fits.
  room = sums + whole.gathered + whole.activations // rows * (rows // 4) - 1
  with pytest.MonkeyPatch.context() as patch:
    small = estimate.CHIPS['H100']._replace(memory=room)
    patch.setitem(estimate.CHIPS, 'small', small)
    _, refusal = estimate.report(config, **how(config, chip='small'))
    assert refusal.endswith(f'--set accumulate={8 * accumulate}.')
    config = dataclasses.replace(config, accumulate=8 * accumulate)
    assert estimate.report(config, **how(config, chip='small')).refusal is None


def test_report_lists_all_and_makes_no_array(new_arrays):
  config = blt_8b.get_config()
  text, _ = estimate.report(config, **how(config, devices=512, chip='v5p'))
  assert not new_arrays()
  assert 'data 64 x fsdp 8 x tensor 1 = 512 v5p' in text
  flat = ' '.join(text.split())
  assert 'ngram_embed 3.84G' in flat
  assert 'forward 3M (decoder 2M, head 1M); entropy model 500k, once' in flat
  assert '151T needed, 201T computed, for 16.8M bytes' in flat
  assert max(map(len, text.splitlines())) <= 100


def test_bad_requests_say_what_to_write():
  config = make_config()
  with pytest.raises(ValueError, match=r'chip=P100 is not known; choose'):
    estimate.predict(config, **how(config, chip='P100'))
  with pytest.raises(ValueError, match=r'efficiency=1\.5 must be in'):
    estimate.predict(config, **how(config), efficiency=1.5)
  with pytest.raises(ValueError, match=r'does not use 6 devices.*--devices=4'):
    estimate.predict(config, **how(config, devices=6))
  with pytest.raises(ValueError, match='batch_size=8 does not divide over 64'):
    estimate.predict(config, **how(config, devices=64))


@pytest.mark.parametrize('sizes', [(-1, 4, 1), (2, 2, 2), (-1, 1, 8)])
def test_mesh_is_that_of_real_devices(sizes):
  shape = sharding.MeshShape(*sizes)
  real = shape.build()
  found = estimate.abstract_mesh(shape, 8)
  assert found.shape == real.shape
  assert found.axis_types == real.axis_types
  assert estimate.abstract_mesh(shape).axis_names == real.axis_names
  least = estimate.abstract_mesh(shape)
  assert least.size == max(sizes[0], 1) * sizes[1] * sizes[2]
