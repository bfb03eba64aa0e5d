import decimal
import math

import numpy as np
import pytest

from bounds import azuma
from bounds import bernstein
from bounds import betting
from bounds import bound
from bounds import catoni
from bounds import documents
from bounds import pac_bayes
from bounds import split
from bounds import subsample
from bounds import topk


def test_cost_is_in_nats_per_symbol():
  # 1000 bits and 1/delta = e**3 over 10 symbols.
  got = bound.cost(1000, math.exp(-3), 10)
  assert got == pytest.approx((1000 * 0.6931471805599453 + 3) / 10, rel=1e-15)


def test_rounding_for_print_is_upwards_only():
  assert bound.Bound(3.1230001, {}).rounded_up() == decimal.Decimal('3.124')
  assert bound.Bound(3.125, {}).rounded_up() == decimal.Decimal('3.125')
  assert bound.Bound(0.1, {}).rounded_up(20) > decimal.Decimal('0.1')


@pytest.mark.parametrize('delta', [0, 1, -0.1, 2, math.nan])
@pytest.mark.parametrize(
  'rule',
  [
    azuma.Azuma,
    azuma.TokenwiseAzuma,
    bernstein.EmpiricalBernstein,
    bernstein.Freedman,
    betting.Betting,
    betting.Curve,
    catoni.Catoni,
    documents.Documents,
    pac_bayes.Disintegrated,
    pac_bayes.Gibbs,
    split.Progressive,
    subsample.SampledAzuma,
    subsample.SampledBetting,
    topk.TopK,
  ],
)
def test_delta_outside_the_open_interval_is_refused(rule, delta):
  with pytest.raises(ValueError, match=r'delta=.* between 0 and 1'):
    rule(delta=delta)


@pytest.mark.parametrize(
  'losses', [[], [[1.0]], [math.nan], [math.inf], [1.0, -math.inf]]
)
def test_losses_must_be_a_row_of_finite_numbers(losses):
  with pytest.raises(ValueError, match='finite'):
    betting.Betting()(np.array(losses), 8, ceilings_N=9.0)


@pytest.mark.parametrize('bits', [-1, math.inf, math.nan])
def test_description_must_be_finite(bits):
  with pytest.raises(ValueError, match='description_bits='):
    azuma.Azuma()(np.ones(3), bits, low=0, high=2)


@pytest.mark.parametrize('grid', [(), (0.0,), (-1.0,), (math.inf,)])
def test_grids_are_positive(grid):
  with pytest.raises(ValueError, match='positive'):
    catoni.Catoni(tilts=grid)


def test_losses_outside_their_interval_are_refused():
  losses = np.array([1.0, 5.0])
  with pytest.raises(ValueError, match='leave their interval'):
    azuma.Azuma()(losses, 8, low=0.0, high=4.0)
  with pytest.raises(ValueError, match='leave their interval'):
    catoni.Catoni()(losses, 8, low=2.0, high=6.0)
  with pytest.raises(ValueError, match=r'symbol 1 exceeds its ceiling 4\.0'):
    betting.Betting()(losses, 8, ceilings_N=4.0)
  with pytest.raises(ValueError, match='reach=2'):
    bernstein.Freedman()(losses, 8, centres_N=2.0, reach=2.0)
  with pytest.raises(ValueError, match='one for'):
    betting.Betting()(losses, 8, ceilings_N=np.full(3, 9.0))
