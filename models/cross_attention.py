"""Attention between bytes and patches, linear in their number.

Every byte belongs to one patch, so scores exist per (byte, slot) only: no
array here has both a byte axis and a patch axis (arXiv 2412.09871, section
3.2 and 3.3, computes masked dense ones).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import attention
from models import linear


class CrossAttention(nn.Module):
  """Norms and projections of one cross-attention; callers mix in between.

  width: of queries, keys and result, which is a sum over `heads`.
  """

  width: int
  heads: int
  dtype: str
  linear: nn.Module = linear.Dense()

  def setup(self) -> None:
    self.query_norm = attention.RMSNorm()
    self.key_norm = attention.RMSNorm()
    for name in ('query', 'key', 'value', 'output'):
      layer = self.linear.copy(features=self.width, dtype=self.dtype)
      setattr(self, name, layer)

  def queries(self, x: jax.Array) -> jax.Array:
    """Queries [..., H, K] of states [..., D]."""
    return self._split(self.query(self.query_norm(x)))

  def keys(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values [..., H, K] of states [..., D]."""
    normal = self.key_norm(x)
    return self._split(self.key(normal)), self._split(self.value(normal))

  def result(self, mixed: jax.Array) -> jax.Array:
    """Output [..., D] of mixed values [..., H, K]."""
    return self.output(mixed.reshape(*mixed.shape[:-2], self.width))

  def _split(self, x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:-1], self.heads, self.width // self.heads)


def pool_bytes(
  query_BPMHK: jax.Array,
  key_BTHK: jax.Array,
  value_BTHK: jax.Array,
  patch_BT: jax.Array,
  real_BT: jax.Array,
) -> jax.Array:
  """Each patch's slots attend to its real bytes; a patch without any gives 0.

  patch_BT: the patch of each byte, sorted along a row.
  """
  patches = query_BPMHK.shape[1]
  query_BTMHK = take_patches(query_BPMHK, patch_BT)
  logits_BTMH = jnp.einsum(
    'BTMHK,BTHK->BTMH',
    query_BTMHK * query_BTMHK.shape[-1] ** -0.5,
    key_BTHK,
    preferred_element_type=jnp.float32,
  )
  logits_BTMH = jnp.where(real_BT[:, :, None, None], logits_BTMH, -jnp.inf)
  peak_BPMH = max_patches(jax.lax.stop_gradient(logits_BTMH), patch_BT, patches)
  peak_BPMH = jnp.where(jnp.isneginf(peak_BPMH), 0.0, peak_BPMH)
  weight_BTMH = jnp.exp(logits_BTMH - take_patches(peak_BPMH, patch_BT))
  total_BPMH = _sum_patches(weight_BTMH, patch_BT, patches)
  weighted_BTMHK = (
    weight_BTMH.astype(value_BTHK.dtype)[..., None] * value_BTHK[:, :, None]
  )
  out_BPMHK = _sum_patches(weighted_BTMHK, patch_BT, patches)
  total_BPMH = jnp.where(total_BPMH == 0.0, 1.0, total_BPMH)
  return out_BPMHK / total_BPMH[..., None].astype(out_BPMHK.dtype)


def look_up(
  query_BTHK: jax.Array,
  key_BPMHK: jax.Array,
  value_BPMHK: jax.Array,
  patch_BT: jax.Array,
  sees_BT: jax.Array,
) -> jax.Array:
  """Each byte attends to the slots of one patch, to nothing unless it sees."""
  logits_BTMH = jnp.einsum(
    'BTHK,BTMHK->BTMH',
    query_BTHK * query_BTHK.shape[-1] ** -0.5,
    take_patches(key_BPMHK, patch_BT),
    preferred_element_type=jnp.float32,
  )
  weight_BTMH = jax.nn.softmax(logits_BTMH, axis=2)
  weight_BTMH = jnp.where(sees_BT[:, :, None, None], weight_BTMH, 0.0)
  value_BTMHK = take_patches(value_BPMHK, patch_BT)
  return jnp.einsum(
    'BTMH,BTMHK->BTHK', weight_BTMH.astype(value_BTMHK.dtype), value_BTMHK
  )


def take_patches(x_BP: jax.Array, patch_BT: jax.Array) -> jax.Array:
  """The entry of each byte's patch: [B, P, ...] -> [B, T, ...]."""

  def take(x_P: jax.Array, patch_T: jax.Array) -> jax.Array:
    return x_P.at[patch_T].get(
      mode='promise_in_bounds', indices_are_sorted=True
    )

  return jax.vmap(take)(x_BP, patch_BT)


def max_patches(
  x_BT: jax.Array, patch_BT: jax.Array, patches: int
) -> jax.Array:
  """Maximum over each patch's bytes, the lowest value where there are none."""

  def reduce(x_T: jax.Array, patch_T: jax.Array) -> jax.Array:
    return jax.ops.segment_max(x_T, patch_T, patches, indices_are_sorted=True)

  return jax.vmap(reduce)(x_BT, patch_BT)


def _sum_patches(
  x_BT: jax.Array, patch_BT: jax.Array, patches: int
) -> jax.Array:
  def reduce(x_T: jax.Array, patch_T: jax.Array) -> jax.Array:
    return jax.ops.segment_sum(x_T, patch_T, patches, indices_are_sorted=True)

  return jax.vmap(reduce)(x_BT, patch_BT)
