"""Look-ups in tables that are split over devices, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from bench import collectives
from models import table_rows
from training import sharding

SIZES, WIDTH = (1024, 2048), 4
BATCH, LENGTH = 8, 6


def test_split_tables_give_the_sums_and_gradients_of_whole_ones():
  rng = np.random.default_rng(0)
  tables = [rng.normal(size=(n, WIDTH)).astype(np.float32) for n in SIZES]
  rows = [
    rng.integers(0, n, (BATCH, LENGTH)).astype(np.int32) for n in SIZES
  ]
  # The first and the last row of every device.
  rows[0][0] = [0, 255, 256, 511, 768, 1023]
  weight = rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
  mesh = sharding.MeshShape(data=2, fsdp=4).build()
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('fsdp'))

  def weighted(tables, rows, weight):
    found = table_rows.summed(tables, rows)
    return jnp.sum(weight * found), found

  with jax.set_mesh(mesh):
    placed = (
      jax.device_put(tables, split),
      *jax.device_put((rows, weight), sharding.batch_sharding(mesh)),
    )
    run = jax.jit(
      jax.grad(weighted, has_aux=True), out_shardings=([split] * 2, None)
    )
    program = run.lower(*placed).compile()
    grads, found = program(*placed)
  expected = sum(x[i] for x, i in zip(tables, rows, strict=True))
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  for grad, table, i in zip(grads, tables, rows, strict=True):
    total = np.zeros_like(table)
    np.add.at(total, i, weight)
    np.testing.assert_allclose(grad, total, rtol=1e-5, atol=1e-6)
  sent = collectives.find(program.as_text(), dict(mesh.shape))
  # Nobody receives a table; gradients of a quarter of them are summed.
  largest = max(c.size for c in sent if 'fsdp' in c.axes)
  assert largest < 4 * WIDTH * min(SIZES) / 4
