"""Decoding state of the byte latent transformer.

The query of a patch is a maximum over all of its bytes, so the keys and values
of the patch that is still open wait until it closes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models import cross_attention
from models import patching as patching_lib


class OpenPatch(NamedTuple):
  """Maximum of the states, and the S latest keys and values, of the bytes."""

  peak_BD: jax.Array
  key_BSHK: jax.Array
  value_BSHK: jax.Array


class Bytes(NamedTuple):
  """Encoded bytes of rows; patch_BT counts from 0, the open patch."""

  x_BTD: jax.Array
  key_BTHK: jax.Array
  value_BTHK: jax.Array
  patch_BT: jax.Array
  real_BT: jax.Array


class Cache(NamedTuple):
  """Decoding state of a batch; Y counts decoder layers.

  encoder, latent, decoder: layer caches of the stacks. patching: where each
  row's open patch stands. patches_B: complete patches, the latent tokens.
  open: the bytes of the open patch. slots_YBMHK: the decoder cross-attention's
  keys, and its values, of the last complete patch. recent_BC: the last ids,
  oldest first.
  """

  encoder: Any
  latent: Any
  decoder: Any
  patching: patching_lib.State
  patches_B: jax.Array
  open: OpenPatch
  slots_YBMHK: tuple[jax.Array, jax.Array]
  recent_BC: jax.Array

  @property
  def length_B(self) -> jax.Array:
    """Bytes read."""
    return self.patching.index_B


def empty(
  batch_size: int, longest: int, heads: int, width: int, dtype: str
) -> OpenPatch:
  """A patch without bytes, with room for `longest` of them."""
  shape = (batch_size, longest, heads, width // heads)
  return OpenPatch(
    jnp.full((batch_size, width), -jnp.inf, dtype),
    jnp.zeros(shape, dtype),
    jnp.zeros(shape, dtype),
  )


def extend(
  old: OpenPatch, new: Bytes, length_B: jax.Array, closed_B: jax.Array
) -> tuple[jax.Array, Bytes, OpenPatch]:
  """Maxima of T + 1 patches, the bytes of all, and the patch open now.

  length_B: bytes of the patch open so far. closed_B: patches that the new
  bytes close, so patch closed_B is the one open after them.
  """
  room = old.key_BSHK.shape[1]
  length = new.patch_BT.shape[1]
  patch_BT, real_BT = new.patch_BT, new.real_BT
  x_BTD = jnp.where(real_BT[:, :, None], new.x_BTD, -jnp.inf)
  x_BTD = jnp.concatenate([old.peak_BD[:, None], x_BTD], axis=1)
  peak_BPD = cross_attention.max_patches(
    x_BTD, jnp.pad(patch_BT, [(0, 0), (1, 0)]), length + 1
  )
  held_BS = jnp.arange(room)[None] < length_B[:, None]
  patch_bytes = Bytes(
    x_BTD,
    jnp.concatenate([old.key_BSHK, new.key_BTHK], axis=1),
    jnp.concatenate([old.value_BSHK, new.value_BTHK], axis=1),
    jnp.pad(patch_BT, [(0, 0), (room, 0)]),
    jnp.concatenate([held_BS, real_BT], axis=1),
  )
  place_1T = jnp.arange(length, dtype=jnp.int32)[None]
  place_BT = jnp.broadcast_to(place_1T, patch_BT.shape)
  starts_BT = jnp.diff(patch_BT, axis=1, prepend=0) > 0
  first_BT = jax.lax.cummax(jnp.where(starts_BT, place_BT, 0), axis=1)
  before_BT = jnp.where(patch_BT == 0, length_B[:, None], 0)
  stays_BT = real_BT & (patch_BT == closed_B[:, None])
  index_BT = jnp.where(stays_BT, place_BT - first_BT + before_BT, room)
  row_B = jnp.arange(patch_BT.shape[0])

  def write(buffer: jax.Array, x: jax.Array) -> jax.Array:
    return buffer.at[row_B[:, None], index_BT].set(x, mode='drop')

  after = OpenPatch(
    peak_BPD[row_B, closed_B],
    write(old.key_BSHK, new.key_BTHK),
    write(old.value_BSHK, new.value_BTHK),
  )
  return peak_BPD, patch_bytes, after
