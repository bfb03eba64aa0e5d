"""What a run would need, without running it: memory, FLOPs, traffic, time.

Everything is computed from shapes: parameters and their shardings over an
abstract mesh, the program of the gradient, and FLOPs that the caller counts.
No array is made and no device is asked for. A step takes as long as the slowest
of what a device does at once: FLOPs / peak, bytes moved / memory bandwidth,
bytes sent / bandwidth of links or network. With all three at their best that
is the roofline, whose MFU is needed FLOPs / (peak x its seconds).
"""

import dataclasses
import math
import re
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from training import liveness
from training import sharding
from training import traffic

_MATRIX = re.compile(r'kernel$')


class Chip(NamedTuple):
  """Of one accelerator, from its maker's data sheet.

  flops: bf16 per second without sparsity. memory: bytes. bandwidth: bytes per
  second of that memory. link: bytes per second to its neighbours, one way.
  joined: devices that links join. network: bytes per second and device beyond
  them, one way.
  """

  flops: float
  memory: float
  bandwidth: float
  link: float
  joined: int
  network: float


CHIPS = {
  'A100': Chip(312e12, 80e9, 2.04e12, 300e9, 8, 25e9),
  'H100': Chip(989e12, 80e9, 3.35e12, 450e9, 8, 50e9),
  'H200': Chip(989e12, 141e9, 4.8e12, 450e9, 8, 50e9),
  'v5e': Chip(197e12, 16e9, 0.82e12, 100e9, 256, 3e9),
  'v5p': Chip(459e12, 95e9, 2.77e12, 300e9, 8960, 6e9),
  'v6e': Chip(918e12, 32e9, 1.64e12, 200e9, 256, 6e9),
}


class Memory(NamedTuple):
  """Bytes on each device; `gathered` are whole matrices in use."""

  parameters: int
  moments: int
  gradients: int
  gathered: int
  activations: int

  @property
  def total(self) -> int:
    return sum(self)


class Seconds(NamedTuple):
  """Least time of a step for each of a device's resources."""

  compute: float
  memory: float
  links: float


class Flops(NamedTuple):
  """Per byte: the forward pass by part, and a train step.

  needed: of a train step without recomputation and masked pairs.
  computed: with them. patch_bytes: mean bytes of a patch, None without patches.
  unit: what an id is, a byte or a cell of a table.
  """

  forward: dict[str, float]
  needed: float
  computed: float
  patch_bytes: float | None = None
  unit: str = 'byte'


class Estimate(NamedTuple):
  """A run on paper; `step` is the expected seconds of one.

  sent: what every device sends in a step. rows: of a batch part on each device.
  utilisation: of the peak, by the FLOPs that are needed; roofline: the most
  that it can be.
  """

  mesh: jax.sharding.AbstractMesh
  parameters: dict[str, int]
  memory: Memory
  sent: list[traffic.Sent]
  seconds: Seconds
  step: float
  rows: int
  utilisation: float
  roofline: float


class Report(NamedTuple):
  """The lines that a dry run prints, and why the run cannot be, if so."""

  text: str
  refusal: str | None


def predict(
  config: Any,
  *,
  init: Callable[[], Any],
  apply: Any,
  flops: Flops,
  stored: tuple[str, ...] = (),
  uses: tuple[traffic.Use, ...] = (),
  devices: int | None = None,
  chip: str = 'H100',
  efficiency: float = 0.4,
) -> Estimate:
  """What a config's run would need.

  init: makes the train state, and is only traced.
  stored: names of what batches hold besides rows; the parts of the model of
    these names are not run.
  uses: the projections, for what devices send of their inputs and outputs.
  devices: how many; None for one copy of the model.
  efficiency: assumed share of the chip's peak while computing; a step is
    never faster than the slowest resource.
  """
  if chip not in CHIPS:
    raise ValueError(
      f'chip={chip} is not known; choose among {", ".join(CHIPS)}.'
    )
  if not 0 < efficiency <= 1:
    raise ValueError(f'efficiency={efficiency} must be in (0, 1], as 0.4.')
  mesh = abstract_mesh(config.mesh, devices)
  sharding.check_batch(config.batch_size, config.accumulate, mesh)
  state = jax.eval_shape(init)
  rows = rows_per_device(config, mesh)
  per_row = liveness.activation_bytes(
    config.objective, apply, state.params, config.row_length, stored
  )
  memory = memory_per_device(config, state, mesh, rows * per_row)
  sent = traffic.sent(planned(config, mesh, stored), state.params, uses)
  ids = config.batch_size * config.row_length / mesh.size
  known = CHIPS[chip]
  seconds = Seconds(
    flops.computed * ids / known.flops,
    _moved(config, state.params, mesh, memory) / known.bandwidth,
    sum(one.size / speed(known, mesh, one.axes) for one in sent),
  )
  expected = max(*seconds, seconds.compute / efficiency)
  needed = flops.needed * ids / known.flops
  return Estimate(
    mesh,
    _sizes_by_part(state.params),
    memory,
    sent,
    seconds,
    expected,
    rows,
    needed / expected,
    needed / max(seconds),
  )


