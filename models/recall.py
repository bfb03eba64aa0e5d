"""Embeds what followed the last time: the match model of PAQ-like compressors.

For every position, find the latest earlier place in its document where the
same n ids were read, and embed the id that came next there. Induction heads
(arXiv 2209.11895) learn this in two attention layers after many steps; as an
input it costs integer comparisons and works from the first step. It is the
"match model" of Mahoney's PAQ (2005), as a learned embedding.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

_MULTIPLIER = 0x9E3779B1  # 2^32 over the golden ratio: mixes all bits.
_FEW = 16  # positions that are compared with all before, which need no sort


class RecallEmbedding(nn.Module):
  """Sum over sizes n of an embedding of the id after the latest n-id match.

  sizes: match lengths in ids; () switches it off.
  reach: how many ids back a match may end.
  features: embedding width, set by the model.
  """

  sizes: tuple[int, ...] = ()
  reach: int = 1024
  features: int = 0
  vocabulary_size: int = 260

  @property
  def context(self) -> int:
    """Earlier ids needed to embed one position."""
    return self.reach + max(self.sizes) if self.sizes else 0

  @nn.compact
  def __call__(
    self, ids_BT: jax.Array, age_BT: jax.Array, recent_BC: jax.Array
  ) -> jax.Array:
    """Embeds ids_BT after the C earlier ids `recent_BC` (`context` or none).

    age_BT: tokens since the document began; a match lies within it.
    """
    total = 0.0
    for size in self.sizes:
      found_BT = recall(
        ids_BT, age_BT, recent_BC, size=size, reach=self.reach
      )
      table = self.param(
        f'table_{size}',
        nn.initializers.normal(self.features**-0.5),
        (self.vocabulary_size, self.features),
        jnp.float32,
      )
      total += table[found_BT]
    return total


def recall(
  ids_BT: jax.Array,
  age_BT: jax.Array,
  recent_BC: jax.Array,
  *,
  size: int,
  reach: int,
) -> jax.Array:
  """The id after the latest earlier match of the last `size` ids, 0 if none.

  Matches compare 32-bit hashes; ids of another document never count. If the
  latest match is out of reach or begins before the document, so are all.
  """
  history_BS = jnp.concatenate([recent_BC, ids_BT], axis=1)
  length, back = ids_BT.shape[1], history_BS.shape[1]
  hash_BS = jnp.zeros(history_BS.shape, jnp.uint32)
  for shift in range(size):
    earlier = jnp.pad(history_BS, [(0, 0), (shift, 0)])[:, :back]
    hash_BS = (hash_BS ^ earlier.astype(jnp.uint32)) * jnp.uint32(_MULTIPLIER)
    hash_BS ^= hash_BS >> 15
  place_1S = jnp.arange(back, dtype=jnp.int32)[None]
  if length <= _FEW:
    place_11S, place_1T1 = place_1S[:, None], place_1S[:, back - length :, None]
    same_BTS = hash_BS[:, None] == hash_BS[:, back - length :, None]
    same_BTS &= place_11S < place_1T1
    latest_BT = jnp.max(jnp.where(same_BTS, place_11S, -1), axis=2)
  else:
    latest_BT = _latest_equal(hash_BS)[:, back - length :]
  distance_BT = place_1S[:, back - length :] - latest_BT
  found_BT = (
    (latest_BT >= 0)
    & (distance_BT <= reach)
    & (distance_BT + size - 1 <= age_BT)
  )
  next_BT = jnp.take_along_axis(
    history_BS, jnp.clip(latest_BT + 1, 0, back - 1), axis=1
  )
  return jnp.where(found_BT, next_BT, 0)


def _latest_equal(value_BS: jax.Array) -> jax.Array:
  """For each place the latest earlier one of equal value, -1 if none.

  By sorting, which is O(S log S): the neighbour before an element among the
  equal ones, ordered by place, is the one looked for.
  """
  place_BS = jnp.broadcast_to(
    jnp.arange(value_BS.shape[1], dtype=jnp.int32)[None], value_BS.shape
  )
  sorted_BS, order_BS = jax.lax.sort((value_BS, place_BS), num_keys=2)
  same_BS = sorted_BS[:, 1:] == sorted_BS[:, :-1]
  before_BS = jnp.pad(
    jnp.where(same_BS, order_BS[:, :-1], -1),
    [(0, 0), (1, 0)],
    constant_values=-1,
  )
  row_B1 = jnp.arange(value_BS.shape[0])[:, None]
  return before_BS.at[row_B1, order_BS].set(before_BS, unique_indices=True)
