"""From prompts to the rows that samplers continue, and back to bytes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from data import codec
from samplers import parallel
from samplers import stop_strings


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


class Growing:
  """The bytes of every row of `rows`, of which each id is decoded once.

  texts: at most `most` bytes that go on from every prompt, up to the first
    stop string; certain: how many of them may be shown, since no stop string
    can begin there; stopped_B: where a stop string was found.
  """

  def __init__(
    self,
    spelling: codec.Codec,
    texts: Sequence[bytes],
    count: int,
    stops: stop_strings.StopStrings,
    most: int,
  ) -> None:
    self._spelling, self._stops, self._most = spelling, stops, most
    self._begins = [not text for text in texts for _ in range(count)]
    self._read = [0] * len(self._begins)
    self.texts = [bytearray() for _ in self._begins]
    self.certain = [0] * len(self._begins)
    self.stopped_B = np.zeros(len(self._begins), bool)

  def add(self, ids_BN: jax.Array, length_B: jax.Array) -> None:
    """Reads what was added to the ids since."""
    ids_BN, length_B = np.asarray(ids_BN), np.asarray(length_B)
    for row in np.flatnonzero(~self.stopped_B):
      self._add(row, ids_BN[row], length_B[row])

  def _add(self, row: int, ids_N: np.ndarray, length: int) -> None:
    text, read = self.texts[row], self._read[row]
    begins = self._begins[row] and not read
    if begins:
      text.clear()
    text += self._spelling.decode(ids_N[read:length], begins=begins)
    if begins and len(text) < len(self._spelling.lead):
      return  # It may belong to the lead: read again with what follows.
    self._read[row] = length
    del text[self._most :]
    cut = self._stops.cut(text, self.certain[row])
    self.certain[row], self.stopped_B[row] = cut
    if cut.is_stopped:
      del text[cut.length :]
