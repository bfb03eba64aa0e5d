"""Meshes and path rules: where every array of a training run lives.

A rule is (regular expression, axes): the first one that matches a parameter's
path `block_0/attention/query/kernel` gives its PartitionSpec. Optimizer
moments end in the path of their parameter, so the same rules place them.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

Rules = tuple[tuple[str, tuple[Any, ...]], ...]

# What rows of a batch are split over.
BATCH_AXES = ('data', 'fsdp', 'expert')

# Weights are split over fsdp; over tensor in the Megatron order (column-
# parallel into a block's hidden width, row-parallel out of it), the only one
# whose gradients the partitioner is known to get right.
TRANSFORMER = (
  (r'(query|key|value|gate|up)/kernel$', ('fsdp', 'tensor')),
  (r'(output|down)/kernel$', ('tensor', 'fsdp')),
  (r'head/kernel$', ('fsdp', 'tensor')),
  (r'ngram_embed/table_\d+$', ('fsdp', None)),
)

# Projections of patches stay out of the tensor axis: one of them feeds a
# column-parallel matmul, and two in a row are what the partitioner can get
# wrong.
BYTE_LATENT = (
  (r'(patch_query|latent_input|patch_slots)/kernel$', ('fsdp', None)),
  *TRANSFORMER,
)

# Columns have any number of ids, and copying any reach, which need not divide:
# tables and heads are split by the width of the model.
EVENTS = (
  (r'embed/(ids|since)$', (None, 'fsdp')),
  (r'(head_\d+|narrow\w*|copying/gate)/kernel$', ('fsdp', None)),
  (r'verdict/(head|event|known)/kernel$', ('fsdp', None)),
  *TRANSFORMER,
)

# Kernels [blocks, fan-in, fan-out] of structured layers: the first core is
# split in its fan-in, the others in their fan-out, which all structures have.
CORES = (
  (r'core_0_kernel$', (None, 'fsdp', None)),
  (r'core_\d+_kernel$', (None, None, 'fsdp')),
)
STRUCTURED = (*CORES, *TRANSFORMER)

# Two cores of a block tensor train or a Monarch matrix in the Megatron order:
# the first output factor is what the first core makes and the blocks of the
# second, the first input factor the blocks of the first, which the second sums.
BLOCK_TRAIN = (
  (r'(query|key|value|gate|up)/core_0_kernel$', (None, 'fsdp', 'tensor')),
  (r'(query|key|value|gate|up)/core_1_kernel$', ('tensor', None, 'fsdp')),
  (r'(output|down)/core_0_kernel$', ('tensor', 'fsdp', None)),
  (r'(output|down)/core_1_kernel$', (None, 'tensor', 'fsdp')),
  *STRUCTURED,
)

# Of mixtures, [experts, blocks, fan-in, fan-out]; also where whole feed-forward
# layers are experts.
EXPERTS = (
  (
    r'(experts|feed_forward/(gate|up|down))/core_0_kernel$',
    ('expert', None, 'fsdp', None),
  ),
  (
    r'(experts|feed_forward/(gate|up|down))/core_\d+_kernel$',
    ('expert', None, None, 'fsdp'),
  ),
  *STRUCTURED,
)


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """Devices along each mesh axis; data=-1 takes all that remain.

  data: copies of the model. fsdp: parts that weights and batch are split in.
  tensor: parts that each layer's hidden width is split in.
  sequence: parts that every row's tokens are split in.
  expert: parts that the experts of mixtures and the batch are split in.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  sequence: int = 1
  expert: int = 1

  def __str__(self) -> str:
    return described(dataclasses.asdict(self), '=')

  def sizes(self, devices: int) -> dict[str, int]:
    """Devices along every axis of the mesh, those of the last axis nearest.

    Raises ValueError unless all of so many devices are used.
    """
    given = dataclasses.asdict(self)
    names = (*BATCH_AXES, 'sequence', 'tensor')
    sizes = {name: given[name] for name in names}
    if self.data == -1:
      others = math.prod(sizes.values()) // self.data
      sizes['data'] = devices // max(others, 1)
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != devices:
      raise ValueError(
        f'mesh {self} does not use {devices} devices; set mesh.data=-1 and a'
        ' product of the other axes that divides them.'
      )
    return sizes

  def build(
    self, devices: Sequence[jax.Device] | None = None
  ) -> jax.sharding.Mesh:
    """The mesh over `devices`, by default all of the job."""
    devices = jax.devices() if devices is None else devices
    sizes = self.sizes(len(devices))
    return jax.make_mesh(
      tuple(sizes.values()),
      tuple(sizes),
      axis_types=(jax.sharding.AxisType.Auto,) * len(sizes),
      devices=devices,
    )


