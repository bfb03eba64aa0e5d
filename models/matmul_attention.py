"""Attention as batched matmuls, for devices without a fused kernel.

The gradient is written out, because XLA's CPU backend then spends its time in
matmuls: it stores the weights instead of recomputing exponentials in every
fusion, and the row sums run over K entries instead of S.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Part(NamedTuple):
  """Some of the keys that queries meet, which may look different to each part.

  query_BGTK: scaled. mask, bias: of a size that broadcasts to [B, G, T, S];
  the bias, if any, is added to the logits and has no gradient.
  """

  query_BGTK: jax.Array
  key_BGSK: jax.Array
  value_BGSK: jax.Array
  mask_BGTS: jax.Array
  bias_BGTS: jax.Array | None = None


# Arrays of one part: gradients of query, key and value.
Gradients = tuple[jax.Array, jax.Array, jax.Array]


@jax.custom_vjp
def attend(*parts: Part) -> jax.Array:
  """Softmax(query key^T) value, over the keys of all parts together.

  A query that may see nothing gives 0.
  """
  return mix(parts)[0]


def mix(parts: tuple[Part, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  """`attend`, and its weights [B, G, T, S] of every part."""
  found = [logits(part) for part in parts]
  peak_BGT1 = jnp.max(found[0], axis=-1, keepdims=True)
  for logits_BGTS in found[1:]:
    other_BGT1 = jnp.max(logits_BGTS, axis=-1, keepdims=True)
    peak_BGT1 = jnp.maximum(peak_BGT1, other_BGT1)
  peak_BGT1 = jnp.where(jnp.isneginf(peak_BGT1), 0.0, peak_BGT1)
  weights = [jnp.exp(logits_BGTS - peak_BGT1) for logits_BGTS in found]
  total_BGT1 = sum(jnp.sum(w, axis=-1, keepdims=True) for w in weights)
  total_BGT1 = jnp.where(total_BGT1 == 0.0, 1.0, total_BGT1)
  weights = tuple(
    (weight_BGTS / total_BGT1).astype(part.value_BGSK.dtype)
    for weight_BGTS, part in zip(weights, parts, strict=True)
  )
  out_BGTK = sum(
    jnp.einsum('BGTS,BGSK->BGTK', weight_BGTS, part.value_BGSK)
    for weight_BGTS, part in zip(weights, parts, strict=True)
  )
  return out_BGTK, weights


def pull(
  parts: tuple[Part, ...],
  weights: tuple[jax.Array, ...],
  out_BGTK: jax.Array,
  grad_BGTK: jax.Array,
) -> tuple[Gradients, ...]:
  """Gradients of every part from that of the output, and what `mix` gave."""
  grad_BGTK = jax.lax.optimization_barrier(grad_BGTK)
  # sum_s weight_s grad_weight_s, as in FlashAttention (arXiv 2205.14135, B.2).
  shared_BGT1 = jnp.sum(
    grad_BGTK.astype(jnp.float32) * out_BGTK, axis=-1, keepdims=True
  )
  found = []
  for part, weight_BGTS in zip(parts, weights, strict=True):
    grad_weight_BGTS = _matmul('BGTK,BGSK->BGTS', grad_BGTK, part.value_BGSK)
    grad_logits_BGTS = weight_BGTS * (grad_weight_BGTS - shared_BGT1)
    grad_logits_BGTS = jax.lax.optimization_barrier(
      grad_logits_BGTS.astype(part.query_BGTK.dtype)
    )
    found.append(
      (
        jnp.einsum('BGTS,BGSK->BGTK', grad_logits_BGTS, part.key_BGSK),
        _contract_queries(part.query_BGTK, grad_logits_BGTS),
        _contract_queries(grad_BGTK, weight_BGTS),
      )
    )
  return tuple(found)


def hold(part: Part) -> Part:
  """The part behind a barrier that keeps transpositions out of its operands.

  A matmul that transposes while it reads is free, a transposed copy is not.
  """
  operands = jax.lax.optimization_barrier(tuple(part[:3]))
  return Part(*operands, *part[3:])


_Saved = tuple[tuple[Part, ...], tuple[jax.Array, ...], jax.Array]


def _forward(*parts: Part) -> tuple[jax.Array, _Saved]:
  parts = tuple(hold(part) for part in parts)
  out_BGTK, weights = mix(parts)
  return out_BGTK, (parts, weights, out_BGTK)


def _backward(saved: _Saved, grad_BGTK: jax.Array) -> tuple[Part, ...]:
  found = pull(*saved, grad_BGTK)
  return tuple(Part(*gradients, None, None) for gradients in found)


attend.defvjp(_forward, _backward)


def logits(part: Part) -> jax.Array:
  """Scores [B, G, T, S] in float32, -inf where nothing may be seen."""
  logits_BGTS = _matmul('BGTK,BGSK->BGTS', part.query_BGTK, part.key_BGSK)
  if part.bias_BGTS is not None:
    logits_BGTS += part.bias_BGTS
  return jnp.where(part.mask_BGTS, logits_BGTS, -jnp.inf)


def _matmul(axes: str, left: jax.Array, right: jax.Array) -> jax.Array:
  return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)


def _contract_queries(x_BGTK: jax.Array, y_BGTS: jax.Array) -> jax.Array:
  """sum_t y_ts x_tk as BGSK; transposing x and the result is cheaper than y."""
  out_BGKS = jnp.einsum('BGTK,BGTS->BGKS', x_BGTK, y_BGTS)
  return jax.lax.optimization_barrier(out_BGKS).swapaxes(2, 3)
