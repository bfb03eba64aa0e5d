"""Splits of the stream, documents, ranks and subsamples."""

import math

import numpy as np
import pytest

from bounds import azuma
from bounds import betting
from bounds import catoni
from bounds import documents
from bounds import split
from bounds import subsample
from bounds import topk

LOSSES = np.random.default_rng(0).uniform(0, 8, 1000)


def test_split_sees_only_what_follows():
  rule = split.Split(start=900)
  got = rule(LOSSES, 40, ceilings_N=9.0)
  assert got == betting.Betting()(LOSSES[900:], 40, ceilings_N=9.0)
  changed = LOSSES.copy()
  changed[:900] = 0
  assert rule(changed, 40, ceilings_N=9.0) == got
  with pytest.raises(ValueError, match='leaves none'):
    split.Split(start=1000)(LOSSES, 40, ceilings_N=9.0)
  with pytest.raises(ValueError, match='at least 0'):
    split.Split(start=-1)


def test_held_out_gap_of_a_megabyte_is_small():
  losses = np.random.default_rng(0).gamma(0.8, 2.4, 1_400_000).clip(0, 17)
  rule = split.Progressive(slacks=(0.0, 1024.0))
  assert rule(losses, ceilings_N=17.0).terms['gap'] < 0.007


def test_progressive_has_no_description():
  got = split.Progressive()(LOSSES, ceilings_N=9.0)
  assert got == betting.Betting()(LOSSES, 0, ceilings_N=9.0)


def test_documents_count_alike_whatever_their_length():
  losses = np.array([1.0, 1.0, 1.0, 4.0, 2.0, 4.0])
  ids = np.array([7, 7, 7, 3, 9, 9])
  np.testing.assert_array_equal(
    documents.document_means(losses, ids), [4.0, 1.0, 3.0]
  )
  got = documents.Documents()(losses, 4, documents_N=ids, ceiling=9.0)
  same = betting.Betting()(np.array([4.0, 1.0, 3.0]), 4, ceilings_N=9.0)
  assert got.value == same.value
  assert got.terms['documents'] == 3
  # The mean of a document may hide a loss above the ceiling.
  with pytest.raises(ValueError, match='exceeds the ceiling'):
    documents.Documents()(losses, 4, documents_N=ids, ceiling=3.9)
  with pytest.raises(ValueError, match='name one for each'):
    documents.document_means(losses, ids[:2])


def test_errors_of_rank_k_and_beyond():
  ranks = np.array([0, 0, 1, 4, 5, 0, 0, 0])
  for k, errors in ((1, 3), (5, 1), (6, 0)):
    got = topk.TopK(k=k)(ranks, 3)
    assert got.terms['empirical_risk'] == errors / 8
    inverse = catoni.kl_inverse(errors / 8, got.terms['cost'])
    assert inverse <= got.value <= inverse + 0.01
  four = topk.TopK(k=1, together=4)(ranks, 3)
  assert four == topk.TopK(k=1)(ranks, 5)
  with pytest.raises(ValueError, match='integers >= 0'):
    topk.TopK()(np.array([-1]), 3)
  with pytest.raises(ValueError, match='at least 1'):
    topk.TopK(k=0)


def test_sampled_azuma_by_hand():
  stream, draw = subsample.split_delta(0.05, 100, 900)
  assert (stream, draw) == pytest.approx((0.005, 0.045))
  losses = np.repeat([1.0, 3.0], 50)
  rule = subsample.SampledAzuma(delta=0.05)
  got = rule(losses, 50, stream_length=900, low=0, high=8)
  first = math.sqrt((50 * math.log(2) + math.log(200)) / 1800)
  second = math.sqrt(math.log(1 / 0.045) / 200)
  assert got.value == pytest.approx(2 + 8 * (first + second), rel=1e-13)
  serfling = subsample.SampledAzuma(delta=0.05, without_replacement=True)
  got = serfling(losses, 50, stream_length=900, low=0, high=8)
  second *= math.sqrt(1 - 99 / 900)
  assert got.value == pytest.approx(2 + 8 * (first + second), rel=1e-13)
  with pytest.raises(ValueError, match='100 draws'):
    serfling(losses, 50, stream_length=99, low=0, high=8)


def test_sampled_betting_lies_between_the_whole_and_azuma():
  rng = np.random.default_rng(0)
  losses = rng.gamma(0.8, 2.4, 100_000).clip(0, 18)
  whole = betting.Betting()(losses, 20_000, ceilings_N=18.0).value
  sample = rng.choice(losses, 10_000)
  arguments = {'stream_length': 100_000, 'low': 0.0}
  got = subsample.SampledBetting()(sample, 20_000, ceiling=18.0, **arguments)
  loose = subsample.SampledAzuma()(sample, 20_000, high=18.0, **arguments)
  assert whole < got.value < loose.value
  assert got.value < whole + 0.2
  full = azuma.Azuma()(losses, 20_000, low=0, high=18.0).value
  assert got.value < full
  choice = subsample.SampledBetting()(
    sample, 20_000, ceiling=18.0, choice_bits=5.0, **arguments
  )
  assert choice.value > got.value
