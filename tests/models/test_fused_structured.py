"""The kernel for GPUs, interpreted, against float64 and the plain products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import block_rank
from models import core_chain
from models import fused_structured
from models import structured
from tests.models import triton_modules

BTT = structured.BlockTensorTrain
# Widths, and tokens that do not fill tiles.
CASES = {
  'btt': (BTT(), 64, 64, 70),
  # Blocks of 5 x 6 and 6 x 7 numbers, a bond of 3, padded factors.
  'padded': (BTT(rank=3), 29, 41, 7),
  'monarch': (structured.Monarch(blocks=2), 24, 40, 5),
}


def draw(layer, d_in, d_out, tokens, dtype=np.float32):
  """Kernels, an input and the gradient of the output, and the chain."""
  chain = layer.chain(d_in, d_out)
  rng = np.random.default_rng(0)
  kernels = [rng.normal(0, shape[1] ** -0.5, shape) for shape in chain.shapes]
  x, change = (rng.standard_normal((tokens, d)) for d in (d_in, d_out))
  cast = functools.partial(jnp.asarray, dtype=dtype)
  return chain, ([*map(cast, kernels)], cast(x)), cast(change)


def passes(run, given, change):
  """The output and the gradients of kernels and input."""
  out, back = jax.vjp(run, *given)
  return out, *jax.tree.leaves(back(change))


def exact(chain, given, change):
  """As `passes`, in float64 by the formula of the paper."""
  (first, second), x = jax.tree.map(np.float64, given)
  (m2, m1, _), (n1, _, n2) = chain.shapes
  w0 = first.reshape(m2, m1, n1, -1)
  w1 = second.reshape(n1, m2, -1, n2)
  x = np.pad(x, [(0, 0), (0, m2 * m1 - chain.d_in)]).reshape(-1, m2, m1)
  g = np.pad(np.float64(change), [(0, 0), (0, n1 * n2 - chain.d_out)])
  g = g.reshape(-1, n1, n2)
  z = np.einsum('tga,gafr->tfgr', x, w0)
  of_z = np.einsum('tfe,fgre->tfgr', g, w1)
  found = (
    np.einsum('tfgr,fgre->tfe', z, w1).reshape(len(x), -1)[:, : chain.d_out],
    np.einsum('tga,tfgr->gafr', x, of_z),
    np.einsum('tfgr,tfe->fgre', z, g),
    np.einsum('tfgr,gafr->tga', of_z, w0).reshape(len(x), -1)[:, : chain.d_in],
  )
  shapes = (found[0].shape, *chain.shapes, found[3].shape)
  return [y.reshape(s) for y, s in zip(found, shapes, strict=True)]


@pytest.mark.parametrize('name', CASES)
def test_the_kernel_and_its_gradients_are_the_formula(name):
  chain, given, change = draw(*CASES[name])
  run = functools.partial(fused_structured.contract, chain, interpret=True)
  found = jax.jit(functools.partial(passes, run))(given, change)
  for got, wanted in zip(found, exact(chain, given, change), strict=True):
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_bfloat16_rounds_where_the_plain_products_do():
  chain, given, change = draw(BTT(rank=2), 64, 64, 64, jnp.bfloat16)
  fused, plain = (
    jax.jit(functools.partial(passes, functools.partial(run, chain)))(
      given, change
    )
    for run in (
      functools.partial(fused_structured.contract, interpret=True),
      core_chain.contract,
    )
  )
  wanted = exact(chain, given, change)
  for got, other, true in zip(fused, plain, wanted, strict=True):
    assert got.dtype == jnp.bfloat16
    # Both are as near to the truth as three roundings of 2^-9 are.
    for one in (got, other):
      error = np.linalg.norm(np.float64(one) - true)
      assert error < 2**-8 * np.linalg.norm(true)


def test_tokens_are_summed_over_several_runs(monkeypatch):
  monkeypatch.setattr(fused_structured, '_TOKENS', 16)
  monkeypatch.setattr(fused_structured, '_RUN', 32)
  assert [fused_structured._run(n) for n in (1, 100, 1000)] == [16, 16, 32]
  # Of blocks so large that few fill a tile, the bond does.
  monkeypatch.setattr(fused_structured, '_COLUMNS', 8)
  chain, given, change = draw(BTT(), 64, 64, 300)
  assert fused_structured.tiles(fused_structured.blocks(chain)) == (2, 2, 4)
  run = functools.partial(fused_structured.contract, chain, interpret=True)
  found = jax.jit(functools.partial(passes, run))(given, change)
  for got, wanted in zip(found, exact(chain, given, change), strict=True):
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_chains_that_it_computes():
  found = fused_structured.blocks(BTT(rank=4).chain(1024, 4096))
  assert found == (32, 32, 64, 64, 4)
  theta = (0.5, 0.0, 0.5, 0.0, 0.5, 0.5, 0.25)
  einsum = structured.Einsum(theta=theta).chain(256, 1024)
  assert fused_structured.blocks(einsum) == (16, 16, 32, 32, 4)
  for layer in (
    structured.Kronecker(),
    structured.TensorTrain(rank=2),
    BTT(cores=3),
    block_rank.Blast(rank=2),
  ):
    assert fused_structured.blocks(layer.chain(64, 64)) is None
  # Blocks of 1024 are no work for it.
  wide = structured.Monarch().chain(4096, 4096)
  assert fused_structured.blocks(wide) is None


@pytest.mark.parametrize('rank', [1, 2, 3, 4, 16, 32])
def test_tiles_are_those_of_tensor_cores(rank):
  for m1, n2 in ((4, 4), (32, 32), (24, 48), (64, 128), (256, 1), (256, 256)):
    sizes = fused_structured.Blocks(32, m1, 32, n2, rank)
    ins, outs, bond = fused_structured.tiles(sizes)
    wide, tall = (1 << (size - 1).bit_length() for size in (m1, n2))
    assert rank <= bond
    for side in (ins * wide, outs * tall, ins * outs * bond):
      assert side >= 16 and side & (side - 1) == 0
    # Beyond it, what a program keeps is more than a chip has.
    assert max(ins * wide, outs * tall) <= 256


LOWERED = [
  (BTT(rank=4), 64, 64, 64),
  *(
    pytest.param(layer, d_in, d_out, 2048, marks=pytest.mark.slow)
    for layer in (
      BTT(),
      BTT(rank=4),
      structured.Monarch(),
      structured.Monarch(blocks=16),
      structured.Einsum(theta=(0.5, 0.0, 0.5, 0.0, 0.5, 0.5, 0.25)),
    )
    for d_in, d_out in ((96, 260), (768, 3072), (4096, 1024), (8192, 8192))
  ),
]


@pytest.mark.parametrize(
  'dtype', ['bfloat16', pytest.param('float32', marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(('layer', 'd_in', 'd_out', 'tokens'), LOWERED)
def test_it_lowers_to_triton_for_a_gpu(layer, d_in, d_out, tokens, dtype):
  chain = layer.chain(d_in, d_out)
  if fused_structured.blocks(chain) is None:
    pytest.skip('left to plain matmuls')
  shapes = [*chain.shapes, (tokens, d_in), (tokens, d_out)]
  *kernels, x, change = (jax.ShapeDtypeStruct(s, dtype) for s in shapes)
  given = kernels, x
  run = functools.partial(fused_structured.contract, chain)
  traced = jax.jit(functools.partial(passes, run)).trace(given, change)
  lowered = traced.lower(lowering_platforms=('cuda',))
  # Forward, the gradient of the input, those of the kernels.
  assert triton_modules.count(lowered) == 3


def test_layers_take_it_on_a_gpu_where_it_is_of_use(monkeypatch):
  def fuses(layer, tokens=1024):
    layer = layer.copy(features=64)
    x = jax.ShapeDtypeStruct((tokens, 64), jnp.float32)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    return 'pallas_call' in str(jax.make_jaxpr(layer.apply)(params, x))

  assert not fuses(BTT())
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert fuses(BTT()) and fuses(structured.Monarch())
  assert not fuses(BTT(), tokens=64)
  assert not fuses(BTT(fused=False))
  assert not fuses(structured.Kronecker())
  with jax.set_mesh(jax.make_mesh((2,), ('data',))):
    assert not fuses(BTT())
