"""Rows of a batch decoded side by side on several devices, sharing nothing.

A decode step of a few rows keeps one core busy; each device here runs its own
`samplers.loop` over its rows, so none waits for another at any step.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from samplers import loop
from samplers import rows as axes

Rows = tuple[jax.Array, jax.Array, jax.Array]

_AXIS = 'rows'


def devices_for(rows: int) -> Sequence[jax.Device]:
  """As many local devices as divide the rows, at least one."""
  devices = jax.local_devices()
  return devices[: math.gcd(rows, len(devices))]


class Decoder(NamedTuple):
  """A loop for rows of one shape, compiled once.

  start: from the rows of `build` to a state, as `samplers.loop.prefill`.
  go_on: as `samplers.loop.decode`; donates the state.
  """

  start: Callable[[Rows], loop.State]
  go_on: Callable[[loop.State], loop.State]


def build(
  step: loop.Step,
  params: Any,
  init_cache: Callable[[int], Any],
  rows: Rows,
  sampler: loop.Sampler,
  *,
  capacity: int,
  num_steps: int,
  stop_ids: Sequence[int] = (),
) -> Decoder:
  """A decoder for rows like these, on `devices_for` them.

  A sampler whose knobs are arrays of several rows keeps to one device.

  init_cache: makes an empty cache for so many rows.
  rows: ids_BT, lengths_B and keys_B of `samplers.loop.prefill`.
  capacity: as for prefill; num_steps, stop_ids: as for decode.
  """
  devices = devices_for(len(rows[0]))
  # What is the same for all rows is one number, or an array with one row.
  shapes = [np.shape(knob) for knob in jax.tree.leaves(sampler)]
  if any(shape[:1] not in ((), (1,)) for shape in shapes):
    devices = devices[:1]  # One knob per row, which would have to be cut too.
  mesh = jax.sharding.Mesh(np.array(devices), (_AXIS,))

  def start(params: Any, sampler: Any, rows: Rows) -> loop.State:
    cache = init_cache(len(rows[0]))
    return loop.prefill(
      step, params, cache, *rows, capacity=capacity, sampler=sampler
    )

  def go_on(params: Any, sampler: Any, state: loop.State) -> loop.State:
    return loop.decode(
      step, params, state, sampler, num_steps=num_steps, stop_ids=stop_ids
    )

  specs = P()
  if len(devices) > 1:
    specs = _row_specs(functools.partial(start, params, sampler), rows)
  everywhere, apart = NamedSharding(mesh, P()), NamedSharding(mesh, P(_AXIS))
  own = jax.device_put((params, sampler), everywhere)
  shard = functools.partial(
    jax.shard_map, mesh=mesh, out_specs=specs, check_vma=False
  )
  run_start = jax.jit(shard(start, in_specs=(P(), P(), P(_AXIS))))
  run_go_on = jax.jit(
    shard(go_on, in_specs=(P(), P(), specs)), donate_argnums=2
  )
  return Decoder(
    lambda rows: run_start(*own, jax.device_put(rows, apart)),
    lambda state: run_go_on(*own, state),
  )


def _row_specs(run: Callable[[Rows], loop.State], rows: Rows) -> loop.State:
  """Which axis of every result grows with the rows."""
  twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), rows)
  found = axes.Axes(jax.eval_shape(run, rows), jax.eval_shape(run, twice))
  return jax.tree.map(
    lambda axis: P(*[None] * axis, _AXIS) if axis >= 0 else P(), found.tree
  )
