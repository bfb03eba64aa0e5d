"""Hashed n-gram embeddings of the Byte Latent Transformer (arXiv 2412.09871).

Each position adds one table row per n-gram size, chosen by a rolling
polynomial hash of the n last ids. The hash is defined on signed 64-bit
integers; JAX runs in 32 bits, so it is carried in four 16-bit limbs.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import table_rows

PRIME = 1_000_000_007
_LIMBS = 4


def hash_ids(window_BTN: jax.Array, rows: int) -> jax.Array:
  """Row of each n-gram: (sum_t x_t PRIME^t as int64) mod rows, oldest first.

  window_BTN: the n <= 8 ids of each position, oldest first, all < 2^16.
  rows: table size below 2^24. Returns int32 in [0, rows), floored like
  Python's %.
  """
  n = window_BTN.shape[-1]
  if not 0 < rows < 2**24 or n > 8:
    raise ValueError(
      f'ngram rows={rows} must be in 1..{2**24 - 1} and n={n} at most 8.'
    )
  powers = [pow(PRIME, t, 2**64) for t in range(n)]
  window = window_BTN.astype(jnp.uint32)
  limbs, carry = [], jnp.zeros(window.shape[:-1], jnp.uint32)
  for limb in range(_LIMBS):
    weights = np.array(
      [power >> 16 * limb & 0xFFFF for power in powers], np.uint32
    )
    # n <= 8 products below 2^9 2^16 and a carry: no overflow of 32 bits.
    total = carry + sum(window[..., t] * weights[t] for t in range(n))
    limbs.append(total & 0xFFFF)
    carry = total >> 16
  remainder = jnp.zeros_like(carry)
  for limb in reversed(limbs):
    for byte in (limb >> 8, limb & 0xFF):
      remainder = (remainder * 256 + byte) % rows
  wrap = np.uint32(2**64 % rows)
  negative = limbs[-1] >> 15 == 1
  wrapped = jnp.where(
    remainder >= wrap, remainder - wrap, remainder + rows - wrap
  )
  return jnp.where(negative, wrapped, remainder).astype(jnp.int32)


def windows(
  ids_BT: jax.Array, age_BT: jax.Array, recent_BC: jax.Array, size: int
) -> jax.Array:
  """The last `size` ids at each position, oldest first: [B, T, size].

  recent_BC: ids before the row, as many as are known. age_BT: tokens since the
  document began; older ids are read as 0.
  """
  length, missing = ids_BT.shape[1], size - 1 - recent_BC.shape[1]
  history = jnp.pad(
    jnp.concatenate([recent_BC, ids_BT], axis=1), [(0, 0), (missing, 0)]
  )
  shifted = []
  for back in reversed(range(size)):
    start = size - 1 - back
    ids = history[:, start : start + length]
    shifted.append(jnp.where(age_BT >= back, ids, 0))
  return jnp.stack(shifted, axis=-1)


def latest(
  recent_BC: jax.Array, ids_BT: jax.Array, count_B: jax.Array
) -> jax.Array:
  """[B, C]: the last ids of each row after the first count_B of `ids_BT`."""
  history = jnp.concatenate([recent_BC, ids_BT], axis=1)
  index_BC = count_B[:, None] + jnp.arange(recent_BC.shape[1])[None]
  return jnp.take_along_axis(history, index_BC, axis=1)


class NgramEmbedding(nn.Module):
  """Sum of hashed n-gram embeddings, added to the byte embedding.

  sizes: n-gram lengths, each with its own table; () switches it off.
  earlier: how many of the ids before are embedded too, each distance by a
    table of its own, so that one layer of attention can find the place where
    the ids now read stood just before.
  rows: rows of each table, the modulus of the hash.
  multiple: tables are stored with their rows rounded up to a multiple of it,
    so that they divide over devices; the rows beyond are never read.
  """

  sizes: tuple[int, ...] = ()
  rows: int = 8192
  multiple: int = 1
  features: int = 0
  earlier: int = 0
  vocabulary_size: int = 260

  @property
  def context(self) -> int:
    """Earlier ids needed to embed one position."""
    if not self.sizes:
      return 0
    return max(max(self.sizes) - 1, self.earlier)

  @nn.compact
  def __call__(
    self, ids_BT: jax.Array, age_BT: jax.Array, recent_BC: jax.Array
  ) -> jax.Array:
    """Embeds ids_BT after the C earlier ids `recent_BC` (`context` or none).

    age_BT: tokens since the document began; older ids are read as id 0, so
    an n-gram never reaches into another document.
    """
    window_BTN = windows(ids_BT, age_BT, recent_BC, self.context + 1)
    tables, rows = [], []
    for size in self.sizes:
      table = self.param(
        f'table_{size}',
        nn.initializers.normal(self.features**-0.5),
        (-(-self.rows // self.multiple) * self.multiple, self.features),
        jnp.float32,
      )
      tables.append(table)
      rows.append(hash_ids(window_BTN[..., -size:], self.rows))
    total = table_rows.summed(tables, rows)
    for back in range(1, self.earlier + 1):
      table = self.param(
        f'earlier_table_{back}',
        nn.initializers.normal(self.features**-0.5),
        (self.vocabulary_size, self.features),
        jnp.float32,
      )
      total += table[window_BTN[..., -1 - back]]
    return total
