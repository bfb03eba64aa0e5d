"""Passages of a corpus on the device, and the places in them.

A place counts the ids of all passages of a row, also those that only follow a
passage and have no key.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Loaded(NamedTuple):
  """The passages of every row, M per row, at most P keys in each.

  key_BCD, square_BC, real_BC: keys of all passages side by side (C = M P), the
  squares of their lengths, and False where a passage is shorter. id_BML: the
  ids that the keys predict and those that follow in the document, -1 beyond its
  end. document_BM, offset_BM: where in the corpus a passage begins.
  """

  key_BCD: jax.Array
  square_BC: jax.Array
  real_BC: jax.Array
  id_BML: jax.Array
  document_BM: jax.Array
  offset_BM: jax.Array


def key_ids(loaded: Loaded) -> jax.Array:
  """[B, C]: the id that every key predicts."""
  batch_size, count, _ = loaded.id_BML.shape
  size = loaded.real_BC.shape[1] // count
  return loaded.id_BML[:, :, :size].reshape(batch_size, -1)


def place(loaded: Loaded, key_B: jax.Array) -> jax.Array:
  """[B]: of the id that a key predicts."""
  count, length = loaded.id_BML.shape[1:]
  size = loaded.real_BC.shape[1] // count
  return (key_B // size * length + key_B % size).astype(jnp.int32)


def follow(
  id_BML: jax.Array, start_B: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
  """The ids [B, G] from a place of the passages on, and how many there are."""
  batch_size, _, length = id_BML.shape
  place_BG = jnp.maximum(start_B, 0)[:, None] + jnp.arange(count)[None]
  is_inside_BG = place_BG // length == place_BG[:, :1] // length
  id_BX = id_BML.reshape(batch_size, -1)
  place_BG = jnp.minimum(place_BG, id_BX.shape[1] - 1)
  id_BG = jnp.take_along_axis(id_BX, place_BG, axis=1)
  is_real_BG = jnp.cumprod(is_inside_BG & (id_BG >= 0), axis=1)
  return jnp.where(is_real_BG > 0, id_BG, 0), jnp.sum(is_real_BG, axis=1)


def locate(
  loaded: Loaded, start_B: jax.Array, taken_B: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Document and offset of a place, and the place after so many ids or -1."""
  length = loaded.id_BML.shape[2]
  start_B = jnp.maximum(start_B, 0)
  passage_B, within_B = start_B // length, start_B % length
  offset_B = pick(loaded.offset_BM, passage_B) + within_B
  after_B = within_B + taken_B
  last_B = jnp.minimum(after_B, length - 1)
  rows_B = jnp.arange(len(start_B))
  is_there_B = loaded.id_BML[rows_B, passage_B, last_B] >= 0
  next_B = jnp.where(is_there_B & (after_B < length), start_B + taken_B, -1)
  return pick(loaded.document_BM, passage_B), offset_B, next_B


def are_used(
  loaded: Loaded,
  document_B: jax.Array,
  offset_B: jax.Array,
  taken_B: jax.Array,
) -> jax.Array:
  """[B, C]: is it the key of one of these ids?"""
  size = loaded.real_BC.shape[1] // loaded.offset_BM.shape[1]
  offset_BMP = loaded.offset_BM[:, :, None] + jnp.arange(size)[None, None]
  first_B11 = offset_B[:, None, None]
  used_BMP = (offset_BMP >= first_B11) & (
    offset_BMP < first_B11 + taken_B[:, None, None]
  )
  used_BMP &= (loaded.document_BM == document_B[:, None])[:, :, None]
  return used_BMP.reshape(loaded.real_BC.shape)


def pick(x_BN: jax.Array, place_B: jax.Array) -> jax.Array:
  """[B]: one of each row."""
  return jnp.take_along_axis(x_BN, place_B[:, None], axis=1)[:, 0]
