"""Rows of tables that are split over the devices of the mesh in use.

The partitioner would gather whole tables on every device, and sum their whole
gradients.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

_SPLIT = 'fsdp'
_ROWS = ('data', 'fsdp', 'expert')


def summed(
  tables_RD: Sequence[jax.Array], row_BT: Sequence[jax.Array]
) -> jax.Array:
  """The sum [B, T, D] over tables of their rows `row_BT`, one per position.

  Where 'fsdp' splits tables, its devices look up the rows that they have of
  all their batches, and each receives the sums of its own batch.
  """
  mesh = jax.sharding.get_abstract_mesh()
  ways = mesh.shape.get(_SPLIT, 1)
  batch = tuple(axis for axis in _ROWS if mesh.shape.get(axis, 1) > 1)
  parts = math.prod(mesh.shape[axis] for axis in batch)
  whole = not tables_RD or any(x.shape[0] % ways for x in tables_RD)
  if ways == 1 or whole or row_BT[0].shape[0] % parts:
    return sum(
      table_RD[rows] for table_RD, rows in zip(tables_RD, row_BT, strict=True)
    )
  split = jax.shard_map(
    _summed_here, in_specs=(P(_SPLIT), P(batch)), out_specs=P(batch)
  )
  return split(tuple(tables_RD), tuple(row_BT))


def _summed_here(
  tables_RD: tuple[jax.Array, ...], row_BT: tuple[jax.Array, ...]
) -> jax.Array:
  """On one device: of all rows of its group those that it has, then sums."""
  total_BTD = 0.0
  for table_RD, rows_BT in zip(tables_RD, row_BT, strict=True):
    rows_BT = jax.lax.all_gather(rows_BT, _SPLIT, tiled=True)
    size = table_RD.shape[0]
    local_BT = rows_BT - jax.lax.axis_index(_SPLIT) * size
    # A negative index would count from the end.
    local_BT = jnp.where(local_BT < 0, size, local_BT)
    total_BTD += table_RD.at[local_BT].get(mode='fill', fill_value=0)
  return jax.lax.psum_scatter(total_BTD, _SPLIT, tiled=True)
