import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

from bounds import azuma
from bounds import betting
from bounds import catoni

rows = arrays.arrays(np.float64, 12, elements=strategies.floats(0, 11))
bits = strategies.floats(0, 300)
SHARP = betting.Betting(slacks=(0.0,))


def test_by_hand():
  losses = np.array([1.0, 3.0])
  # Rooms 8 and 2: geometric mean 4. cost = (1 ln 2 + ln 2) / 2 = ln 2.
  rule = betting.Betting(delta=0.5, slacks=(0.0,))
  got = rule(losses, 1, ceilings_N=np.array([9.0, 5.0]))
  assert got.value == pytest.approx(7 - 4 / 2, rel=1e-15)
  expected = {'empirical_risk': 2, 'gap': 3, 'cost': math.log(2)}
  expected |= {'ceiling': 7, 'slack': 0, 'price': 2}
  assert got.terms == pytest.approx(expected, rel=1e-14)


def test_a_slack_is_charged_and_chosen():
  losses = np.array([1.0, 3.0])
  rule = betting.Betting(delta=0.5, slacks=(0.0, 2.0))
  got = rule(losses, 0, ceilings_N=np.array([9.0, 5.0]))
  # One bit for two slacks: 7 - 4/2 against 9 - sqrt(10 * 4) / 2.
  assert got.value == pytest.approx(5.0)
  got = rule(np.tile(losses, 100), 0, ceilings_N=3.0)
  assert got.terms['slack'] == 2
  assert got.value == pytest.approx(5 - math.sqrt(4 * 2) * 2 ** (-2 / 200))


@hypothesis.given(rows, bits)
def test_between_the_risk_and_the_ceiling(losses, description):
  got = betting.Betting()(losses, description, ceilings_N=11.0)
  assert losses.mean() - 1e-9 <= got.value
  sharp = SHARP(losses, description, ceilings_N=11.0)
  assert sharp.value <= 11 + 1e-12


@hypothesis.given(rows, bits, strategies.integers(0, 11))
def test_monotone(losses, description, place):
  losses = losses * 0.9
  base = SHARP(losses, description, ceilings_N=11.0).value
  assert SHARP(losses, description + 5, ceilings_N=11.0).value >= base
  strict = betting.Betting(delta=0.05**2, slacks=(0.0,))
  assert strict(losses, description, ceilings_N=11.0).value >= base
  losses[place] += 0.5
  assert SHARP(losses, description, ceilings_N=11.0).value >= base - 1e-12


@hypothesis.given(rows, bits)
def test_below_catoni_below_azuma_at_equal_cost(losses, description):
  # 1/(1 - exp(-t)) of the width makes a ceiling whose bound is never looser.
  slacks = tuple(11 / -math.expm1(-t) - 11 for t in catoni.TILTS)
  rule = betting.Betting(slacks=slacks)
  bet = rule(losses, description, ceilings_N=11.0).value
  kl = catoni.Catoni()(losses, description, low=0, high=11).value
  assert min(bet, 11) <= kl + 1e-9


@hypothesis.given(strategies.integers(0, 40), bits)
def test_equals_catoni_for_errors(wrong, description):
  errors = np.zeros(40)
  errors[:wrong] = 1
  slacks = tuple(1 / -math.expm1(-t) - 1 for t in catoni.TILTS)
  rule = betting.Betting(slacks=slacks)
  bet = rule(errors, description, ceilings_N=1.0)
  kl = catoni.Catoni()(errors, description, low=0, high=1)
  assert min(bet.value, 1) == pytest.approx(kl.value, abs=1e-9)
  inverse = catoni.kl_inverse(errors.mean(), bet.terms['cost'])
  assert inverse - 1e-9 <= min(bet.value, 1) <= inverse + 0.004


def test_small_cost_gap_is_that_of_the_variance():
  losses = np.random.default_rng(0).gamma(4.0, 0.5, 200_000)
  got = betting.Betting()(losses, 200, ceilings_N=12.0)
  expected = math.sqrt(2 * losses.var() * got.terms['cost'])
  assert got.terms['gap'] == pytest.approx(expected, rel=0.1)


def test_half_of_azuma_on_losses_like_those_of_bytes():
  rng = np.random.default_rng(0)
  losses = rng.gamma(0.8, 2.4, 100_000).clip(0.1, 11.3)
  low, high = 0.07, 11.32
  bet = betting.Betting()(losses, 10_000, ceilings_N=high).terms['gap']
  assert (
    bet < azuma.Azuma()(losses, 10_000, low=low, high=high).terms['gap'] / 2
  )


def test_price_is_the_derivative_by_cost():
  losses = np.random.default_rng(0).uniform(0, 8, 500)
  bits, step = 300.0, 1e-4
  middle = SHARP(losses, bits, ceilings_N=9.0)
  up = SHARP(losses, bits + step, ceilings_N=9.0).value
  down = SHARP(losses, bits - step, ceilings_N=9.0).value
  slope = middle.terms['price'] * math.log(2) / 500
  assert slope == pytest.approx((up - down) / (2 * step), rel=1e-5)


def test_loss_weights_are_the_gradient():
  rng = np.random.default_rng(0)
  losses, ceilings = rng.uniform(0, 8, 20), rng.uniform(8.5, 12, 20)
  middle = SHARP(losses, 30, ceilings_N=ceilings)
  weights = betting.loss_weights(losses, middle, ceilings_N=ceilings)
  for place in range(20):
    step = 1e-5 * np.eye(20)[place]
    up = SHARP(losses + step, 30, ceilings_N=ceilings).value
    down = SHARP(losses - step, 30, ceilings_N=ceilings).value
    assert weights[place] / 20 == pytest.approx((up - down) / 2e-5, rel=1e-6)


def test_a_loss_on_its_ceiling_gives_the_ceiling():
  got = SHARP(np.array([1.0, 9.0]), 0, ceilings_N=9.0)
  assert got.value == 9
  assert betting.loss_weights(np.array([1.0, 9.0]), got, ceilings_N=9.0)[0] == 0


def test_uniform_guessing_is_never_certified_below_chance():
  losses = np.full(10_000, 8.0)
  assert SHARP(losses, 80, ceilings_N=8.0).value == 8
  assert betting.Betting()(losses, 80, ceilings_N=8.0).value >= 8


def test_curve_holds_the_bound_of_every_prefix():
  rng = np.random.default_rng(0)
  losses, ceilings = rng.uniform(0, 8, 60), rng.uniform(8, 12, 60)
  values = betting.Curve()(losses, 20, ceilings_N=ceilings)
  for count in (1, 2, 17, 60):
    part = betting.Betting()(losses[:count], 20, ceilings_N=ceilings[:count])
    assert values[count - 1] == pytest.approx(part.value, rel=1e-12)


@pytest.mark.parametrize('slacks', [(), (-1.0,), (math.nan,)])
def test_slacks_must_not_be_negative(slacks):
  with pytest.raises(ValueError, match='slacks='):
    betting.Betting(slacks=slacks)