def planned(
  config: Any, mesh: Any, stored: tuple[str, ...] = ()
) -> traffic.Step:
  """What a config's step is to its devices; stored as in `predict`."""
  return traffic.Step(
    mesh=mesh,
    rules=config.shardings,
    ids=config.batch_size * config.row_length // config.accumulate,
    parts=config.accumulate,
    unused=tuple(f'{name}/' for name in stored),
    frozen=config.optimizer.frozen,
  )


def speed(chip: Chip, mesh: Any, axes: tuple[str, ...]) -> float:
  """Bytes per second and device of rings along mesh axes.

  Where a ring leaves the devices that links join, those of its devices that are
  joined share the network of all of them.
  """
  joined, whole, stride = 1, 1, 1
  for axis, size in reversed(mesh.shape.items()):
    if axis in axes:
      whole *= size
      joined *= min(max(chip.joined // stride, 1), size)
    stride *= size
  return chip.link if joined == whole else min(chip.link, joined * chip.network)


def report(
  config: Any, *, flops: Flops, chip: str = 'H100', **how: Any
) -> Report:
  """What a dry run of a config says; arguments as `predict`."""
  found = predict(config, flops=flops, chip=chip, **how)
  ids = config.batch_size * config.row_length
  least = ', '.join(f'{n} {v:.3g}' for n, v in found.seconds._asdict().items())
  patches = f'patches of {flops.patch_bytes or 1:.3g} bytes; '
  known, unit, mesh = CHIPS[chip], flops.unit, found.mesh
  refusal = _refusal(config, found, chip)
  lines = {
    'mesh': f'{sharding.described(mesh.shape)} = {mesh.size} {chip}',
    'parameters': _sum(found.parameters),
    'memory per device': (
      f'{_sum(found.memory._asdict(), "B")} of {_short(known.memory)}B'
      f'{": DOES NOT FIT" if refusal else ""}'
    ),
    f'FLOPs per {unit}': f'forward {_forward_line(flops.forward)}',
    'FLOPs per step': (
      f'{_short(flops.needed * ids)} needed, {_short(flops.computed * ids)}'
      f' computed, for {_short(ids)} {unit}s'
    ),
    'sent per step': f'by each device {_sent_line(found.sent)}',
    'seconds per step': f'{found.step:.3g}; at the least: {least}',
    'MFU': (
      f'{100 * found.utilisation:.0f}%; by the roofline at most'
      f' {100 * found.roofline:.0f}%, needed FLOPs / (peak x the longest of'
      ' computed FLOPs / peak, bytes moved / memory bandwidth, bytes sent /'
      ' bandwidth)'
    ),
    'run': (
      f'{_short(config.steps * ids)} {unit}s in {config.steps} steps,'
      f' {config.steps * found.step / 86400:.3g} days;'
      f' {_short(ids / found.step)} {unit}s per second'
    ),
    'assumed': (
      f'{patches if flops.patch_bytes else ""}'
      f'{100 * how.get("efficiency", 0.4):.0f}% of the bf16 peak while'
      ' computing; float32 gradients, split as parameters are, those of'
      ' matrices sent in bf16; activations as'
      f' traced for {found.rows} rows per device, attention by matmuls, not'
      ' split over tensor and sequence; a device sends while it computes;'
      f' {chip}: {_short(known.flops)}FLOP/s, {_short(known.bandwidth)}B/s of'
      f' memory, {_short(known.link)}B/s among {known.joined} devices,'
      f' {_short(known.network)}B/s beyond'
    ),
  }
  indent = ' ' * 18
  text = '\n'.join(
    textwrap.fill(
      f'{n:18}{x}', 100, subsequent_indent=indent, break_on_hyphens=False
    )
    for n, x in lines.items()
  )
  return Report(text, refusal)


def abstract_mesh(
  shape: sharding.MeshShape, devices: int | None = None
) -> jax.sharding.AbstractMesh:
  """The mesh of so many devices that are not there; None for the fewest."""
  fixed = dataclasses.replace(shape, data=max(shape.data, 1))
  least = max(math.prod(dataclasses.astuple(fixed)), 1)
  try:
    sizes = shape.sizes(least if devices is None else devices)
  except ValueError as error:
    raise ValueError(f'{str(error)[:-1]}, or --devices={least}.') from error
  return jax.sharding.AbstractMesh(
    tuple(sizes.values()),
    tuple(sizes),
    axis_types=(jax.sharding.AxisType.Auto,) * len(sizes),
  )


def rows_per_device(config: Any, mesh: Any) -> int:
  """Rows of a part of the batch on each device."""
  ways = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)
  return config.batch_size // config.accumulate // ways


def memory_per_device(
  config: Any, state: Any, mesh: Any, activations: int
) -> Memory:
  """Bytes of a train state, its gradients and so many of activations.

  With config.accumulate > 1 the gradients of a part and their sum exist at
  once.
  """
  parameters = _bytes_per_device(state.params, mesh, config.shardings)
  matrices = [
    math.prod(leaf.shape[-2:]) * leaf.dtype.itemsize
    for leaf in _matrices(state.params)
  ]
  # The matrix of this matmul and that of the next one.
  gathered = 2 * max(matrices, default=0) if mesh.shape['fsdp'] > 1 else 0
  return Memory(
    parameters=parameters,
    moments=_bytes_per_device(state.optimizer, mesh, config.shardings),
    gradients=parameters * (1 if config.accumulate == 1 else 2),
    gathered=gathered // mesh.shape['tensor'],
    activations=activations,
  )


def _bytes_per_device(tree: Any, mesh: Any, rules: sharding.Rules) -> int:
  placed = sharding.shard_tree(tree, mesh, rules)

  def size(leaf: Any, where: Any) -> int:
    return math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize

  return sum(jax.tree.leaves(jax.tree.map(size, tree, placed)))


def _matrices(params: Any) -> list[Any]:
  return [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if _MATRIX.search(sharding.name(path))
  ]


def _moved(config: Any, params: Any, mesh: Any, memory: Memory) -> float:
  """Bytes that a step moves through a device's memory at the least.

  Matrices three times per part, activations and the state once in and once out.
  """
  parts = config.accumulate
  # bf16 copies of what a device multiplies with; gradients are float32.
  whole = sum(leaf.size for leaf in _matrices(params)) / mesh.shape['tensor']
  state = memory.parameters + memory.moments + memory.gradients * parts
  return 2 * state + parts * (3 * 2 * whole + 2 * memory.activations)


def _sizes_by_part(params: Any) -> dict[str, int]:
  """Numbers of each part; numbered layers are one, `model` is many."""
  sizes: dict[str, int] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    names = sharding.name(path).split('/')
    name = names[1] if names[0] == 'model' else names[0]
    name = re.sub(r'_\d+$', '', name)
    sizes[name] = sizes.get(name, 0) + leaf.size
  return sizes


def _refusal(config: Any, found: Estimate, chip: str) -> str | None:
  """Why a run cannot be, with the way out; None where its memory does."""
  memory, room = found.memory, CHIPS[chip].memory
  if memory.total <= room:
    return None
  per_row = memory.activations / found.rows
  rest = memory.total - memory.activations
  if config.accumulate == 1:
    rest += memory.parameters  # Gradients of a part beside their sum.
  most = (room - rest) / per_row
  fits = [n for n in range(1, found.rows) if n <= most and not found.rows % n]
  way = (
    f'give --set accumulate={config.accumulate * found.rows // fits[-1]}'
    if fits
    else f'raise mesh.fsdp above {found.mesh.shape["fsdp"]}, shorten'
    ' row_length, or take a chip with more memory'
  )
  needed = f'{_short(memory.total)}B per device do not fit'
  return f'{needed} into the {_short(room)}B of {chip}; {way}.'


def _sent_line(sent: list[traffic.Sent]) -> str:
  """Bytes by purpose and kind, with the mesh axes."""
  if not sent:
    return 'nothing'
  return _sum(
    {f'{s.what} {s.kind} over {"+".join(s.axes)}': s.size for s in sent}, 'B'
  )


def _forward_line(parts: dict[str, float]) -> str:
  entropy = parts.get('entropy', 0.0)
  more = (
    f'; entropy model {_short(entropy)}, once per corpus' if entropy else ''
  )
  return _sum({n: v for n, v in parts.items() if v and n != 'entropy'}) + more


def _sum(parts: dict[str, float], unit: str = '') -> str:
  inner = ', '.join(f'{n} {_short(v)}{unit}' for n, v in parts.items())
  return f'{_short(sum(parts.values()))}{unit} ({inner})'


def _short(value: float) -> str:
  """Three digits and a decimal prefix."""
  for power, prefix in ((15, 'P'), (12, 'T'), (9, 'G'), (6, 'M'), (3, 'k')):
    if abs(value) >= 10**power:
      return f'{value / 10**power:.3g}{prefix}'
  return f'{value:.3g}'
