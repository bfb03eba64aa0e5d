"""Tokens moved to tiles of one expert each, multiplied there, and back.

Both directions and their gradients only read rows: a sum into rows, which the
transposed program would have, is slow and has no fixed order.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from models import core_chain
from models import execution

# Tiles of a round, which depend on nothing of each other: cores of a CPU share
# them. The number of tiles is a multiple.
AT_ONCE = 2


@jax.custom_vjp
def gather(
  x_ND: jax.Array, token_SR: jax.Array, place_NK: jax.Array
) -> jax.Array:
  """The rows [S, R, D] of all tiles, zeros where there is no token.

  token_SR: the token in a row, N in rows without. place_NK: the row, in S R,
  of a token's k-th expert.
  """
  del place_NK
  return x_ND.at[token_SR].get(mode='fill', fill_value=0)


def _gather_forward(
  x_ND: jax.Array, token_SR: jax.Array, place_NK: jax.Array
) -> tuple[jax.Array, jax.Array]:
  return gather(x_ND, token_SR, place_NK), place_NK


def _gather_backward(place_NK: jax.Array, change_SRD: jax.Array) -> Any:
  rows_MD = change_SRD.reshape(-1, change_SRD.shape[-1])
  parts = [rows_MD[place_N] for place_N in place_NK.T]
  return sum(parts[1:], parts[0]), None, None


gather.defvjp(_gather_forward, _gather_backward)


@jax.custom_vjp
def combine(
  y_SRD: jax.Array,
  weight_NK: jax.Array,
  token_SR: jax.Array,
  place_NK: jax.Array,
) -> jax.Array:
  """Each token's weighted sum over its experts: [N, D]."""
  del token_SR
  rows_MD = y_SRD.reshape(-1, y_SRD.shape[-1])
  weight_NK = weight_NK.astype(y_SRD.dtype)
  parts = [
    rows_MD[place_N] * weight_N[:, None]
    for place_N, weight_N in zip(place_NK.T, weight_NK.T, strict=True)
  ]
  return sum(parts[1:], parts[0])


def _combine_forward(
  y_SRD: jax.Array,
  weight_NK: jax.Array,
  token_SR: jax.Array,
  place_NK: jax.Array,
) -> tuple[jax.Array, Any]:
  kept = y_SRD, weight_NK, token_SR, place_NK
  return combine(*kept), kept


def _combine_backward(kept: Any, change_ND: jax.Array) -> Any:
  y_SRD, weight_NK, token_SR, place_NK = kept
  change_SRD = change_ND.at[token_SR].get(mode='fill', fill_value=0)
  of_weight_M = jnp.sum(
    change_SRD.astype(jnp.float32) * y_SRD, axis=-1
  ).reshape(-1)
  weight_M = jnp.zeros(token_SR.size, change_ND.dtype)
  weight_M = weight_M.at[place_NK.reshape(-1)].set(
    weight_NK.reshape(-1).astype(change_ND.dtype), unique_indices=True
  )
  return (
    change_SRD * weight_M.reshape(*token_SR.shape, 1),
    of_weight_M[place_NK].astype(weight_NK.dtype),
    None,
    None,
  )


combine.defvjp(_combine_forward, _combine_backward)


def contract(
  chain: core_chain.Chain,
  kernels: Sequence[jax.Array],
  x_SRD: jax.Array,
  expert_S: jax.Array,
  used: jax.Array,
) -> jax.Array:
  """core_chain.contract of every tile by its expert's cores.

  kernels: [experts, ..] each. used: how many tiles, the first, hold tokens;
  what is made of others is zero or that of zeros.
  """
  if not execution.tiles_in_turn():
    return jax.vmap(lambda own, x_RD: core_chain.contract(chain, own, x_RD))(
      [kernel[expert_S] for kernel in kernels], x_SRD
    )

  def one(own: list[jax.Array], x_RD: jax.Array) -> jax.Array:
    return core_chain.contract(chain, own, x_RD, tokens_last=False)

  @jax.custom_vjp
  def run(
    kernels: list[jax.Array],
    x_SRD: jax.Array,
    expert_S: jax.Array,
    rounds: jax.Array,
  ) -> jax.Array:
    def add(i: jax.Array, y_SRD: jax.Array) -> jax.Array:
      for s in (AT_ONCE * i + j for j in range(AT_ONCE)):
        own = [kernel[expert_S[s]] for kernel in kernels]
        y_SRD = y_SRD.at[s].set(one(own, x_SRD[s]))
      return y_SRD

    y_SRD = jnp.zeros((*x_SRD.shape[:2], chain.d_out), x_SRD.dtype)
    return jax.lax.fori_loop(0, rounds, add, y_SRD)

  def forward(*given: Any) -> Any:
    return run(*given), given

  def backward(kept: Any, change_SRD: jax.Array) -> Any:
    kernels, x_SRD, expert_S, rounds = kept

    def add(i: jax.Array, sums: Any) -> Any:
      totals, of_x_SRD = sums
      for s in (AT_ONCE * i + j for j in range(AT_ONCE)):
        own = [kernel[expert_S[s]] for kernel in kernels]
        of_own, of_x_RD = jax.vjp(one, own, x_SRD[s])[1](change_SRD[s])
        totals = [
          total.at[expert_S[s]].add(part)
          for total, part in zip(totals, of_own, strict=True)
        ]
        of_x_SRD = of_x_SRD.at[s].set(of_x_RD)
      return totals, of_x_SRD

    zeros = jax.tree.map(jnp.zeros_like, (kernels, x_SRD))
    return *jax.lax.fori_loop(0, rounds, add, zeros), None, None

  run.defvjp(forward, backward)
  return run(list(kernels), x_SRD, expert_S, -(-used // AT_ONCE))
