"""How often bounds fail, simulated: seldom enough, and wrong forms too often.

The quick form takes seconds; `python -m bounds.coverage` is the full one.
"""

import math

import numpy as np
import pytest

from bounds import azuma
from bounds import certificate
from bounds import coverage
from bounds import header
from bounds import pac_bayes
from bounds import smoothing
from bounds import split
from bounds import subsample

DELTA, SHARP, V = coverage.DELTA, coverage.SHARP, coverage.V
# Four hundred runs at the nominal rate .1 exceed .15 once in a thousand times.
CLOSE = 0.15


@pytest.mark.parametrize('rare', [False, True])
def test_all_hypotheses_of_an_adaptive_stream_are_covered(rare):
  rates, gaps = coverage.simulate(40, 300, 3, rare=rare, seed=int(rare))
  assert max(rates.values()) <= 0.05
  assert gaps['betting'] < gaps['bernstein'] < gaps['azuma']
  assert gaps['betting'] < gaps['catoni']


@pytest.mark.slow
def test_table_of_the_command_is_as_it_must_be():
  found = list(coverage.cases(400, 800, 8))
  for case in found:
    print(case)
    assert case.holds, case
  gaps = {case.name.rpartition(' ')[2]: case.gap for case in found}
  assert gaps['betting'] < 0.5 * gaps['azuma']


def test_a_case_holds_only_where_it_must_lie():
  assert coverage.Case('', 1, 0.09, 0.07, 0.1).holds
  assert not coverage.Case('', 1, 0.11, 0.07, 0.1).holds
  assert not coverage.Case('', 1, 0.0, 0.07, 0.1).holds


@pytest.mark.parametrize(
  ('missing', 'low', 'high'), [(0.178, 0, 0), (0.107, 0, 0), (0.093, 0.07, 0.1)]
)
def test_sharp(missing, low, high):
  assert low <= coverage.sharp(missing, 20_000) <= high


def test_control_nats_for_bits_fails():
  assert coverage.without_units(0.178, 20_000) > 0.16


def test_control_without_the_prior_fails():
  assert coverage.of_the_best(400, 6.0) == 0
  assert coverage.of_the_best(400, 0.0) > 0.9


def test_control_with_the_empirical_variance_fails():
  right, wrong = coverage.of_a_rare_loss(400)
  assert wrong > 0.25
  assert right <= CLOSE


def test_control_with_a_leaky_ceiling_fails():
  right, wrong = coverage.of_a_leak(400)
  assert wrong > 0.3
  assert right <= CLOSE


def test_ceilings_and_widths_may_follow_the_past():
  # After a large loss both are halved, and so is what can happen.
  rng = np.random.default_rng(0)
  runs, count = 400, 300
  high_RN = np.full((runs, count), 12.0)
  hit_RN = np.zeros((runs, count), bool)
  for place in range(count):
    if place:
      high_RN[:, place] = np.where(hit_RN[:, place - 1], 6.0, 12.0)
    hit_RN[:, place] = rng.random(runs) < 0.02
  losses_RN = 1 + (high_RN - 1) * hit_RN
  risk_R = (1 + (high_RN - 1) * 0.02).mean(1)
  token = azuma.TokenwiseAzuma(DELTA)
  rows = list(zip(losses_RN, high_RN, strict=True))
  bet = [SHARP(x, 0, ceilings_N=b).value for x, b in rows]
  wide = [token(x, 0, lows_N=0.0, highs_N=b).value for x, b in rows]
  assert (bet < risk_R).mean() <= CLOSE
  assert (wide < risk_R).mean() <= CLOSE


def test_curve_is_sharp_at_all_times_at_once():
  assert 0.07 <= coverage.at_any_time(1000, 2500) <= 0.12
  # The control: a bound for one time, looked at all the time.
  rng = np.random.default_rng(0)
  losses_RN = rng.integers(0, 2, (300, 2500)).astype(float)
  times_N = np.arange(1, 2501)
  gap_N = np.sqrt(math.log(1 / DELTA) / (2 * times_N))
  peeked_RN = losses_RN.cumsum(1) / times_N + gap_N
  assert (peeked_RN[:, 10:] < 0.5).any(1).mean() > 0.13


