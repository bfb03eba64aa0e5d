"""What the devices of a mesh send one another in a train step, on paper.

From shapes, shardings and the tokens that every projection sees. Numbers are
those of rings: of N bytes, a device among n sends (n - 1) / n N to gather or
to scatter them, twice that to sum them everywhere.
"""

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax

from training import sharding

_MATRIX = re.compile(r'kernel$')
_TABLE = re.compile(r'ngram_embed/table_\d+$')
_READ = re.compile(r'(^|/)(key|value)$')
# Bytes of a number of the computation, to which the gradients of its matrices
# belong, and of other gradients.
_NUMBER, _GRADIENT = 2, 4


class Use(NamedTuple):
  """A projection: the path of its parameters, its widths, its tokens per id.

  copies: layers of a scan that share the path.
  """

  path: str
  d_in: int
  d_out: int
  tokens: float
  copies: int = 1


class Sent(NamedTuple):
  """Bytes that every device sends in a step, and over which mesh axes."""

  what: str
  kind: str
  axes: tuple[str, ...]
  size: float


class Step(NamedTuple):
  """What a step is: mesh, rules, ids per part of the batch, parts.

  unused: beginnings of paths that the step does not read. frozen: regular
  expressions of parameters without gradients.
  """

  mesh: Any
  rules: sharding.Rules
  ids: int
  parts: int
  unused: tuple[str, ...] = ()
  frozen: tuple[str, ...] = ()


class _Leaf(NamedTuple):
  """A parameter: its path, shape, size on a device, and axes by dimension."""

  path: str
  shape: tuple[int, ...]
  local: int
  spec: tuple[Any, ...]

  @property
  def axes(self) -> tuple[str, ...]:
    """Mesh axes that the parameter is split over."""
    split = (axis if isinstance(axis, tuple) else (axis,) for axis in self.spec)
    return tuple(a for axes in split for a in axes if a is not None)


def sent(step: Step, params: Any, uses: Iterable[Use] = ()) -> list[Sent]:
  """Everything that a step sends, but for scalars; what is nothing left out.

  params: of shapes. uses: of the projections; without them nothing is known
  of what the axes tensor, sequence and expert ask for.
  """
  leaves = list(_leaves(step, params))
  found = [*_weights(step, leaves), *_look_ups(step, leaves)]
  found += _gradients(step, leaves)
  uses = [use for use in uses if not use.path.startswith(step.unused)]
  found += _hidden(step, leaves, uses)
  found += _sequence(step, uses)
  found += _experts(step, leaves, uses)
  return _merged(one._replace(size=step.parts * one.size) for one in found)


def gathered(size: float, ways: int) -> float:
  """Bytes that a device sends so that all of `ways` have all of `size`."""
  return (ways - 1) / ways * size


def summed(size: float, ways: int) -> float:
  """Bytes that a device sends to sum arrays of `size` everywhere."""
  return 2 * gathered(size, ways)


def _leaves(step: Step, params: Any) -> Iterator[_Leaf]:
  placed = sharding.shard_tree(params, step.mesh, step.rules)
  for (path, leaf), where in zip(
    jax.tree_util.tree_leaves_with_path(params),
    jax.tree.leaves(placed),
    strict=True,
  ):
    name = sharding.name(path)
    if not name.startswith(step.unused):
      spec = tuple(
        axis if _ways(step, (axis,)) > 1 else None for axis in where.spec
      )
      local = math.prod(where.shard_shape(leaf.shape))
      yield _Leaf(name, leaf.shape, local, spec)


def _ways(step: Step, axes: Iterable[Any]) -> int:
  """Devices along all these axes."""
  ways = 1
  for axis in axes:
    for name in axis if isinstance(axis, tuple) else (axis,):
      ways *= 1 if name is None else step.mesh.shape.get(name, 1)
  return ways


def _rows(step: Step) -> int:
  """Parts that the tokens of a batch are split in."""
  return _ways(step, (*sharding.BATCH_AXES, 'sequence'))


def _weights(step: Step, leaves: list[_Leaf]) -> Iterator[Sent]:
  """Matrices of the computation, forward and backward."""
  for leaf in leaves:
    axes = tuple(a for a in leaf.axes if a in ('fsdp', 'expert'))
    if axes and _MATRIX.search(leaf.path):
      ways = _ways(step, axes)
      whole = _NUMBER * leaf.local * ways
      backward = not _is_frozen(step, leaf)
      size = (1 + backward) * gathered(whole, ways)
      yield Sent('weights', 'all-gather', axes, size)


