"""Fits against scipy's regression; verdicts on published orders; the plot."""

import math
import re

import numpy as np
import pytest
from scipy import stats

from bench import exponents
from configs import log_plot

FLOPS = (1e10, 4e10, 16e10)


def runs_of(problem='text', seeds=3, noise=0.002, **lines):
  """Records of runs near loss = scale FLOPs^-exponent."""
  rng = np.random.default_rng(0)
  return [
    {
      'problem': problem,
      'structure': name,
      'size': len(FLOPS) - 1 - i,
      'budget': flops,
      'flops': flops,
      'width': 16,
      'loss': scale * flops**-exponent * math.exp(noise * rng.normal()),
    }
    for name, (scale, exponent) in lines.items()
    for i, flops in enumerate(FLOPS)
    for _ in range(seeds)
  ]


def test_fit_is_the_regression_of_logarithms():
  runs = runs_of(dense=(40.0, 0.11), noise=0.05)
  x, y = ([r[name] for r in runs] for name in ('flops', 'loss'))
  line = exponents.fit(x, y)
  found = stats.linregress(np.log(x), np.log(y))
  half = stats.t.ppf(0.975, len(x) - 2) * found.stderr
  np.testing.assert_allclose(line[:3], [
    -found.slope, -found.slope - half, -found.slope + half,
  ])  # fmt: skip
  assert line.scale == pytest.approx(math.exp(found.intercept))
  exact = exponents.fit(FLOPS, [3 * c**-0.2 for c in FLOPS])
  assert exact.exponent == pytest.approx(0.2)
  assert exact.flops(3 * 5e10**-0.2) == pytest.approx(5e10)
  assert math.isnan(exponents.fit(FLOPS[:2], [2.0, 1.0]).low)


def test_table_says_what_dense_would_need():
  # Twice as good as dense everywhere: 2^(1 / 0.1) times the FLOPs.
  runs = runs_of(dense=(40.0, 0.1), btt=(20.0, 0.1), noise=0.0)
  rows = exponents.table(runs, exponents.fits(runs))
  assert [row['structure'] for row in rows] == ['dense', 'btt']
  assert list(rows[0])[1:4] == [f'{c:.2e} FLOPs' for c in FLOPS]
  gains = [float(list(row.values())[-1]) for row in rows]
  assert gains == pytest.approx([1, 1024], rel=1e-3)
  assert rows[1]['exponent'].startswith('0.100')


def claims_of(by, one='btt', other='dense'):
  return [exponents.Claim('text', one, by, other, 'a paper')]


@pytest.mark.parametrize(
  'by, btt, verdict',
  [
    ('below', (39.0, 0.1), 'reproduced'),
    ('below', (41.0, 0.1), 'contradicted'),
    ('below', (40.0, 0.1), 'not decided'),
    ('near', (41.0, 0.1), 'reproduced'),
    ('near', (44.0, 0.1), 'contradicted'),
    ('near', (42.0, 0.1), 'not decided'),
    ('flatter', (40.0, 0.08), 'reproduced'),
    ('flatter', (40.0, 0.12), 'contradicted'),
    ('steeper', (40.0, 0.12), 'reproduced'),
    ('flatter', (40.0, 0.1), 'not decided'),
  ],
)
def test_verdicts(by, btt, verdict):
  runs = runs_of(dense=(40.0, 0.1), btt=btt)
  (said,) = exponents.sentences(runs, exponents.fits(runs), claims_of(by))
  assert f'btt {by} dense (a paper): {verdict}; ' in said


def test_seeds_that_scatter_say_nothing_of_others():
  runs = runs_of(dense=(40.0, 0.1), btt=(39.0, 0.1), low_rank=(60.0, 0.1))
  for i, run in enumerate(r for r in runs if r['structure'] == 'low_rank'):
    run['loss'] *= 1 + i % 3
  said = exponents.sentences(
    runs, {}, claims_of('below') + claims_of('below', other='low_rank')
  )
  assert 'below dense (a paper): reproduced' in said[0]
  assert 'below low_rank (a paper): not decided' in said[1]


def test_what_was_not_run_is_not_judged():
  runs = runs_of(dense=(40.0, 0.1))
  for by in ('below', 'flatter'):
    assert not exponents.sentences(runs, exponents.fits(runs), claims_of(by))
  # And nothing is decided by single runs.
  runs = runs_of(dense=(40.0, 0.1), btt=(20.0, 0.1), seeds=1)
  (said,) = exponents.sentences(runs, {}, claims_of('below'))
  assert 'not decided' in said


@pytest.mark.parametrize(
  'low, high, expected',
  [
    (1.9, 2.6, [2.0, 2.5]),
    (0.01, 0.3, [0.01, 0.02, 0.05, 0.1, 0.2]),
    (2e9, 3e14, [1e10, 1e11, 1e12, 1e13, 1e14]),
  ],
)
def test_ticks(low, high, expected):
  found = log_plot.ticks(low, high)
  assert found == pytest.approx(expected) or set(expected) < set(found)
  assert all(low <= x <= high for x in found) and 2 <= len(found) <= 12


def test_equal_factors_are_equal_distances():
  points = {'a': [(1e3, 8.0), (1e1, 2.0), (1e2, 4.0)], 'b<': [(1e1, 4.0)]}
  picture = log_plot.draw(
    [log_plot.Panel('one', 'x', 'y', points)] * 2
  )
  assert picture.count('>b&lt;</text>') == 1
  line = re.search(r'<polyline points="(.*?)"', picture)[1]
  places = np.array([p.split(',') for p in line.split()], float)
  np.testing.assert_allclose(np.diff(places, axis=0)[0],
                             np.diff(places, axis=0)[1], atol=0.2)
  assert places[0, 0] < places[1, 0] and places[0, 1] > places[1, 1]