def test_one_draw_of_random_weights_pays_its_density_ratio():
  # 60 contexts of fair coins: any prediction but 1/2 has risk above 1 bit, and
  # weights fitted to the coins have an empirical risk below it.
  rng = np.random.default_rng(0)
  runs, count, contexts, scale = 300, 240, 60, 0.5
  rule = pac_bayes.Disintegrated(DELTA, slacks=(0.0, 4.0))
  right, free = 0, 0
  for _ in range(runs):
    place_N = np.arange(count) % contexts
    coin_N = rng.integers(0, 2, count)
    ones_C = np.bincount(place_N, coin_N, contexts)
    mean_C = 1.0 * (ones_C - count / contexts / 2)
    draw_C = mean_C + scale * rng.standard_normal(contexts)
    chance_C = 0.9 / (1 + np.exp(-draw_C)) + 0.05
    loss_C2 = -np.log2(np.stack([1 - chance_C, chance_C], 1))
    losses_N = loss_C2[place_N, coin_N]
    ratio = pac_bayes.gaussian_log_ratio(
      draw_C, mean_C, scale=scale, prior_scale=1.0
    )
    ceiling = -math.log2(0.05)
    risk = loss_C2.mean()
    value = rule(losses_N, ratio, ceilings_N=ceiling).value
    right += value < risk
    free += rule(losses_N, 0.0, ceilings_N=ceiling).value < risk
  assert right / runs <= CLOSE
  assert free / runs > 0.5


def test_risk_of_a_changing_predictor_needs_no_description():
  # Laplace's rule on a biased coin, smoothed by its own prior counts.
  rng = np.random.default_rng(0)
  runs, count = 400, 200
  coin_RN = rng.random((runs, count)) < 0.2
  seen_N = np.arange(count)
  ones_RN = coin_RN.cumsum(1) - coin_RN
  chance_RN = 0.05 + 0.9 * (ones_RN + 1) / (seen_N + 2)
  losses_RN = -np.log2(np.where(coin_RN, chance_RN, 1 - chance_RN))
  mean_RN = -0.2 * np.log2(chance_RN) - 0.8 * np.log2(1 - chance_RN)
  rule = split.Progressive(DELTA, slacks=(0.0,))
  ceilings_RN = -np.log2(np.minimum(chance_RN, 1 - chance_RN))
  values = [
    rule(x, ceilings_N=c).value
    for x, c in zip(losses_RN, ceilings_RN, strict=True)
  ]
  assert (np.array(values) < mean_RN.mean(1)).mean() <= CLOSE


def test_a_subsample_pays_for_its_draw():
  # A stream so long that only the draw matters; one loss in fifty is large.
  rng = np.random.default_rng(0)
  stream_N = np.ones(20_000)
  stream_N[::50] = 9.0
  length = 10**9
  betting_rule = subsample.SampledBetting(DELTA, slacks=(0.5, 2.0, 8.0))
  hoeffding = subsample.SampledAzuma(DELTA)
  right, free, wide = 0, 0, 0
  for run in range(200):
    draw = rng.choice(stream_N, 150, replace=run % 2 == 0)
    got = betting_rule(draw, 0, stream_length=length, low=0.0, ceiling=9.0)
    right += got.value < stream_N.mean()
    wide += (
      hoeffding(draw, 0, stream_length=length, low=0.0, high=9.0).value
      < stream_N.mean()
    )
    free += draw.mean() < stream_N.mean()
  assert max(right, wide) / 200 <= CLOSE
  assert free / 200 > 0.3


@pytest.mark.parametrize('paid', [True, False])
def test_smoothing_may_be_chosen_on_the_stream_that_it_is_paid_for(paid):
  # As python -m bounds does: the best codes after the fact, in the file. The
  # control fits a table to the stream as well and charges nothing for either.
  rng = np.random.default_rng(0)
  runs, count, contexts, delta = 40, 120, 60, 0.1
  rows_R = []
  for _ in range(runs):
    truth_CV = rng.dirichlet(np.full(V, 0.4), contexts)
    place_N = np.arange(count) % contexts
    edge_NV = truth_CV.cumsum(1)[place_N]
    symbol_N = (rng.random((count, 1)) > edge_NV).sum(1).clip(0, V - 1)
    seen_CV = np.zeros((contexts, V))
    np.add.at(seen_CV, (place_N, symbol_N), 1)
    fitted_CV = (seen_CV + 0.02) / (seen_CV + 0.02).sum(1, keepdims=True)
    noise_CV = rng.dirichlet(np.full(V, 0.4), contexts)
    guess_CV = 0.6 * truth_CV + 0.4 * noise_CV if paid else fitted_CV
    entropy_C = -(guess_CV * np.log2(guess_CV + 1e-300)).sum(1)
    seen = certificate.Evidence(
      guess_CV[place_N, symbol_N], entropy_C[place_N], symbol_N, V, 0.0, count
    )
    bits = 14 if paid else 0  # 256 bases and 64 slopes.
    base, slope = certificate.choose_smoothing(seen, bits, delta)
    found = certificate.betting_bound(seen, base, slope, bits, delta)
    alpha_C = smoothing.adaptive_alphas(
      entropy_C, *header.smoothing_of(base, slope)
    )
    loss_CV = smoothing.smoothed_losses(guess_CV, alpha_C[:, None], V)
    rows_R.append(found.value < (truth_CV * loss_CV).sum(1)[place_N].mean())
  if paid:
    assert np.mean(rows_R) <= 0.05
  else:
    assert np.mean(rows_R) > 0.5