def _gradients(step: Step, leaves: list[_Leaf]) -> Iterator[Sent]:
  """Sums over all that read a parameter, left split as parameters are."""
  for leaf in leaves:
    if _is_frozen(step, leaf):
      continue
    readers = [
      a
      for a in (*sharding.BATCH_AXES, 'sequence')
      if step.mesh.shape.get(a, 1) > 1
    ]
    is_matrix = _MATRIX.search(leaf.path) is not None
    number = _NUMBER if is_matrix else _GRADIENT
    scattered = tuple(a for a in readers if a in leaf.axes)
    if scattered and is_matrix:
      ways = _ways(step, scattered)
      size = gathered(number * leaf.local * ways, ways)
      yield Sent('gradients', 'reduce-scatter', scattered, size)
    copies = tuple(a for a in readers if a not in leaf.axes)
    if copies:
      size = summed(number * leaf.local, _ways(step, copies))
      yield Sent('gradients', 'all-reduce', copies, size)


def _look_ups(step: Step, leaves: list[_Leaf]) -> Iterator[Sent]:
  """Rows of tables whose rows are split, as models.table_rows sends them.

  The devices that share tables look up the rows of all their tokens, of which
  each receives the sums of its own; the gradients of all are gathered.
  """
  widths = {
    leaf.path.rpartition('/')[0]: leaf.shape[-1]
    for leaf in leaves
    if _TABLE.search(leaf.path) and leaf.spec[:1] == ('fsdp',)
  }
  for width in widths.values():
    ways = _ways(step, ('fsdp',))
    tokens = step.ids * ways / _ways(step, sharding.BATCH_AXES)
    size = gathered(4 * tokens * width, ways)
    yield Sent('looked-up rows', 'reduce-scatter', ('fsdp',), size)
    yield Sent('looked-up rows', 'all-gather', ('fsdp',), size)


def _hidden(step: Step, leaves: list[_Leaf], uses: list[Use]) -> Iterator[Sent]:
  """Sums over tensor: forward after matmuls whose fan-in is split, backward
  before those whose fan-out is. Matmuls of one input share its gradient.
  """
  ways = step.mesh.shape.get('tensor', 1)
  if ways == 1:
    return
  by_path = {leaf.path: leaf for leaf in leaves}
  inputs: dict[str, float] = {}
  for use in uses:
    kernels = [
      leaf
      for path, leaf in by_path.items()
      if path.rpartition('/')[0] == use.path and _MATRIX.search(path)
    ]
    tokens = use.copies * use.tokens * step.ids / _rows(step)
    last = kernels[-1].spec[-2:] if kernels else ()
    first = kernels[0].spec[-1:] if kernels else ()
    if 'tensor' in last[:1]:
      size = _NUMBER * tokens * use.d_out
      yield Sent('hidden states', 'all-reduce', ('tensor',), summed(size, ways))
    elif 'tensor' in first:
      parent = use.path.rpartition('/')[0]
      size = _NUMBER * tokens * use.d_in
      inputs[parent] = max(inputs.get(parent, 0.0), size)
  for size in inputs.values():
    yield Sent('hidden states', 'all-reduce', ('tensor',), summed(size, ways))


def _sequence(step: Step, uses: list[Use]) -> Iterator[Sent]:
  """Keys and values of whole rows, and the sums of their gradients."""
  ways = step.mesh.shape.get('sequence', 1)
  for use in uses:
    if ways > 1 and _READ.search(use.path):
      tokens = use.copies * use.tokens * step.ids
      size = _NUMBER * tokens * use.d_out / _ways(step, sharding.BATCH_AXES)
      for kind in ('all-gather', 'reduce-scatter'):
        yield Sent('keys, values', kind, ('sequence',), gathered(size, ways))


def _experts(
  step: Step, leaves: list[_Leaf], uses: list[Use]
) -> Iterator[Sent]:
  """Tokens of mixtures, sorted over all devices: what goes in and comes out."""
  axes = tuple(a for a in sharding.BATCH_AXES if step.mesh.shape.get(a, 1) > 1)
  mixtures = {
    leaf.path.removesuffix('/router/kernel')
    for leaf in leaves
    if leaf.path.endswith('/router/kernel')
  }
  for use in uses:
    if axes and use.path in mixtures:
      tokens = use.copies * use.tokens * step.ids
      size = 2 * _NUMBER * tokens * (use.d_in + use.d_out)
      sent_bytes = gathered(size, _ways(step, axes))
      yield Sent('routed tokens', 'all-gather', axes, sent_bytes)


def _is_frozen(step: Step, leaf: _Leaf) -> bool:
  return any(re.search(rule, leaf.path) for rule in step.frozen)


def _merged(found: Iterable[Sent]) -> list[Sent]:
  """One entry for each purpose, kind and set of axes."""
  sums: dict[tuple[Any, ...], float] = {}
  for one in found:
    sums[one[:3]] = sums.get(one[:3], 0.0) + one.size
  return [Sent(*key, size) for key, size in sums.items() if size]
