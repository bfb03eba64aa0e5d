"""Keeps activations split over the batch axes of the mesh in use."""

import jax
from jax.sharding import PartitionSpec as P


def pin_batch(x: jax.Array) -> jax.Array:
  """Pins axis 0 to the mesh axes 'data' and 'fsdp', the rest to none.

  Without a pinned residual stream the partitioner can compute wrong gradients
  on meshes with a tensor axis (same class as openxla/xla issue 40034). The
  mesh is that of `jax.set_mesh`; without one, or where the axes do not divide
  the rows (a batch of one while decoding), this does nothing.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(a for a in ('data', 'fsdp') if mesh.shape.get(a, 1) > 1)
  ways = 1
  for axis in axes:
    ways *= mesh.shape[axis]
  if ways == 1 or x.shape[0] % ways:
    return x
  return jax.lax.with_sharding_constraint(x, P(axes))
