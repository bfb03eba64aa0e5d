"""Keeps activations split over the axes of the mesh in use.

The mesh is that of `jax.set_mesh`; without one nothing here does anything.
"""

import jax
from jax.sharding import PartitionSpec as P

_ROWS = ('data', 'fsdp', 'expert')
_TOKENS, _HEADS = 'sequence', 'tensor'


def pin_tokens(x_BT: jax.Array) -> jax.Array:
  """Pins rows to the mesh axes of the batch and tokens to 'sequence'.

  Other axes are whole. Without a pinned residual stream the partitioner can
  compute wrong gradients on meshes with a tensor axis (same class as
  openxla/xla issue 40034). What does not divide, as a batch of one while
  decoding, is left to the partitioner.
  """
  spec = [
    axes if axes and size % _ways(axes) == 0 else None
    for axes, size in zip(
      (_used(*_ROWS), _used(_TOKENS)), x_BT.shape, strict=False
    )
  ]
  if not any(spec):
    return x_BT
  return jax.lax.with_sharding_constraint(x_BT, P(*spec))


def pin_tiles(x_SRD: jax.Array) -> jax.Array:
  """Pins tiles, sorted by expert, to 'expert' and the other axes of rows."""
  axes = _used(*reversed(_ROWS))
  if not axes:
    return x_SRD
  return jax.lax.with_sharding_constraint(x_SRD, P(axes))


def splits_tokens() -> bool:
  """Whether devices hold parts of rows, so that rows cannot be joined."""
  return bool(_used(_TOKENS))


def row_and_head_axes(
  rows: int, heads: int
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
  """Axes over which devices share whole rows and heads; None if they cannot.

  What devices compute alone, as kernels that cannot be cut, needs all of a row.
  """
  found = _used(*_ROWS), _used(_HEADS)
  if splits_tokens() or rows % _ways(found[0]) or heads % _ways(found[1]):
    return None
  return found


def _used(*axes: str) -> tuple[str, ...]:
  mesh = jax.sharding.get_abstract_mesh()
  return tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)


def _ways(axes: tuple[str, ...]) -> int:
  mesh = jax.sharding.get_abstract_mesh()
  ways = 1
  for axis in axes:
    ways *= mesh.shape[axis]
  return ways
