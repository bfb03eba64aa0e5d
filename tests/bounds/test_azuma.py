import math

import numpy as np
import pytest

from bounds import azuma
from bounds import smoothing
from bounds import subsample


def test_by_hand():
  losses = np.array([1.0, 2.0, 3.0, 2.0])
  # cost = (9 ln 2 + ln 20) / 4 = 2.308455; gap = 10 sqrt(1.154228) = 10.74350.
  got = azuma.Azuma(delta=0.05)(losses, 9, low=0.0, high=10.0)
  assert got.terms['cost'] == pytest.approx(2.308514, abs=1e-6)
  assert got.value == pytest.approx(2 + 10 * math.sqrt(1.154257), abs=1e-5)


def test_seven_billion_weights_of_two_bits():
  # 2 bits per weight on 1.2e12 tokens: published 4.27, with our arithmetic 4.4.
  low, high = smoothing.interval(0.1, 32000)
  assert high - low == pytest.approx(18.1, abs=0.05)
  losses = np.array([2.87 + 0.1])
  count = 10_000
  got = subsample.SampledAzuma(delta=0.05)(
    np.repeat(losses, count),
    1.51e10,
    stream_length=1_200_000_000_000,
    low=low,
    high=high,
  )
  by_hand = 2.97 + 18.1 * (math.sqrt(1.51e10 * math.log(2) / 2.4e12) + 0.01224)
  assert got.value == pytest.approx(by_hand, abs=0.01)
  assert got.value == pytest.approx(4.4, abs=0.02)
  assert abs(got.value - 4.27) < 0.2


def test_constant_widths_cost_the_grid_only():
  losses = np.random.default_rng(0).uniform(0, 8, 1000)
  closed = azuma.Azuma()(losses, 500 + 6, low=0, high=8)
  grid = azuma.TokenwiseAzuma()(losses, 500, lows_N=0, highs_N=8)
  assert (
    closed.value <= grid.value <= closed.value + 0.006 * closed.terms['gap']
  )


def test_widths_per_token_enter_by_their_mean_square():
  losses = np.ones(4)
  rule = azuma.TokenwiseAzuma(rates=(0.5,))
  got = rule(losses, 8, lows_N=0, highs_N=np.array([2.0, 2.0, 4.0, 4.0]))
  cost = (8 * math.log(2) + math.log(20)) / 4
  assert got.value == pytest.approx(1 + 0.5 / 8 * 10 + cost / 0.5)
  with pytest.raises(ValueError, match='enclose'):
    rule(losses, 8, lows_N=0, highs_N=np.array([2.0, 0.5, 4.0, 4.0]))


def test_quadrupled_stream_halves_the_gap():
  losses = np.random.default_rng(0).uniform(0, 8, 1000)
  one = azuma.Azuma()(losses, 500, low=0, high=8).terms['gap']
  four = azuma.Azuma()(np.tile(losses, 4), 500, low=0, high=8).terms['gap']
  assert four == pytest.approx(one / 2, rel=1e-12)
