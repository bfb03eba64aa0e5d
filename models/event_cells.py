"""Cells of events as vectors, and the distribution of each column's cells.

A cell is one column of one event. Its id says which value it has: ids of
column c are those from the sum of the sizes of the columns before it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import linear

# Of probabilities whose logarithm is taken; no subnormal number.
_LEAST = 1e-37
# Ids of a column, of which more are looked up in a table.
_LOOKED_UP = 64


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
    count = self.reach + 1
    if self.reach:
      since_table = table('since', len(self.columns) * count)
    numbers = self.numbers if self.waves else ()
    if numbers:
      kernel_JKD = table('number_kernel', len(numbers), 2 * self.waves + 2)
    cells, first = [], 0
    for c, size in enumerate(self.columns):
      ids_BE = jnp.clip(ids_BEC[:, :, c] - first, 0, size - 1)
      features, kernels = [], []
      # Gradients of products are far cheaper than those of looking up.
      if size <= _LOOKED_UP:
        features.append(jax.nn.one_hot(ids_BE, size))
        kernels.append(ids_table[first : first + size])
      if self.reach:
        features.append(jax.nn.one_hot(since_BEC[:, :, c], count))
        kernels.append(since_table[c * count : (c + 1) * count])
      if c in numbers and value_BEC is not None:
        features.append(number_features(value_BEC[:, :, c], self.waves))
        kernels.append(kernel_JKD[numbers.index(c)])
      x_BED = 0.0
      if features:
        x_BED = jnp.einsum(
          'BEK,KD->BED', jnp.concatenate(features, -1), jnp.concatenate(kernels)
        )
      if size > _LOOKED_UP:
        x_BED += ids_table[ids_BE + first]
      cells.append(x_BED)
      first += size
    return jnp.stack(cells, axis=2)


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


class Copies(NamedTuple):
  """Earlier cells of a column, one of which a cell may be a copy of.

  log_p_BER: of being a copy of the cell R events back, R = 1, 2, ...;
  log_new_BE: of being none. ids_BER: their ids.
  """

  log_p_BER: jax.Array
  log_new_BE: jax.Array
  ids_BER: jax.Array


class Law(NamedTuple):
  """The distribution of the cells of a column, whose ids begin with `first`."""

  logits_BEV: jax.Array
  first: int
  copies: Copies | None = None

  def of(self, target_BEN: jax.Array) -> jax.Array:
    """Log-probabilities [B, E, N] of ids, -inf for those of other columns."""
    size = self.logits_BEV.shape[-1]
    local_BEN = target_BEN - self.first
    inside_BEN = (local_BEN >= 0) & (local_BEN < size)
    found_BEN = jnp.take_along_axis(
      self.logits_BEV, jnp.clip(local_BEN, 0, size - 1), axis=-1
    )
    found_BEN -= jax.nn.logsumexp(self.logits_BEV, axis=-1, keepdims=True)
    if self.copies is not None:
      same_BENR = (
        target_BEN[..., None] == self.copies.ids_BER[:, :, None]
      )
      p_BER = jnp.exp(self.copies.log_p_BER)
      p_BEN = jnp.sum(jnp.where(same_BENR, p_BER[:, :, None], 0), axis=-1)
      p_BEN += jnp.exp(found_BEN + self.copies.log_new_BE[..., None])
      found_BEN = jnp.log(jnp.maximum(p_BEN, _LEAST))
    return jnp.where(inside_BEN, found_BEN, -jnp.inf)

  def logits(self) -> jax.Array:
    """[B, E, V] of all ids of the column."""
    if self.copies is None:
      return self.logits_BEV
    log_p_BEV = jax.nn.log_softmax(self.logits_BEV, axis=-1)
    p_BEV = jnp.exp(log_p_BEV + self.copies.log_new_BE[..., None])
    batch, events, size = p_BEV.shape
    local_BER = self.copies.ids_BER - self.first
    # A copy of what is no id of the column, as padding, has probability 0.
    p_BEV = p_BEV.at[
      np.arange(batch)[:, None, None],
      np.arange(events)[None, :, None],
      jnp.clip(local_BER, 0, size - 1),
    ].add(jnp.exp(self.copies.log_p_BER))
    return jnp.log(jnp.maximum(p_BEV, _LEAST))


class Copying(nn.Module):
  """Whether a cell is a copy of an earlier one of its column, and of which.

  The pointer-generator of See et al. (arXiv 1704.04368), without content: how
  far back the cell lies is all that counts. A missing value is none to copy:
  whether one is missing follows from the other columns, not from the past.

  columns: ids of each column, the first of which says that none is there.
  reach: events back.
  """

  columns: tuple[int, ...]
  reach: int
  linear: nn.Module = linear.Dense()

  @nn.compact
  def __call__(
    self, x_BECF: jax.Array, history_BSC: jax.Array, age_BE: jax.Array
  ) -> list[Copies]:
    """Of every column.

    x_BECF: what is known of each cell. history_BSC: ids, the last `E` of which
    are of these events. age_BE: earlier events of the entity.
    """
    reach, events = self.reach, x_BECF.shape[1]
    count = len(self.columns)
    gate = self.linear.copy(
      name='gate', features=reach + 1, dtype=x_BECF.dtype
    )
    # Copies are rare at first, so that no column suffers from bad ones.
    bias_CR = self.param(
      'bias', lambda _: jnp.zeros((count, reach + 1)).at[:, 0].set(4.0)
    )
    logits_BECR = gate(x_BECF).astype(jnp.float32) + bias_CR[None, None]
    back_R = np.arange(1, reach + 1)
    ids_BERC = jnp.stack(
      [history_BSC[:, reach - r : reach - r + events] for r in back_R], 2
    )
    missing_C = np.cumsum([0, *self.columns[:-1]])
    there_BERC = (age_BE[..., None] >= back_R[None, None])[..., None]
    there_BERC &= ids_BERC != missing_C[None, None, None]
    there_BECR = jnp.pad(
      there_BERC.swapaxes(2, 3), [(0, 0)] * 3 + [(1, 0)], constant_values=True
    )
    logits_BECR = jnp.where(there_BECR, logits_BECR, -1e9)
    log_p_BECR = jax.nn.log_softmax(logits_BECR, axis=-1)
    return [
      Copies(
        log_p_BECR[:, :, c, 1:], log_p_BECR[:, :, c, 0], ids_BERC[..., c]
      )
      for c in range(count)
    ]


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


def sums(picked: np.ndarray | jax.Array, x_BEJD: jax.Array) -> jax.Array:
  """Sums of some of J: booleans [X, J] or [B, E, X, J] give [B, E, X, D]."""
  axes = 'XJ' if picked.ndim == 2 else 'BEXJ'
  # Exact, since one factor is 0 or 1.
  return jnp.einsum(
    f'{axes},BEJD->BEXD',
    jnp.asarray(picked, x_BEJD.dtype),
    x_BEJD,
    precision='highest',
  )
