import math

import numpy as np
import pytest

from bounds import bernstein
from bounds import betting
from bounds import bound


def test_empirical_bernstein_by_hand():
  losses = np.array([1.0, 3.0])
  rule = bernstein.EmpiricalBernstein(delta=math.exp(-1), rates=(0.5,))
  got = rule(losses, 0, centres_N=2.0, reach=4.0)
  # psi(1/2) = ln 2 - 1/2; mean ((x-y)/4)**2 = 1/16; cost = 1/2.
  psi = 0.6931471805599453 - 0.5
  assert got.value == pytest.approx(2 + 8 * (psi / 16 + 0.5), rel=1e-13)


def test_freedman_by_hand():
  losses = np.array([1.0, 3.0])
  rule = bernstein.Freedman(delta=math.exp(-1), rates=(0.5,))
  got = rule(losses, 0, centres_N=2.0, reach=4.0)
  # a = 1/4, -1/4; s a = 1/8, -1/8, whose v sum to -ln(1 - 1/64).
  expected = 2 + 8 * (0.5 - math.log(1 - 1 / 64) / 2)
  assert got.value == pytest.approx(expected, rel=1e-13)


def test_inequality_behind_empirical_bernstein():
  for rate in (0.01, 0.3, 0.7, 0.94):
    step = np.linspace(-1, 50, 100_001)
    psi = -math.log1p(-rate) - rate
    assert (rate * step - psi * step**2 <= np.log1p(rate * step) + 1e-12).all()


@pytest.mark.parametrize('rate', [0.8, 0.9, 0.97])
def test_freedman_at_its_best_centre_is_the_betting_bound(rate):
  losses = np.random.default_rng(0).gamma(1.0, 1.5, 3000).clip(0, 11)
  ceiling = 14.0
  bet = betting.Betting(slacks=(0.0,))(losses, 700, ceilings_N=ceiling)

  def freedman(scale):
    rule = bernstein.Freedman(rates=(rate,))
    reach = rate * scale
    return rule(losses, 700, centres_N=ceiling - scale, reach=reach).value

  # The best scale is the derived one, exp(mean ln(B - x) - cost) = B - bound.
  best = ceiling - bet.value
  assert freedman(best) == pytest.approx(bet.value, rel=1e-12)
  for scale in (0.5 * best, 0.9 * best, 1.1 * best):
    assert freedman(scale) > bet.value + 1e-3


def test_running_means_look_back_only():
  losses = np.array([4.0, 1.0, 7.0])
  np.testing.assert_allclose(
    bernstein.running_means(losses, 2.0), [2, 3, 7 / 3]
  )


def test_small_variance_pays():
  rng = np.random.default_rng(0)
  losses = 2 + 0.1 * rng.standard_normal(5000).clip(-3, 3)
  arguments = {'centres_N': bernstein.running_means(losses, 4.0), 'reach': 8.0}
  calm = bernstein.EmpiricalBernstein()(losses, 100, **arguments)
  azuma_gap = 8 * math.sqrt(bound.cost(100, 0.05, 5000) / 2)
  assert 0 < calm.terms['gap'] < azuma_gap / 4


def test_rates_reach_no_pole():
  with pytest.raises(ValueError, match='below 1'):
    bernstein.Freedman(rates=(0.5, 1.0))
