"""Costs of projections against the programs that they are."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import block_rank
from models import core_chain
from models import execution
from models import layer_cost
from models import linear
from models import mixture
from models import structured

BTT = structured.BlockTensorTrain


def equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      inner = getattr(value, 'jaxpr', None)
      if inner is not None:
        yield from equations(inner)


def traffic(layer, d_in, d_out, tokens):
  """Numbers that products and real permutations read and write."""
  x = jax.ShapeDtypeStruct((tokens, d_in), jnp.float32)
  layer = layer.copy(features=d_out)
  params = jax.eval_shape(layer.init, jax.random.key(0), x)
  total = 0
  for equation in equations(jax.make_jaxpr(layer.apply)(params, x).jaxpr):
    name = equation.primitive.name
    shapes = [v.aval.shape for v in (*equation.invars, *equation.outvars)]
    if name == 'transpose':
      order = equation.params['permutation']
      moved = [axis for axis in order if shapes[0][axis] > 1]
      if moved != sorted(moved):
        total += sum(map(math.prod, shapes))
    elif name == 'dot_general':
      total += sum(map(math.prod, shapes))
  return total / tokens


@pytest.mark.parametrize('tokens', [8, 64])
@pytest.mark.parametrize(
  'layer',
  [
    linear.Dense(),
    structured.LowRank(rank=3),
    structured.Kronecker(),
    structured.TensorTrain(cores=3, rank=2),
    BTT(rank=2),
    BTT(cores=3),
    block_rank.BlockDense(),
    block_rank.Blast(rank=2),
  ],
  ids=lambda layer: type(layer).__name__,
)
def test_traffic_is_that_of_the_traced_program(layer, tokens):
  found = layer_cost.cost(layer, 64, 64, tokens)
  assert found.moved == pytest.approx(traffic(layer, 64, 64, tokens))


def test_costs_of_a_block_tensor_train():
  # 64 = 8 x 8 twice, rank 2: 64 numbers in, 128 between, 64 out.
  found = layer_cost.cost(BTT(rank=2), 64, 64, 64)
  assert found[:3] == (2 * 2 * 512, 2 * 2 * 512, 64)
  assert (found.peak, found.kept) == (2 * 128, 64 + 128)
  again = layer_cost.cost(BTT(rank=2, recompute=True), 64, 64, 64)
  assert again == found._replace(kept=64)
  dense = layer_cost.cost(linear.Dense(), 64, 32, 4)
  assert dense == (2048, 2048, 32, 64 + 32 + 2048 / 4, 96, 64)


def test_costs_of_a_mixture_count_its_tiles():
  layer = mixture.Mixture(experts=4, active=2, features=16)
  tiles, rows = mixture.tiles_of(32, 4, 2)
  assert (tiles, rows) == (11, 8)
  found = layer_cost.cost(layer, 16, 16, 32)
  assert found.macs == 11 * 8 / 32 * 128 + 4 * 16
  assert found.macs == layer.macs(16, 16, 32)
  assert found.params == 4 * (16 + 128)
  feed = mixture.MixtureFeedForward(experts=4, active=2, hidden=32)
  found = layer_cost.cost(feed, 16, 16, 32)
  assert found.macs == 11 * 8 / 32 * 3 * 512 + 4 * 16
  with pytest.raises(ValueError, match='linear=MixtureFeedForward has no cost'):
    layer_cost.cost(type('MixtureFeedForward', (), {})(), 1, 1, 1)


@pytest.mark.parametrize('last', [False, True])
def test_every_form_is_the_product_with_the_matrix(last, monkeypatch):
  tokens = 48 if last else 7
  assert execution.tokens_last(tokens) == last
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert execution.tokens_last(tokens)
  monkeypatch.undo()
  rng = np.random.default_rng(0)
  x = rng.standard_normal((tokens, 37))
  chain = BTT(cores=3, rank=2).chain(37, 29)
  kernels = [
    rng.standard_normal(shape).astype(np.float32) for shape in chain.shapes
  ]
  found = jax.jit(lambda *at: core_chain.contract(chain, *at))(
    kernels, jnp.asarray(x, jnp.float32)
  )
  expected = x @ np.asarray(core_chain.to_dense(chain, kernels), np.float64)
  np.testing.assert_allclose(
    found, expected, atol=1e-5 * np.abs(expected).max()
  )


def test_recomputing_stores_nothing_between_the_cores():
  x = jax.ShapeDtypeStruct((48, 64), jnp.float32)

  def kept(layer):
    layer = layer.copy(features=64)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    residuals = jax.eval_shape(
      lambda *at: jax.vjp(layer.apply, *at)[1], params, x
    )
    return sum(leaf.size for leaf in jax.tree.leaves(residuals))

  # Between the cores are two numbers for each of the input.
  stored, again = kept(BTT(rank=2)), kept(BTT(rank=2, recompute=True))
  assert stored - again >= 2 * 48 * 64
  params = 2 * 2 * 512
  assert again <= 48 * 64 + params
