import numpy as np
import pytest

from bounds import structure

RNG = np.random.default_rng(0)
SHAPES = {
  'embed/embedding': (20, 8),
  'block_0/up/kernel': (8, 12),
  'block_0/norm/scale': (8,),
  'block_1/up/kernel': (8, 12),
  'block_1/norm/scale': (8,),
  'block_10/up/kernel': (8, 12),
  'block_10/norm/scale': (8,),
}
PARAMS = {x: RNG.standard_normal(shape) for x, shape in SHAPES.items()}
KINDS = [
  structure.PLAIN, structure.Shared(2), structure.LowRankOnRandom(rank=3)
]  # fmt: skip


@pytest.mark.parametrize('kind', KINDS)
def test_shapes_and_a_second_shrinking(kind):
  free = kind.shrink(PARAMS)
  assert {x: array.shape for x, array in free.items()} == kind.shapes(SHAPES)
  params = kind.expand(free, SHAPES)
  assert {x: array.shape for x, array in params.items()} == SHAPES
  again = kind.expand(kind.shrink(params), SHAPES)
  for name, array in params.items():
    np.testing.assert_allclose(again[name], array, atol=1e-5)


def test_shared_blocks_are_those_of_the_remainder():
  free = structure.Shared(2).shrink(PARAMS)
  assert 'block_10/up/kernel' not in free
  params = structure.Shared(2).expand(free, SHAPES)
  assert params['block_10/up/kernel'] is PARAMS['block_0/up/kernel']
  assert params['block_1/norm/scale'] is PARAMS['block_1/norm/scale']
  assert params['embed/embedding'] is PARAMS['embed/embedding']


def test_low_rank_part_is_the_best_of_its_rank():
  kind = structure.LowRankOnRandom(rank=3, seed=7)
  name = 'block_1/up/kernel'
  zero = kind.expand(
    {x: np.zeros(s) for x, s in kind.shapes(SHAPES).items()}, SHAPES
  )
  rest = PARAMS[name] - zero[name]
  error = kind.expand(kind.shrink(PARAMS), SHAPES)[name] - PARAMS[name]
  lost = np.linalg.svd(rest, compute_uv=False)[3:]
  assert np.sum(error**2) == pytest.approx(np.sum(lost**2), rel=1e-4)
  assert np.linalg.matrix_rank(zero[name]) == 8


def test_random_base_never_changes():
  # The first numbers of NumPy's legacy generator, which no version changes.
  kind = structure.LowRankOnRandom(rank=1, seed=2**32 - 0x352441C2)
  base = kind._base('abc', (4, 2))  # CRC-32 of abc is 0x352441C2.
  expected = [1.764052346, 0.400157208, 0.978737984, 2.240893199]
  np.testing.assert_allclose(2 * base.ravel()[:4], expected, rtol=1e-6)


def test_subspace_is_a_kronecker_product_from_the_seed():
  kind = structure.Subspace(rank=2, seed=3, share=0.4)
  lora = structure.LowRankOnRandom(rank=2, seed=3)
  shapes = kind.shapes(SHAPES)
  middle = RNG.standard_normal(shapes['subspace']).astype(np.float32)
  # Three matrices of 8 x 12 have 3 x 2 x (8 + 12) numbers in factors of rank 2.
  assert middle.size == pytest.approx(0.4 * 120, rel=0.25)
  free = {x: PARAMS[x] for x in shapes if x != 'subspace'}
  params = kind.expand(free | {'subspace': middle}, SHAPES)
  assert {x: array.shape for x, array in params.items()} == SHAPES
  left, right = kind._bases(120, middle.shape)
  for basis in (left, right):
    one = np.eye(basis.shape[1])
    np.testing.assert_allclose(basis.T @ basis, one, atol=1e-5)
  vector = np.kron(left, right) @ middle.ravel()
  factors, start = dict(free), 0
  for name in sorted(lora.shapes(SHAPES).keys() - SHAPES.keys()):
    shape = lora.shapes(SHAPES)[name]
    stop = start + shape[0] * shape[1]
    factors[name] = vector[start:stop].reshape(shape)
    start = stop
  for name, array in lora.expand(factors, SHAPES).items():
    np.testing.assert_allclose(params[name], array, atol=1e-5)


def test_subspace_of_everything_is_low_rank_on_random():
  whole = structure.Subspace(rank=3, share=1.0)
  lora = structure.LowRankOnRandom(rank=3)
  expected = lora.expand(lora.shrink(PARAMS), SHAPES)
  free = whole.shrink(PARAMS)
  assert {x: y.shape for x, y in free.items()} == whole.shapes(SHAPES)
  for name, array in whole.expand(free, SHAPES).items():
    np.testing.assert_allclose(array, expected[name], atol=1e-4)


@pytest.mark.parametrize('text', ['monarch', 'lora:x', 'shared:0', 'lora:-1'])
def test_unknown_names_are_refused(text):
  with pytest.raises(ValueError, match='structure'):
    structure.parse(text)


def test_names():
  assert structure.parse('none') == structure.PLAIN
  assert structure.parse('shared:2') == structure.Shared(2)
  assert structure.parse('sublora:8') == structure.Subspace(8)
  assert structure.parse('lora:8') == structure.LowRankOnRandom(8)
