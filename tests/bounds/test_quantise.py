import numpy as np
import pytest

from bounds import quantise

WEIGHTS = np.random.default_rng(0).normal(0, 0.02, (64, 48))


def entropy(symbols):
  share = np.unique(symbols, return_counts=True)[1] / symbols.size
  return -(share * np.log2(share)).sum()


def test_scales_are_powers_to_the_last_bit():
  codes = np.array(quantise.CODES)
  got = quantise.scales(codes)
  assert got.dtype == np.float32
  np.testing.assert_array_equal(got, np.exp2(codes / 8).astype(np.float32))
  np.testing.assert_array_equal(quantise.scale_codes(got), codes)
  assert quantise.scale_codes(np.zeros(1)) == quantise.CODES[0]
  assert quantise.scale_codes(np.full(1, 1e30)) == quantise.CODES[-1]


def test_uniform_errs_by_half_a_step_at_most():
  for per_row in (False, True):
    coded = quantise.Uniform(0.7, per_row)(WEIGHTS)
    step = quantise.scales(coded.codes)[:, None]
    plain = coded.symbols * step
    assert (np.abs(plain - WEIGHTS) <= step * (0.5 + 1e-6)).all()
    assert len(coded.codes) == (64 if per_row else 1)


def test_decode_is_the_formula_in_float32():
  symbols = np.array([[0, 1, -3], [2, 0, -1]], np.int32)
  coded = quantise.Coded(symbols, np.array([0, -8], np.int32), shift=8)
  got = coded.decode()
  assert got.dtype == np.float32
  np.testing.assert_array_equal(got, [[0, 0.75, -2.75], [0.875, 0, -0.375]])


def test_deadzone_has_more_zeros_and_the_better_rate():
  weights = np.random.default_rng(0).standard_normal(200_000)
  coded = quantise.Deadzone(1.35, 0.4)(weights)
  bits = entropy(coded.symbols)
  error = np.mean((coded.decode() - weights) ** 2)
  # Entropy-coded scalar quantisation of a Gaussian: .178 at 1.5 bits, at best
  # .254 bits above the rate-distortion function.
  excess = bits - 0.5 * np.log2(1 / error)
  assert 1.3 < bits < 1.8
  assert 0.15 < excess < 0.28
  plain = quantise.Uniform(1.35)(weights)
  assert (plain.symbols == 0).sum() < (coded.symbols == 0).sum()
  assert entropy(plain.symbols) > bits
  unshifted = quantise.Coded(coded.symbols, coded.codes).decode()
  assert error < np.mean((unshifted - weights) ** 2)


def test_ternary_by_hand():
  # Mean magnitude 1: the threshold .7 keeps 2, -1 and 0.9, whose mean is 1.3.
  coded = quantise.Ternary()(np.array([2.0, -1.0, 0.9, 0.1]))
  np.testing.assert_array_equal(coded.symbols, [1, -1, 1, 0])
  assert quantise.scales(coded.codes)[0] == np.float32(2 ** (3 / 8))
  rows = quantise.Ternary(per_row=True)(WEIGHTS)
  assert set(np.unique(rows.symbols)) == {-1, 0, 1}
  assert rows.codes.shape == (64,)


def test_codebook_is_that_of_lloyd_and_max():
  # Seven levels with one at 0, of a normal density (Max 1960, table I).
  weights = np.random.default_rng(0).standard_normal(30_000)
  coded = quantise.Codebook(3, rounds=60)(weights)
  levels = np.array(coded.levels) / 32 * quantise.scales(coded.codes)[0]
  np.testing.assert_allclose(levels, [0.5606, 1.188, 2.033], rtol=0.03)
  error = np.mean((coded.decode() - weights) ** 2)
  assert error == pytest.approx(0.04400, rel=0.03)
  assert set(np.unique(coded.symbols)) == set(range(-3, 4))


def test_codebook_of_few_values_is_exact():
  weights = np.array([0.0, 1.0, -1.0, 4.0, 4.0, -4.0, 0.0])
  coded = quantise.Codebook(2)(weights)
  np.testing.assert_allclose(coded.decode(), weights, rtol=2e-3)
  assert not quantise.Codebook()(np.zeros((3, 4))).decode().any()
  with pytest.raises(ValueError, match='size=17'):
    quantise.Codebook(17)


@pytest.mark.parametrize(
  'rule',
  [
    quantise.Uniform(1.0, True),
    quantise.Deadzone(1.0),
    quantise.Ternary(),
    quantise.Codebook(2),
  ],
)
def test_zeros_scalars_and_vectors(rule):
  for tensor in (np.zeros((3, 4)), np.array(0.3), np.array([0.1, -2.0])):
    coded = rule(tensor)
    assert coded.decode().shape == tensor.shape
    assert np.isfinite(coded.decode()).all()
  assert not rule(np.zeros((3, 4))).decode().any()


def test_bad_tensors_and_settings():
  with pytest.raises(ValueError, match='finite'):
    quantise.Ternary()(np.array([1.0, np.nan]))
  with pytest.raises(ValueError, match='at least one'):
    quantise.Uniform(1.0)(np.zeros((0, 3)))
  with pytest.raises(ValueError, match='step=0'):
    quantise.Uniform(0)
  with pytest.raises(ValueError, match=r'rounding=0\.6'):
    quantise.Deadzone(1.0, 0.6)
  with pytest.raises(ValueError, match='threshold=-1'):
    quantise.Ternary(-1)
