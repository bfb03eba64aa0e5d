"""Attention as batched matmuls, for devices without a fused kernel.

The gradient is written out, because XLA's CPU backend then spends its time in
matmuls: it stores the weights instead of recomputing exponentials in every
fusion, and the row sums run over K entries instead of S.
"""

import jax
import jax.numpy as jnp

# Query, key, value, weight and output of a forward pass.
_Saved = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


@jax.custom_vjp
def attend(
  query_BGTK: jax.Array,
  key_BGSK: jax.Array,
  value_BGSK: jax.Array,
  mask_BTS: jax.Array,
) -> jax.Array:
  """Softmax(query key^T) value; a query that may see nothing gives 0."""
  return _forward(query_BGTK, key_BGSK, value_BGSK, mask_BTS)[0]


def _forward(
  query_BGTK: jax.Array,
  key_BGSK: jax.Array,
  value_BGSK: jax.Array,
  mask_BTS: jax.Array,
) -> tuple[jax.Array, _Saved]:
  # The barriers, here and below, keep transpositions out of the operands: a
  # matmul that transposes while it reads is free, a transposed copy is not.
  query_BGTK, key_BGSK, value_BGSK = jax.lax.optimization_barrier(
    (query_BGTK, key_BGSK, value_BGSK)
  )
  logits_BGTS = _matmul('BGTK,BGSK->BGTS', query_BGTK, key_BGSK)
  logits_BGTS = jnp.where(mask_BTS[:, None], logits_BGTS, -jnp.inf)
  peak_BGT1 = jnp.max(logits_BGTS, axis=-1, keepdims=True)
  peak_BGT1 = jnp.where(jnp.isneginf(peak_BGT1), 0.0, peak_BGT1)
  weight_BGTS = jnp.exp(logits_BGTS - peak_BGT1)
  total_BGT1 = jnp.sum(weight_BGTS, axis=-1, keepdims=True)
  weight_BGTS /= jnp.where(total_BGT1 == 0.0, 1.0, total_BGT1)
  weight_BGTS = weight_BGTS.astype(value_BGSK.dtype)
  out_BGTK = jnp.einsum('BGTS,BGSK->BGTK', weight_BGTS, value_BGSK)
  return out_BGTK, (query_BGTK, key_BGSK, value_BGSK, weight_BGTS, out_BGTK)


def _backward(
  saved: _Saved, grad_BGTK: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
  query_BGTK, key_BGSK, value_BGSK, weight_BGTS, out_BGTK = saved
  grad_BGTK = jax.lax.optimization_barrier(grad_BGTK)
  # sum_s weight_s grad_weight_s, as in FlashAttention (arXiv 2205.14135, B.2).
  shared_BGT1 = jnp.sum(
    grad_BGTK.astype(jnp.float32) * out_BGTK, axis=-1, keepdims=True
  )
  grad_weight_BGTS = _matmul('BGTK,BGSK->BGTS', grad_BGTK, value_BGSK)
  grad_logits_BGTS = weight_BGTS * (grad_weight_BGTS - shared_BGT1)
  grad_logits_BGTS = jax.lax.optimization_barrier(
    grad_logits_BGTS.astype(query_BGTK.dtype)
  )
  return (
    jnp.einsum('BGTS,BGSK->BGTK', grad_logits_BGTS, key_BGSK),
    _contract_queries(query_BGTK, grad_logits_BGTS),
    _contract_queries(grad_BGTK, weight_BGTS),
    None,
  )


attend.defvjp(_forward, _backward)


def _matmul(axes: str, left: jax.Array, right: jax.Array) -> jax.Array:
  return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)


def _contract_queries(x_BGTK: jax.Array, y_BGTS: jax.Array) -> jax.Array:
  """sum_t y_ts x_tk as BGSK; transposing x and the result is cheaper than y."""
  out_BGKS = jnp.einsum('BGTK,BGTS->BGKS', x_BGTK, y_BGTS)
  return jax.lax.optimization_barrier(out_BGKS).swapaxes(2, 3)
