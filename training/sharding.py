"""Meshes and path rules: where every array of a training run lives.

A rule is (regular expression, axes): the first one that matches a parameter's
path `block_0/attention/query/kernel` gives its PartitionSpec. Optimizer
moments end in the path of their parameter, so the same rules place them.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

Rules = tuple[tuple[str, tuple[Any, ...]], ...]

BATCH_AXES = ('data', 'fsdp')

# Weights are split over fsdp; over tensor in the Megatron order (column-
# parallel into a block's hidden width, row-parallel out of it), the only one
# whose gradients the partitioner is known to get right.
TRANSFORMER = (
  (r'(query|key|value|gate|up)/kernel$', ('fsdp', 'tensor')),
  (r'(output|down)/kernel$', ('tensor', 'fsdp')),
  (r'head/kernel$', ('fsdp', 'tensor')),
  (r'ngram_embed/table_\d+$', ('fsdp', None)),
)

# Kernels [blocks, fan-in, fan-out] of structured layers: the first core is
# split in its fan-in, the others in their fan-out, which all structures have.
STRUCTURED = (
  (r'core_0_kernel$', (None, 'fsdp', None)),
  (r'core_\d+_kernel$', (None, None, 'fsdp')),
  *TRANSFORMER,
)


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """Devices along each mesh axis; data=-1 takes all that remain.

  data: copies of the model. fsdp: parts that weights and batch are split in.
  tensor: parts that each layer's hidden width is split in.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def build(
    self, devices: Sequence[jax.Device] | None = None
  ) -> jax.sharding.Mesh:
    """The mesh over `devices`, by default all of the job."""
    devices = jax.devices() if devices is None else devices
    fixed = self.fsdp * self.tensor
    data = len(devices) // max(fixed, 1) if self.data == -1 else self.data
    sizes = {'data': data, 'fsdp': self.fsdp, 'tensor': self.tensor}
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != len(devices):
      raise ValueError(
        f'mesh data={self.data} x fsdp={self.fsdp} x tensor={self.tensor} does'
        f' not use {len(devices)} devices; set mesh.data=-1 and a product of'
        ' mesh.fsdp and mesh.tensor that divides them.'
      )
    return jax.make_mesh(
      tuple(sizes.values()),
      tuple(sizes),
      axis_types=(jax.sharding.AxisType.Auto,) * len(sizes),
      devices=devices,
    )


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
  """Rows of a batch are split over the data and fsdp axes."""
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
