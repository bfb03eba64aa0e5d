import math

import numpy as np
import pytest

from bounds import smoothing


@pytest.mark.parametrize(
  ('alpha', 'width'),
  [(0.001, 17.96), (0.01, 14.63), (0.05, 12.25), (0.1, 11.17), (0.5, 8.006)],
)
def test_width_of_256_symbols(alpha, width):
  low, high = smoothing.interval(alpha, 256)
  assert high - low == pytest.approx(width, abs=0.01)
  assert high - low == pytest.approx(math.log2(1 + (1 - alpha) * 256 / alpha))


def test_losses_stay_in_the_interval_and_probabilities_sum_to_one():
  probability_V = np.random.default_rng(0).dirichlet(np.full(98, 0.05))
  losses_V = smoothing.smoothed_losses(probability_V, 0.05, 98)
  low, high = smoothing.interval(0.05, 98)
  assert low <= losses_V.min() <= losses_V.max() <= high
  assert abs(np.exp2(-losses_V).sum() - 1) < 1e-12
  ends = smoothing.smoothed_losses(np.array([1.0, 0.0]), 0.05, 98)
  np.testing.assert_allclose(ends, [low, high], rtol=1e-14)
  assert smoothing.ceilings(0.05, 98) == high


def test_adaptive_strength_falls_with_entropy():
  got = smoothing.adaptive_alphas(np.array([0.0, 2.0, 4.0]), 1.6, 0.5)
  np.testing.assert_allclose(got, [0.9, 0.8, 0.4])


@pytest.mark.parametrize('alpha', [0.0, -1.0, 1.5, math.nan])
def test_strength_must_be_a_probability(alpha):
  with pytest.raises(ValueError, match=r'\(0, 1\]'):
    smoothing.interval(alpha, 256)
