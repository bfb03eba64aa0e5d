"""Structured layers against the matrices that they stand for."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import block_rank
from models import core_chain
from models import core_fit
from models import structured

BTT = structured.BlockTensorTrain
GENERIC = (0.5, 0.25, 0.25, 0.25, 0.5, 0.25, 0.25)
LAYERS = (
  structured.LowRank(),
  structured.LowRank(rank=3),
  structured.LowRank(fraction=0.3),
  structured.Kronecker(),
  structured.TensorTrain(rank=2),
  structured.TensorTrain(cores=3, rank=2, factors='greedy'),
  structured.BlockTensorTrain(),
  structured.BlockTensorTrain(rank=2),
  structured.BlockTensorTrain(cores=3, rank=2),
  structured.Monarch(),
  structured.Monarch(blocks=-1),
  structured.Einsum(),
  structured.Einsum(theta=GENERIC, tolerance=0.5),
  block_rank.BlockDense(),
  block_rank.Blast(rank=2),
)
WIDTHS = ((24, 40), (64, 16), (37, 29))
KINDS = [
  pytest.param(layer, id=f'{i}_{type(layer).__name__}')
  for i, layer in enumerate(LAYERS)
]


def widths_of(layer):
  """The greedy rule leaves primes whole, which no bond of two fits."""
  greedy = getattr(layer, 'factors', '') == 'greedy'
  if isinstance(layer, block_rank.BlockDense | block_rank.Blast):
    return WIDTHS[::2]
  return WIDTHS[:-1] if greedy else WIDTHS


CASES = [
  pytest.param(layer, *widths, id=f'{i}_{type(layer).__name__}_{widths}')
  for i, layer in enumerate(LAYERS)
  for widths in widths_of(layer)
]


def random_kernels(chain, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.standard_normal(shape) for shape in chain.shapes]


def exact_matrix(chain, kernels):
  """W in float64, one entry at a time: a sum over bonds of core entries."""
  names = list(chain.sizes)
  bonds = [a for a in names if a not in chain.inputs + chain.outputs]
  features = chain.inputs + chain.outputs
  matrix = np.zeros(
    (chain.size(chain.inputs), chain.size(chain.outputs))
  )
  index = np.indices([chain.sizes[a] for a in (*features, *bonds)])
  at = dict(zip((*features, *bonds), index.reshape(len(names), -1),
                strict=True))
  terms = np.ones(index[0].size)
  for core, kernel in zip(chain.cores, kernels, strict=True):
    rows = [
      np.ravel_multi_index(
        [at[a] for a in axes], [chain.sizes[a] for a in axes]
      )
      if axes
      else np.zeros(terms.size, int)
      for axes in core
    ]
    terms *= kernel[tuple(rows)]
  row, column = (
    np.ravel_multi_index([at[a] for a in axes], [chain.sizes[a] for a in axes])
    for axes in (chain.inputs, chain.outputs)
  )
  np.add.at(matrix, (row, column), terms)
  return matrix[: chain.d_in, : chain.d_out]


def as_params(kernels):
  return {
    structured.kernel_name(i): jnp.asarray(k, jnp.float32)
    for i, k in enumerate(kernels)
  }


def close(got, expected, tolerance):
  """Every entry within `tolerance` of the largest."""
  np.testing.assert_allclose(
    got, expected, rtol=0, atol=tolerance * np.abs(expected).max()
  )


@pytest.mark.parametrize(('layer', 'd_in', 'd_out'), CASES)
def test_to_dense_is_the_sum_over_bonds(layer, d_in, d_out):
  kernels = random_kernels(layer.chain(d_in, d_out))
  found = structured.to_dense(
    layer, as_params(kernels), d_in=d_in, d_out=d_out
  )
  close(found, exact_matrix(layer.chain(d_in, d_out), kernels), 1e-5)


@pytest.mark.parametrize(('layer', 'd_in', 'd_out'), CASES)
def test_layer_and_its_gradients_are_those_of_the_matrix(layer, d_in, d_out):
  chain = layer.chain(d_in, d_out)
  kernels = random_kernels(chain)
  matrix = exact_matrix(chain, kernels)
  rng = np.random.default_rng(1)
  x = rng.standard_normal((2, 3, d_in)).astype(np.float32)
  weight = rng.standard_normal((2, 3, d_out)).astype(np.float32)

  @jax.jit
  def run(params, x, weight):
    out, pullback = jax.vjp(
      lambda *at: layer.copy(features=d_out).apply({'params': at[0]}, at[1]),
      params,
      x,
    )
    return out, pullback(weight)

  out, (params_grad, x_grad) = run(as_params(kernels), x, weight)
  close(out, x @ matrix, 1e-5)
  close(x_grad, weight @ matrix.T, 1e-5)
  # W is linear in each core: d(y, weight) along a core is W with that core
  # replaced by the direction.
  gradient = x.reshape(-1, d_in).T @ weight.reshape(-1, d_out)
  for i, kernel in enumerate(kernels):
    along = rng.standard_normal(kernel.shape)
    turned = exact_matrix(chain, [*kernels[:i], along, *kernels[i + 1 :]])
    got = params_grad[structured.kernel_name(i)]
    scale = np.linalg.norm(got) * np.linalg.norm(along)
    np.testing.assert_allclose(
      np.sum(np.asarray(got, np.float64) * along),
      np.sum(gradient * turned),
      atol=1e-5 * scale,
      rtol=0,
    )


@pytest.mark.parametrize(('layer', 'd_in', 'd_out'), CASES)
def test_rank_is_that_of_random_cores(layer, d_in, d_out):
  chain = layer.chain(d_in, d_out)
  matrix = exact_matrix(chain, random_kernels(chain))
  assert np.linalg.matrix_rank(matrix) == chain.rank


@pytest.mark.parametrize(('layer', 'd_in', 'd_out'), CASES)
def test_counts_are_those_of_the_work_done(layer, d_in, d_out):
  chain = layer.chain(d_in, d_out)
  x = jax.ShapeDtypeStruct((7, d_in), jnp.float32)
  layer = layer.copy(features=d_out)
  params = jax.eval_shape(layer.init, jax.random.key(0), x)
  assert sum(p.size for p in jax.tree.leaves(params)) == chain.params
  # Every matmul that runs, counted by its shapes.
  macs = 0
  for equation in jax.make_jaxpr(layer.apply)(params, x).eqns:
    stack = [equation]
    while stack:
      inner = stack.pop()
      stack += [
        e
        for v in inner.params.values()
        if hasattr(v, 'jaxpr')
        for e in v.jaxpr.eqns
      ]
      if inner.primitive.name == 'dot_general':
        (contracted, _), _ = inner.params['dimension_numbers']
        left = inner.invars[0].aval.shape
        out = math.prod(inner.outvars[0].aval.shape)
        macs += out * math.prod(left[i] for i in contracted)
  assert macs == 7 * chain.macs


@pytest.mark.parametrize(('layer', 'd_in', 'd_out'), CASES)
def test_from_dense_finds_the_cores_of_its_own_matrices(layer, d_in, d_out):
  if isinstance(layer, block_rank.Blast):
    pytest.skip('begins at random: see below')
  chain = layer.chain(d_in, d_out)
  matrix = exact_matrix(chain, random_kernels(chain))
  params = structured.from_dense(layer, matrix)
  found = exact_matrix(chain, list(params.values()))
  np.testing.assert_allclose(found, matrix, atol=1e-10 * np.abs(matrix).max())


def test_from_dense_is_the_nearest_low_rank_matrix():
  matrix = np.random.default_rng(0).standard_normal((12, 9))
  layer = structured.LowRank(rank=4)
  found = exact_matrix(
    layer.chain(12, 9), list(structured.from_dense(layer, matrix).values())
  )
  values = np.linalg.svd(matrix, compute_uv=False)
  np.testing.assert_allclose(
    np.sum((found - matrix) ** 2), np.sum(values[4:] ** 2)
  )


def test_least_squares_bring_more_cores_nearer():
  rng = np.random.default_rng(0)
  # Far from any tensor train, and padded.
  matrix = rng.standard_normal((37, 29))
  for layer in (
    structured.TensorTrain(cores=3, rank=2),
    BTT(cores=3, rank=2),
    structured.Einsum(theta=GENERIC, tolerance=0.5),
  ):
    chain = layer.chain(37, 29)
    errors = [
      np.linalg.norm(exact_matrix(chain, found) - matrix)
      for found in (
        core_fit.from_dense(chain, matrix, sweeps=n) for n in (0, 50)
      )
    ]
    assert errors[1] < errors[0]
    # Least squares leave nothing to any core that its gradient would find.
    found = core_fit.from_dense(chain, matrix, sweeps=200)
    for i, kernel in enumerate(found):
      along = rng.standard_normal(kernel.shape)
      turned = exact_matrix(chain, [*found[:i], along, *found[i + 1 :]])
      error = exact_matrix(chain, found) - matrix
      slope = np.sum(error * turned) / np.linalg.norm(error)
      assert abs(slope) < 0.02 * np.linalg.norm(turned)


def test_blast_is_the_formula_of_the_paper_and_is_found_again():
  layer = block_rank.Blast(blocks=3, rank=2)
  chain = layer.chain(12, 15)
  rng = np.random.default_rng(0)
  v, s, u = (rng.standard_normal(shape) for shape in chain.shapes)
  blocks = [
    [v[j] @ np.diag(s[:, j, i]) @ u[i] for i in range(3)] for j in range(3)
  ]
  np.testing.assert_allclose(
    exact_matrix(chain, [v, s, u]), np.block(blocks), atol=1e-12
  )
  assert chain.macs == chain.params == 2 * (12 + 15 + 9)
  found = core_fit.from_dense(chain, np.block(blocks), sweeps=300)
  error = exact_matrix(chain, found) - np.block(blocks)
  assert np.linalg.norm(error) < 0.05 * np.linalg.norm(np.block(blocks))


def test_block_dense_is_two_matrices():
  layer = block_rank.BlockDense(blocks=3, rank=6)
  chain = layer.chain(12, 15)
  assert chain.shapes == ((3, 4, 2), (1, 6, 15))
  rng = np.random.default_rng(0)
  first, second = (rng.standard_normal(shape) for shape in chain.shapes)
  middle = np.zeros((12, 6))
  for block in range(3):
    middle[4 * block : 4 * block + 4, 2 * block : 2 * block + 2] = first[block]
  np.testing.assert_allclose(
    exact_matrix(chain, [first, second]), middle @ second[0], atol=1e-12
  )


def test_kronecker_is_numpys():
  layer = structured.Kronecker()
  chain = layer.chain(24, 40)
  rng = np.random.default_rng(0)
  a, b = rng.standard_normal((4, 5)), rng.standard_normal((6, 8))
  kernels = structured.from_dense(layer, np.kron(a, b))
  assert sorted(k.shape for k in kernels.values()) == [(1, 4, 5), (1, 6, 8)]
  np.testing.assert_allclose(
    exact_matrix(chain, list(kernels.values())), np.kron(a, b), atol=1e-12
  )


def test_block_tensor_train_is_the_formula_of_the_paper():
  layer = structured.BlockTensorTrain(rank=2)
  rng = np.random.default_rng(0)
  first = rng.standard_normal((6, 4, 5 * 2))
  second = rng.standard_normal((5, 6 * 2, 8))
  x = rng.standard_normal((3, 24))
  z = np.einsum('tga,gafr->tfgr', x.reshape(3, 6, 4), first.reshape(6, 4, 5, 2))
  y = np.einsum('tfgr,fgre->tfe', z, second.reshape(5, 6, 2, 8))
  out = layer.copy(features=40).apply(
    {'params': as_params([first, second])}, jnp.asarray(x, jnp.float32)
  )
  np.testing.assert_allclose(out, y.reshape(3, 40), rtol=1e-4, atol=1e-4)


def test_monarch_is_two_block_diagonals_around_a_shuffle():
  layer, blocks, q = structured.Monarch(blocks=4), 4, 8
  rng = np.random.default_rng(0)
  first = rng.standard_normal((blocks, 8, q))
  second = rng.standard_normal((blocks, q, 10))
  # The middle features of input block g, (f, r), go to output block f.
  middle = np.zeros((32, blocks * q))
  last = np.zeros((blocks * q, 40))
  for g, f, r in itertools.product(range(4), range(4), range(2)):
    column = f * q + g * 2 + r
    middle[g * 8 : (g + 1) * 8, column] = first[g, :, f * 2 + r]
    last[column, f * 10 : (f + 1) * 10] = second[f, g * 2 + r]
  np.testing.assert_allclose(
    exact_matrix(layer.chain(32, 40), [first, second]), middle @ last,
    atol=1e-12,
  )


@pytest.mark.parametrize(
  ('layer', 'widths', 'params', 'macs', 'rank'),
  [
    (structured.LowRank(), (1024, 1024), 65536, 65536, 32),
    (structured.Kronecker(), (1024, 1024), 2048, 65536, 1024),
    (structured.BlockTensorTrain(), (1024, 1024), 65536, 65536, 1024),
    # r (d_in n1 + d_out m2) of 1024 = 32 x 32 and 4096 = 64 x 64.
    (BTT(rank=4), (1024, 4096), 786432, 786432, 1024),
    (structured.Monarch(), (1024, 1024), 2**19, 2**19, 1024),
  ],
)
def test_counts_of_the_papers(layer, widths, params, macs, rank):
  chain = layer.chain(*widths)
  assert (chain.params, chain.macs, chain.rank) == (params, macs, rank)


def test_rank_formula_of_the_einsum_family():
  rng = np.random.default_rng(0)
  for _ in range(60):
    sizes = dict(
      zip(core_chain.EINSUM, map(int, rng.integers(1, 4, 7)), strict=True)
    )
    a, b, g, d, e, f, r = sizes.values()
    chain = core_chain.pair(a * b * g, d * e * f, sizes)
    formula = min(
      chain.d_in, chain.d_out, g * f * r * min(a, d) * min(b, e)
    )
    matrix = exact_matrix(chain, random_kernels(chain))
    assert chain.rank == formula == np.linalg.matrix_rank(matrix), sizes


def test_deviations_and_scale_of_the_output():
  layer = structured.BlockTensorTrain(rank=4, features=1024, gain=0.5)
  x = np.random.default_rng(0).standard_normal((32, 256)).astype(np.float32)
  key = jax.random.key(0)
  out, variables = jax.jit(layer.init_with_output)(key, x)
  kernels = list(variables['params'].values())
  assert [k.shape for k in kernels] == [(16, 16, 128), (32, 64, 32)]
  # Fan-in 16 and 16 x 4; the second core's fan-out is but half its fan-in.
  expected = (16**-0.5, 0.5 * 64**-0.5 * 0.5**0.5)
  for kernel, deviation in zip(kernels, expected, strict=True):
    np.testing.assert_allclose(np.std(kernel), deviation, rtol=0.02)
  np.testing.assert_allclose(
    np.std(out), 16**0.5 * expected[0] * 64**0.5 * expected[1], rtol=0.1
  )


def test_gain_of_zero_silences_the_last_core_only():
  layer = structured.Kronecker(features=24, gain=0.0, dtype='bfloat16')
  out, variables = jax.jit(layer.init_with_output)(
    jax.random.key(0), jnp.ones((2, 16))
  )
  first, last = variables['params'].values()
  assert first.all() and not last.any() and not out.any()
  assert (first.dtype, out.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize(
  ('layer', 'fans'),
  [
    (BTT(rank=4), [(16, 32 * 4), (4 * 16, 32)]),
    (structured.LowRank(rank=5), [(256, 5), (5, 1024)]),
    (structured.Monarch(blocks=8), [(32, 32), (32, 128)]),
    (structured.TensorTrain(rank=2), [(16, 32 * 2), (16 * 2, 32)]),
    # alpha = epsilon: first the core of alpha, whose delta is one.
    (
      structured.Einsum(theta=(0.5, 0.0, 0.5, 0.0, 0.5, 0.5, 0.25)),
      [(16, 32 * 4), (16 * 4, 32)],
    ),
  ],
)
def test_fans_of_the_papers(layer, fans):
  assert [s[1:] for s in layer.chain(256, 1024).shapes] == fans
