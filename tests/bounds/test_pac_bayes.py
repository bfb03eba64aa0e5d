import math

import numpy as np
import pytest
from scipy import stats

from bounds import betting
from bounds import pac_bayes


def test_gaussian_log_ratio_against_scipy():
  rng = np.random.default_rng(0)
  mean, draw = rng.standard_normal(7), rng.standard_normal(7)
  got = pac_bayes.gaussian_log_ratio(draw, mean, scale=0.3, prior_scale=2.0)
  posterior = stats.norm(mean, 0.3).logpdf(draw).sum()
  assert got == pytest.approx(posterior - stats.norm(0, 2).logpdf(draw).sum())


def test_divergence_is_the_mean_of_the_log_ratio():
  rng = np.random.default_rng(0)
  mean = rng.standard_normal(3)
  scales = {'scale': 0.5, 'prior_scale': 1.5}
  draws = mean + 0.5 * rng.standard_normal((40_000, 3))
  ratios = [pac_bayes.gaussian_log_ratio(d, mean, **scales) for d in draws]
  assert pac_bayes.gaussian_divergence(mean, **scales) == pytest.approx(
    np.mean(ratios), abs=0.03
  )


def test_gaussian_rate_beats_a_scalar_code_by_a_quarter_bit():
  # Weights N(0, 1 - D) at mean square error D cost log2(1/D)/2 bits on average;
  # fine uniform quantisation with an ideal entropy code costs log2(2 pi e/12)/2
  # more.
  error = 0.01
  mean = np.random.default_rng(0).normal(0, math.sqrt(1 - error), 200_000)
  nats = pac_bayes.gaussian_divergence(mean, scale=0.1, prior_scale=1.0)
  rate = nats / math.log(2) / mean.size
  assert rate == pytest.approx(0.5 * math.log2(1 / error), abs=0.01)
  step = math.sqrt(12 * error)
  weights = np.random.default_rng(1).standard_normal(200_000)
  _, counts = np.unique(np.rint(weights / step), return_counts=True)
  scalar = stats.entropy(counts, base=2)
  assert scalar - rate == pytest.approx(0.254, abs=0.02)


def test_disintegrated_is_betting_with_another_cost():
  losses = np.random.default_rng(0).uniform(0, 8, 100)
  got = pac_bayes.Disintegrated()(losses, 30 * math.log(2), ceilings_N=9.0)
  same = betting.Betting()(losses, 30, ceilings_N=9.0)
  assert got.value == pytest.approx(same.value, rel=1e-14)
  with pytest.raises(ValueError, match='log_ratio=inf'):
    pac_bayes.Disintegrated()(losses, math.inf, ceilings_N=9.0)


def test_gibbs_on_one_predictor_of_a_uniform_prior_is_betting():
  losses = np.random.default_rng(0).uniform(0, 8, (4, 100))
  rule = pac_bayes.Gibbs()
  weights = np.array([0.0, 1.0, 0.0, 0.0])
  got = rule(losses, weights, divergence=math.log(4), ceilings_SN=9.0)
  same = betting.Betting()(losses[1], 2, ceilings_N=9.0)
  assert got.value == pytest.approx(same.value, rel=1e-13)
  assert got.terms == pytest.approx(same.terms)


def test_gibbs_by_hand():
  losses = np.array([[1.0, 1.0], [5.0, 5.0]])
  rule = pac_bayes.Gibbs(delta=0.5, slacks=(0.0,))
  got = rule(losses, np.array([0.5, 0.5]), divergence=0.0, ceilings_SN=9.0)
  # Geometric mean of the rooms 8 and 4, cost ln(2) / 2.
  assert got.value == pytest.approx(9 - math.sqrt(32) / math.sqrt(2))
  with pytest.raises(ValueError, match='sum to 1'):
    rule(losses, np.array([0.5, 0.6]), divergence=0.0, ceilings_SN=9.0)