def described(sizes: Mapping[str, int], equals: str = ' ') -> str:
  """Axes and their sizes; of the less usual ones those that are used."""
  shown = {name: sizes[name] for name in ('data', 'fsdp', 'tensor')}
  shown |= {name: size for name, size in sizes.items() if size != 1}
  return ' x '.join(f'{name}{equals}{size}' for name, size in shown.items())


def compile_rule(rule: str, field: str) -> re.Pattern[str]:
  """The compiled regular expression; ValueError names the field if invalid."""
  try:
    return re.compile(rule)
  except re.error as error:
    raise ValueError(
      f'{field}: {rule!r} is not a regular expression ({error}).'
    ) from error


def name(path: Any) -> str:
  """The path of a leaf as text: 'block_0/attention/query/kernel'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def shard_tree(tree: Any, mesh: jax.sharding.Mesh, rules: Rules) -> Any:
  """A NamedSharding for every leaf of a tree of arrays or shapes.

  Unmatched leaves are replicated; so is a leading axis that a stack of scanned
  layers adds. An axis that does not divide is an error that names the leaf.
  """
  compiled = [(compile_rule(rule, 'shardings'), axes) for rule, axes in rules]

  def shard(path: Any, leaf: Any) -> jax.sharding.NamedSharding:
    where = name(path)
    for rule, axes in compiled:
      if leaf.ndim >= len(axes) and rule.search(where):
        spec = P(*(None,) * (leaf.ndim - len(axes)), *axes)
        _check_divides(where, leaf.shape, spec, mesh)
        return jax.sharding.NamedSharding(mesh, spec)
    return jax.sharding.NamedSharding(mesh, P())

  return jax.tree_util.tree_map_with_path(shard, tree)


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Rows of a batch are split over BATCH_AXES."""
  return jax.sharding.NamedSharding(mesh, P(BATCH_AXES))


def check_batch(
  batch_size: int, accumulate: int, mesh: jax.sharding.Mesh
) -> None:
  """ValueError unless every part of the batch divides over the devices."""
  ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES) * accumulate
  if batch_size % ways:
    below = batch_size // ways * ways
    choices = f'{below} or {below + ways}' if below else f'{ways}'
    raise ValueError(
      f'batch_size={batch_size} does not divide over'
      f' {ways // accumulate} devices of axes {BATCH_AXES} in'
      f' accumulate={accumulate} parts; use {choices}.'
    )


def put_batch(
  batch: dict[str, np.ndarray], sharding: jax.sharding.NamedSharding
) -> dict[str, jax.Array]:
  """The global batch on its devices, from this process's rows of it."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )


def _check_divides(
  where: str, shape: tuple[int, ...], spec: P, mesh: jax.sharding.Mesh
) -> None:
  for size, axis in zip(shape, spec, strict=False):
    axes = axis if isinstance(axis, tuple) else (axis,)
    unknown = set(axes) - {None, *mesh.shape}
    if unknown:
      raise ValueError(
        f'shardings: the rule for {where} names mesh axis {unknown.pop()!r};'
        f' choose among {tuple(mesh.shape)} and None.'
      )
    ways = math.prod(mesh.shape[a] for a in axes if a is not None)
    if size % ways:
      raise ValueError(
        f'parameter {where} {shape}: size {size} does not divide over mesh'
        f' axis {axis!r} of {ways} devices; change the size, the mesh, or its'
        f' rule in shardings.'
      )
