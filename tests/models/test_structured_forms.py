"""Other people's Monarch matrices, and how often a pass permutes its state."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import block_rank
from models import core_chain
from models import structured

BTT = structured.BlockTensorTrain


def butterfly(first, second, x):
  """HazyResearch/fly, blockdiag_butterfly_multiply_reference."""
  blocks, middle, block_in = first.shape
  rows = len(x)
  out = np.einsum('kqp,bkp->bkq', first, x.reshape(rows, blocks, block_in))
  out = out.reshape(rows, middle, blocks).swapaxes(1, 2)
  return np.einsum('lsr,blr->bsl', second, out).reshape(rows, -1)


@pytest.mark.parametrize('middle', [4, 8])
def test_monarch_is_that_of_the_released_code(middle):
  blocks, block_in, block_out = 4, middle, 10
  rng = np.random.default_rng(0)
  first = rng.standard_normal((blocks, middle, block_in))
  second = rng.standard_normal((blocks, block_out, middle))
  x = rng.standard_normal((3, blocks * block_in))
  expected = butterfly(first, second, x)

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


def test_a_block_tensor_train_is_a_monarch_and_back():
  # 32 = 8 x 4 and 40 = 4 x 10: four blocks on either side, rank two.
  layer = BTT(factors=((8, 4), (4, 10)), rank=2)
  chain = layer.chain(32, 40)
  assert chain == structured.Monarch(blocks=4).chain(32, 40)
  rng = np.random.default_rng(0)
  params = {
    structured.kernel_name(i): rng.standard_normal(shape)
    for i, shape in enumerate(chain.shapes)
  }
  first, second = block_rank.to_butterfly(params)
  x = rng.standard_normal((3, 32))
  matrix = core_chain.to_dense(chain, list(params.values()))
  expected = (x @ matrix).reshape(3, 4, 10).swapaxes(1, 2).reshape(3, -1)
  np.testing.assert_allclose(
    butterfly(first, second, x), expected, rtol=1e-4, atol=1e-4
  )
  again = block_rank.from_butterfly(first, second)
  assert all((again[name] == params[name]).all() for name in params)


def test_what_is_no_butterfly_is_named():
  with pytest.raises(
    ValueError, match=r'middle width 6 .* 4 blocks; .* 4 or 8'
  ):
    block_rank.from_butterfly(np.zeros((4, 6, 6)), np.zeros((4, 5, 6)))
  cores = np.zeros((4, 6, 5)), np.zeros((5, 4, 6))
  names = map(structured.kernel_name, range(2))
  with pytest.raises(ValueError, match='4 blocks of the input and 5 of the'):
    block_rank.to_butterfly(dict(zip(names, cores, strict=True)))


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


def test_a_compiled_pass_moves_no_more_than_that():
  chain = BTT(rank=4).chain(64, 64)
  x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
  kernels = [jax.ShapeDtypeStruct(s, jnp.float32) for s in chain.shapes]

  def forward(kernels, x):
    return core_chain.contract(chain, kernels, x)

  def both(kernels, x, change):
    out, back = jax.vjp(forward, kernels, x)
    return out, back(change)

  # Layouts are assigned when a program is compiled: a copy is a permutation in
  # memory, be it of an activation or of a core. One between two cores, besides
  # those from tokens first and back.
  for run, given, most in (
    (forward, (kernels, x), 1 + 2),
    (both, (kernels, x, x), 2 * (1 + 2)),
  ):
    text = jax.jit(run).lower(*given).compile().as_text()
    assert 'dot(' in text
    assert len(re.findall(r'= \S+ copy\(', text)) <= most, text
