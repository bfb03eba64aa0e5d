"""Certificates from scores: against the rules they are made of."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from bounds import betting
from bounds import certificate
from bounds import header

MODEL = {'class': 'models.lm.ByteLM', 'fields': {}}
HEADER = header.Header('ascii', 70, 24, 64, 32, MODEL)
RNG = np.random.default_rng(0)
COUNT, CLASSES = 20_000, 99


def evidence_of(probability_NC, symbols_N, *, extra=0.0, size=None):
  """Evidence of whole distributions."""
  true_N = np.take_along_axis(probability_NC, symbols_N[:, None], 1)[:, 0]
  entropy_N = -(probability_NC * np.log2(probability_NC + 1e-300)).sum(1)
  rank_N = (probability_NC > true_N[:, None]).sum(1)
  classes = probability_NC.shape[1]
  size = size or len(symbols_N)
  return certificate.Evidence(true_N, entropy_N, rank_N, classes, extra, size)


P_NC = RNG.dirichlet(np.full(CLASSES, 0.05), COUNT)
SYMBOLS = np.array([RNG.choice(CLASSES, p=p) for p in P_NC])
EVIDENCE = evidence_of(P_NC, SYMBOLS, extra=300.0, size=COUNT - 5)


def test_smoothed_losses_are_those_of_a_distribution():
  base, slope = 0.05, 0.7
  rows = certificate.smooth(EVIDENCE, base, slope)
  alpha_N1 = np.minimum(base * 2 ** (-slope * EVIDENCE.entropy_N), 0.9)[:, None]
  q_NC = (1 - alpha_N1) * P_NC + alpha_N1 / CLASSES
  np.testing.assert_allclose(q_NC.sum(1), 1, atol=1e-12)
  np.testing.assert_allclose(
    2.0**-rows.losses_N, q_NC[np.arange(COUNT), SYMBOLS], rtol=1e-9
  )
  assert (q_NC.min(1) >= 2.0**-rows.ceilings_N * (1 - 1e-9)).all()
  assert rows.losses_N.max() < rows.ceilings_N.max()


def test_ceilings_hold_for_what_was_thought_impossible():
  # Rounding of the two logarithms must not put a loss above its ceiling.
  entropy_N = RNG.uniform(0, 6.6, COUNT).astype(np.float32)
  none = EVIDENCE._replace(probability_N=np.zeros(COUNT), entropy_N=entropy_N)
  for base, slope in ((0.03, 0.9), (0.7, 0.01), (1e-4, 0.0)):
    rows = certificate.smooth(none, base, slope)
    assert (rows.losses_N < rows.ceilings_N).all()


def test_units_are_bits_per_byte():
  found = certificate.certify(EVIDENCE, HEADER, 1000, 0.05)
  rows = certificate.smooth(EVIDENCE, *HEADER.smoothing)
  symbol = betting.Betting(0.05)(
    rows.losses_N, 1000, ceilings_N=rows.ceilings_N
  )
  size = COUNT - 5
  assert found.value == pytest.approx((symbol.value * COUNT + 300) / size)
  assert found.terms['empirical_risk'] == pytest.approx(
    (rows.losses_N.sum() + 300) / size
  )
  assert EVIDENCE.vacuous == pytest.approx(
    (COUNT * math.log2(CLASSES) + 300) / size
  )


def test_smoothing_found_is_the_best_of_a_grid():
  for bits in (500, 20_000):
    base, slope = certificate.choose_smoothing(EVIDENCE, bits, 0.05)

    def value(base, slope, bits=bits):
      chosen = dataclasses.replace(HEADER, base=base, slope=slope)
      return certificate.certify(EVIDENCE, chosen, bits, 0.05).value

    grid = itertools.product(range(0, 200, 12), range(0, 64, 8))
    best = min(value(*codes) for codes in grid)
    assert value(base, slope) <= best + 2e-3


def test_cost_moves_as_predicted():
  def cost(bits, delta, seen=EVIDENCE):
    return certificate.certify(seen, HEADER, bits, delta).terms['cost']

  one = cost(1000, 0.05)
  assert cost(2000, 0.05) - one == pytest.approx(1000 * math.log(2) / COUNT)
  assert cost(1000, 0.05**2) - one == pytest.approx(-math.log(0.05) / COUNT)
  half = EVIDENCE._replace(
    probability_N=EVIDENCE.probability_N[: COUNT // 2],
    entropy_N=EVIDENCE.entropy_N[: COUNT // 2],
  )
  assert cost(1000, 0.05, half) == pytest.approx(2 * one)
  values = [
    certificate.certify(EVIDENCE, HEADER, bits, 0.05).value
    for bits in (0, 1000, 10_000, 10**6)
  ]
  assert values == sorted(values)


def test_uniform_random_symbols_are_never_certified_below_guessing():
  # The true risk of every predictor is at least log2(99): no fit, however
  # good on what it saw, may be certified below, but for delta.
  symbols_N = RNG.integers(CLASSES, size=COUNT)
  guess_NC = RNG.dirichlet(np.full(CLASSES, 0.5), COUNT)
  seen = evidence_of(guess_NC, symbols_N)
  for bits in (0, 1000):
    codes = certificate.choose_smoothing(seen, bits, 0.05)
    chosen = dataclasses.replace(HEADER, base=codes[0], slope=codes[1])
    found = certificate.certify(seen, chosen, bits, 0.05)
    assert found.value >= seen.vacuous - 1e-3


def test_memorised_noise_is_vacuous():
  # A file that holds the stream knows every symbol; its bits take all back.
  symbols_N = RNG.integers(CLASSES, size=COUNT)
  known_NC = np.full((COUNT, CLASSES), 1e-6)
  known_NC[np.arange(COUNT), symbols_N] = 1
  known_NC /= known_NC.sum(1, keepdims=True)
  seen = evidence_of(known_NC, symbols_N)
  bits = math.ceil(COUNT * math.log2(CLASSES))
  assert certificate.certify(seen, HEADER, 0, 0.05).value < 0.5
  codes = certificate.choose_smoothing(seen, bits, 0.05)
  chosen = dataclasses.replace(HEADER, base=codes[0], slope=codes[1])
  assert certificate.certify(seen, chosen, bits, 0.05).value >= seen.vacuous


def test_ladder_goes_down_to_the_main_certificate():
  rungs = certificate.Ladder(0.05)(EVIDENCE, HEADER, 4000)
  main = certificate.certify(EVIDENCE, HEADER, 4000, 0.05)
  assert rungs['betting, alpha by entropy'].value == pytest.approx(main.value)
  order = ['betting', 'Catoni', 'Azuma (published)']
  values = [rungs[name].value for name in order]
  assert values == sorted(values)
  short = certificate.Ladder(0.05, short=True)(EVIDENCE, HEADER, 4000)
  assert set(short) == {'Azuma (published)', 'betting, alpha by entropy'}
  assert short['Azuma (published)'] == rungs['Azuma (published)']


def test_errors_are_at_least_those_seen():
  found = certificate.errors(EVIDENCE, 100, 0.05)
  for k in (1, 5):
    seen = (EVIDENCE.rank_N >= k).mean()
    assert seen < found[f'top_{k}_error'].value < seen + 0.15


def test_curve_ends_near_the_certificate():
  main = certificate.certify(EVIDENCE, HEADER, 4000, 0.05)
  slack = main.terms['slack'] / EVIDENCE.per_byte
  count_P, mean_P, value_P = certificate.curve(
    EVIDENCE, HEADER, 4000, 0.05, slack
  )
  assert count_P[-1] == COUNT
  assert EVIDENCE.in_bytes(value_P[-1]) == pytest.approx(main.value, abs=1e-9)
  assert (value_P > mean_P).all()
