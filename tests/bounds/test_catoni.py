import math

import hypothesis
import numpy as np
import pytest
import scipy.optimize
from hypothesis import strategies

from bounds import azuma
from bounds import catoni

shares = strategies.floats(0, 1)
costs = strategies.floats(1e-6, 3)


def test_by_hand():
  losses = np.array([0.0, 4.0, 0.0, 0.0])
  # t = ln 2: (1 - exp(-ln2/4 - cost)) / (1/2), cost = (3 ln 2 + ln 20) / 4.
  got = catoni.Catoni(tilts=(math.log(2),))(losses, 3, low=0.0, high=5.0)
  expected = 2 * (1 - 2**-0.2 * 2**-0.75 * 20**-0.25)
  assert got.value == pytest.approx(5 * min(expected, 1), rel=1e-12)


@hypothesis.given(shares, costs)
def test_best_tilt_is_the_inverse_divergence(share, cost):
  # Sought independently of the bisection, over the logarithm of the tilt.
  best = scipy.optimize.minimize_scalar(
    lambda log_tilt: catoni.tilted(share, cost, math.exp(log_tilt)),
    bounds=(-9, 5),
    method='bounded',
    options={'xatol': 1e-9},
  )
  inverse = catoni.kl_inverse(share, cost)
  assert inverse <= min(best.fun, 1) + 1e-9
  if 0.01 < share < 0.99 and best.fun < 1:
    assert inverse == pytest.approx(best.fun, abs=1e-6)


@hypothesis.given(shares, costs)
def test_inverse_divergence_is_on_the_safe_side_and_tight(share, cost):
  inverse = catoni.kl_inverse(share, cost)
  assert share <= inverse <= 1
  assert inverse == 1 or catoni.kl_divergence(share, inverse) >= cost
  below = math.nextafter(inverse, 0)
  assert below <= share or catoni.kl_divergence(share, below) <= cost


@hypothesis.given(strategies.floats(0.02, 0.98), strategies.floats(1e-4, 0.7))
def test_grid_loses_little_and_azuma_is_looser(share, cost):
  inverse = catoni.kl_inverse(share, cost)
  grid = min(catoni.tilted(share, cost, t) for t in catoni.TILTS)
  assert inverse <= grid + 1e-12
  assert grid - share <= 1.02 * (inverse - share)
  assert inverse <= share + math.sqrt(cost / 2) + 1e-12


def test_never_above_the_largest_loss_and_below_azuma():
  losses = np.random.default_rng(0).gamma(1.0, 1.5, 4000).clip(0, 11)
  for bits in (10, 100, 1000, 1e4, 1e6):
    got = catoni.Catoni()(losses, bits, low=0, high=11).value
    assert losses.mean() < got <= 11
    # Azuma at the cost that pays for the grid too.
    other = azuma.Azuma()(losses, bits + 5, low=0, high=11)
    assert got <= losses.mean() + 1.02 * other.terms['gap']


def test_divergence_by_hand():
  assert catoni.kl_divergence(0, 0.3) == pytest.approx(-math.log(0.7))
  assert catoni.kl_divergence(1, 0.3) == pytest.approx(-math.log(0.3))
  assert catoni.kl_divergence(0.5, 1) == math.inf
  assert catoni.kl_inverse(0, 0.2) == pytest.approx(1 - math.exp(-0.2))
  with pytest.raises(ValueError, match='needs a share'):
    catoni.kl_inverse(1.2, 0.1)
