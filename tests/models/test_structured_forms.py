"""Other people's Monarch matrices, and how often a pass permutes its state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import block_rank
from models import core_chain
from models import structured

BTT = structured.BlockTensorTrain


@pytest.mark.parametrize('middle', [4, 8])
def test_monarch_is_that_of_the_released_code(middle):
  # HazyResearch/fly, blockdiag_butterfly_multiply_reference.
  blocks, block_in, block_out = 4, middle, 10
  rng = np.random.default_rng(0)
  first = rng.standard_normal((blocks, middle, block_in))
  second = rng.standard_normal((blocks, block_out, middle))
  x = rng.standard_normal((3, blocks * block_in))
  out = np.einsum('kqp,bkp->bkq', first, x.reshape(3, blocks, block_in))
  out = out.reshape(3, middle, blocks).swapaxes(1, 2)
  expected = np.einsum('lsr,blr->bsl', second, out).reshape(3, -1)

  params = block_rank.from_butterfly(first, second)
  layer = structured.Monarch(blocks=blocks)
  d_in, d_out = blocks * block_in, blocks * block_out
  shapes = layer.chain(d_in, d_out).shapes
  assert [kernel.shape for kernel in params.values()] == list(shapes)
  found = layer.copy(features=d_out).apply(
    {'params': jax.tree.map(jnp.float32, params)}, jnp.float32(x)
  )
  # Its outputs stand block by block here, side by side there.
  found = found.reshape(3, blocks, block_out).swapaxes(1, 2).reshape(3, -1)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_middle_that_blocks_do_not_divide_is_named():
  with pytest.raises(
    ValueError, match=r'middle width 6 .* 4 blocks; .* 4 or 8'
  ):
    block_rank.from_butterfly(np.zeros((4, 6, 6)), np.zeros((4, 5, 6)))


def permutations(jaxpr):
  """Permutations that change an order in memory, and products."""
  moves = products = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'transpose':
      sizes = equation.invars[0].aval.shape
      order = [i for i in equation.params['permutation'] if sizes[i] > 1]
      moves += order != sorted(order)
    products += equation.primitive.name == 'dot_general'
    for value in equation.params.values():
      if hasattr(value, 'jaxpr'):
        inner = permutations(value.jaxpr)
        moves, products = moves + inner[0], products + inner[1]
  return moves, products


@pytest.mark.parametrize('tokens', [8, 64])
@pytest.mark.parametrize('layer', [BTT(rank=2), structured.Monarch()])
def test_a_pass_permutes_once_between_two_cores(layer, tokens):
  chain = layer.chain(64, 64)
  x = jax.ShapeDtypeStruct((tokens, 64), jnp.float32)
  kernels = [jax.ShapeDtypeStruct(s, jnp.float32) for s in chain.shapes]

  def run(kernels, x):
    return core_chain.contract(chain, kernels, x)

  def both(kernels, x, change):
    out, back = jax.vjp(run, kernels, x)
    return out, back(change)

  # Besides once for the input and once for the output, or their gradients.
  forward = jax.make_jaxpr(run)(kernels, x).jaxpr
  assert permutations(forward) == (3, 2)
  assert permutations(jax.make_jaxpr(both)(kernels, x, x).jaxpr) == (6, 6)
