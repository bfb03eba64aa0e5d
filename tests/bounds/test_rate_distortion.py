import numpy as np
import pytest

from bounds import codec
from bounds import quantise
from bounds import rate_distortion

RNG = np.random.default_rng(0)


def at_bits(make, weights, bits):
  """The rounding whose step takes about so many bits per weight."""
  fine, wide = 1 / 64, 16.0
  for _ in range(10):
    step = (fine * wide) ** 0.5
    coded = make(step)(weights)
    if codec.ideal_bits(coded.symbols) > bits * weights.size:
      fine = step
    else:
      wide = step
  return coded, codec.ideal_bits(coded.symbols) / weights.size


def excess(make, weights, bits):
  """Bits above the rate-distortion function of a normal source."""
  coded, found = at_bits(make, weights, bits)
  error = np.mean((coded.decode() - weights) ** 2)
  return found - 0.5 * np.log2(1 / error)


def test_price_is_what_one_more_symbol_adds_to_the_closed_form():
  symbols = RNG.integers(-4, 5, (1, 200))
  none = np.zeros(symbols.shape, np.int64)
  bits_K = rate_distortion.prices(symbols, none)[0]
  before = codec.ideal_bits(symbols)
  for symbol in range(-6, 7):
    after = codec.ideal_bits(np.append(symbols, symbol)[None])
    assert bits_K[30 + symbol] == pytest.approx(after - before, abs=1e-9)
  assert np.exp2(-bits_K).sum() == pytest.approx(1, abs=1e-3)


def test_normal_weights_have_the_rate_of_the_best_scalar_quantiser():
  # .0889 at 2 bits: .254 above the rate-distortion function (Gish and Pierce).
  weights = RNG.standard_normal((60, 100))
  rule = rate_distortion.RateDistortion
  found = excess(rule, weights, 2.0)
  assert 0.22 < found < 0.28
  assert found < excess(quantise.Uniform, weights, 2.0)
  assert found < excess(quantise.Deadzone, weights, 2.0) - 0.02


def test_what_is_minimised_is_lower_than_by_the_nearest_symbols():
  ratio = RNG.laplace(0, 0.7, (60, 50))
  for weight in (0.5, 2.0, 8.0):
    totals = [
      codec.ideal_bits(x, codec.chosen_contexts(x))
      + weight * np.sum((ratio - x) ** 2)
      for x in (
        rate_distortion.rounded(ratio, weight),
        np.rint(ratio).astype(np.int32),
      )
    ]
    assert totals[0] < 0.995 * totals[1]


def test_weights_of_much_and_of_no_importance():
  ratio = RNG.normal(0, 2, (30, 40))
  weight = np.full(ratio.shape, 1e9)
  weight[:, ::2] = 1e-9
  symbols = rate_distortion.rounded(ratio, weight)
  np.testing.assert_array_equal(symbols[:, 1::2], np.rint(ratio[:, 1::2]))
  assert not symbols[:, ::2].any()


def test_scalars_zeros_and_bad_settings():
  rule = rate_distortion.RateDistortion(1.0)
  for tensor in (np.array(0.3), np.zeros((3, 4)), np.array([0.1, -2.0])):
    assert rule(tensor).decode().shape == tensor.shape
  with pytest.raises(ValueError, match='weight=0'):
    rate_distortion.RateDistortion(1.0, 0.0)
  with pytest.raises(ValueError, match='step=-1'):
    rate_distortion.RateDistortion(-1.0)


def test_a_weight_far_from_the_others_is_as_near_as_they():
  weights = RNG.standard_t(3, (60, 50))
  coded = rate_distortion.RateDistortion(0.05)(weights)
  assert np.abs(coded.symbols).max() > 100
  error = np.abs(coded.decode() - weights).max()
  assert error < 2 * float(quantise.scales(coded.codes)[0])
