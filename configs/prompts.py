"""From prompts to the rows that samplers continue, and back to bytes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from data import codec
from samplers import parallel


def rows(
  spelling: codec.Codec, texts: Sequence[bytes], count: int, seed: int
) -> parallel.Rows:
  """ids_BT, lengths_B and keys_B of every prompt, `count` times in a row."""
  ids = [spelling.prompt(text) for text in texts]
  lengths = np.array([len(row) for row in ids], np.int32)
  ids_BT = np.full((len(ids), lengths.max()), codec.PADDING, np.int32)
  for target, row in zip(ids_BT, ids, strict=True):
    target[: len(row)] = row
  # Folded twice, so that asking for more samples leaves the first ones alone.
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  keys = fold(jax.random.key(seed), np.arange(len(ids)))
  keys = jax.vmap(fold, (0, None))(keys, np.arange(count)).reshape(-1)
  ids_BT, lengths = np.repeat(ids_BT, count, axis=0), np.repeat(lengths, count)
  return jnp.asarray(ids_BT), jnp.asarray(lengths), keys


def made(
  spelling: codec.Codec,
  texts: Sequence[bytes],
  count: int,
  ids_BN: jax.Array,
  length_B: jax.Array,
) -> list[bytes]:
  """The bytes that go on from every prompt, of rows in the order of `rows`."""
  ids_BN, length_B = np.asarray(ids_BN), np.asarray(length_B)
  return [
    spelling.decode(ids_BN[row, :length], begins=not texts[row // count])
    for row, length in enumerate(length_B)
  ]
