"""Cells of events as vectors, and the distribution of each column's cells.

A cell is one column of one event. Its id says which value it has: ids of
column c are those from the sum of the sizes of the columns before it.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class CellEmbedding(nn.Module):
  """A cell's id, its number, and how long ago the entity had the same value.

  columns: ids of each column; numbers: the columns that have numbers.
  waves: frequencies, each twice the one before, at which sines and cosines of
    a number are read; 0 reads no numbers.
  reach: events back in which the same value is looked for; 0 looks for none.
  """

  columns: tuple[int, ...]
  numbers: tuple[int, ...]
  features: int
  waves: int
  reach: int

  @nn.compact
  def __call__(
    self,
    ids_BEC: jax.Array,
    value_BEC: jax.Array | None,
    since_BEC: jax.Array | None,
  ) -> jax.Array:
    """Embeddings [B, E, C, D].

    value_BEC: numbers of deviation about 1, NaN where there is none; None if
      there are none at all. since_BEC: from `since`.
    """
    normal = nn.initializers.normal(self.features**-0.5)

    def table(name: str, *shape: int) -> jax.Array:
      return self.param(name, normal, (*shape, self.features), jnp.float32)

    ids_table = table('ids', sum(self.columns))
    x_BECD = ids_table[jnp.clip(ids_BEC, 0, sum(self.columns) - 1)]
    if self.reach:
      count = self.reach + 1
      first_C = np.arange(len(self.columns), dtype=np.int32) * count
      since_table = table('since', len(self.columns) * count)
      x_BECD += since_table[since_BEC + first_C[None, None]]
    if not self.waves or not self.numbers:
      return x_BECD
    kernel_JKD = table('number_kernel', len(self.numbers), 2 * self.waves + 2)
    if value_BEC is None:
      return x_BECD
    features_BEJK = number_features(
      value_BEC[:, :, np.array(self.numbers)], self.waves
    )
    read_BEJD = jnp.einsum('BEJK,JKD->BEJD', features_BEJK, kernel_JKD)
    columns = [x_BECD[:, :, c] for c in range(len(self.columns))]
    for j, c in enumerate(self.numbers):
      columns[c] += read_BEJD[:, :, j]
    return jnp.stack(columns, axis=2)


def number_features(value: jax.Array, waves: int) -> jax.Array:
  """1, the number, and its sines and cosines; zeros where it is NaN.

  The slowest wave has a period of 16 deviations.
  """
  known = ~jnp.isnan(value)
  value = jnp.where(known, value, 0.0)
  rate_K = np.pi / 8 * 2.0 ** np.arange(waves, dtype=np.float32)
  angle = value[..., None] * rate_K.reshape((1,) * value.ndim + (-1,))
  parts = [
    jnp.ones_like(value)[..., None],
    jnp.clip(value, -8.0, 8.0)[..., None],
    jnp.sin(angle),
    jnp.cos(angle),
  ]
  return jnp.concatenate(parts, axis=-1) * known[..., None]


def since(
  ids_BEC: jax.Array, age_BE: jax.Array, recent_BRC: jax.Array
) -> jax.Array:
  """Events since the entity had the same value in a column, 0 if not in R.

  age_BE: earlier events of the entity. recent_BRC: ids of the R events before
  the first of these, oldest first.
  """
  reach, length = recent_BRC.shape[1], ids_BEC.shape[1]
  history_BSC = jnp.concatenate([recent_BRC, ids_BEC], axis=1)
  found_BEC = jnp.zeros_like(ids_BEC)
  for back in range(reach, 0, -1):
    earlier_BEC = history_BSC[:, reach - back : reach - back + length]
    same_BEC = (earlier_BEC == ids_BEC) & (age_BE >= back)[..., None]
    found_BEC = jnp.where(same_BEC, back, found_BEC)
  return found_BEC


def pick(
  logits_BEV: jax.Array, target_BEN: jax.Array, first: int
) -> jax.Array:
  """Log-probabilities [B, E, N] of ids of a column, -inf for other ids.

  logits_BEV: of the column alone, whose ids begin with `first`.
  """
  size = logits_BEV.shape[-1]
  local_BEN = target_BEN - first
  inside_BEN = (local_BEN >= 0) & (local_BEN < size)
  found_BEN = jnp.take_along_axis(
    logits_BEV, jnp.clip(local_BEN, 0, size - 1), axis=-1
  )
  found_BEN -= jax.nn.logsumexp(logits_BEV, axis=-1, keepdims=True)
  return jnp.where(inside_BEN, found_BEN, -jnp.inf)


def widen(columns: Sequence[jax.Array]) -> jax.Array:
  """Logits [B, E, C, V] over all ids from those of each column, else -inf."""
  sizes = [x.shape[-1] for x in columns]
  before = np.cumsum([0, *sizes])
  return jnp.stack(
    [
      jnp.pad(
        x_BEV,
        [(0, 0), (0, 0), (int(before[c]), int(before[-1] - before[c + 1]))],
        constant_values=-jnp.inf,
      )
      for c, x_BEV in enumerate(columns)
    ],
    axis=2,
  )
