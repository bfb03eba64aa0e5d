"""Latent rows: the patches of one or several byte rows, side by side."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models import cross_attention
from models import masks
from models import patching


class Plan(NamedTuple):
  """Who belongs to which patch, in W latent rows of some byte rows each.

  patch_WT, slot_WT: the patch that pools a byte and the one that the byte
  reads, sorted and in range; pooled_WT, reads_WT: False where there is none.
  tokens: positions of patches and the documents they are of, 0 where unused.
  overflow: real bytes whose patch is beyond the budget.
  """

  patch_WT: jax.Array
  pooled_WT: jax.Array
  slot_WT: jax.Array
  reads_WT: jax.Array
  tokens: masks.Tokens
  overflow: jax.Array


def plan(
  documents_BT: jax.Array,
  closes_BT: jax.Array,
  *,
  rows: int,
  budget: Callable[[int], int],
) -> Plan:
  """Lays out the patches that end where `closes_BT`.

  rows: byte rows that share a latent row, fewer if they do not divide B.
  budget: latent tokens for a number of bytes. Bytes beyond it are not pooled,
    and read the last patch of their document that is within it, if any.
  """
  batch, length = documents_BT.shape
  rows = math.gcd(batch, rows)
  size = budget(rows * length)
  segment_BT = patching.segments(documents_BT)
  row_B1 = (jnp.arange(batch, dtype=jnp.int32) % rows)[:, None]
  segment_BT = jnp.where(segment_BT > 0, segment_BT + row_B1 * (length + 1), 0)
  shape = (batch // rows, rows * length)
  segment_WT = segment_BT.reshape(shape)
  layout = patching.layout(closes_BT.reshape(shape), segment_WT)
  fits_WT = layout.encoder_BT < size
  pooled_WT = (segment_WT > 0) & fits_WT
  patch_WT = jnp.minimum(layout.encoder_BT, size - 1)
  slot_WT = jnp.minimum(layout.decoder_BT, size - 1)
  segment_WP = cross_attention.max_patches(
    jnp.where(pooled_WT, segment_WT, 0), patch_WT, size
  )
  segment_WP = jnp.maximum(segment_WP, 0)
  own_WT = cross_attention.take_patches(segment_WP, slot_WT) == segment_WT
  return Plan(
    patch_WT=patch_WT,
    pooled_WT=pooled_WT,
    slot_WT=slot_WT,
    reads_WT=own_WT & (segment_WT > 0),
    tokens=masks.row_tokens(segment_WP),
    overflow=jnp.sum((segment_WT > 0) & ~fits_WT),
  )
