"""Lengths and thresholds against counting by hand and trying them all."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from evals import patch_lengths


def counted(closes, documents, is_byte):
  """Bytes of each patch, one id at a time."""
  lengths = []
  for row in range(len(closes)):
    opened, last = True, 0
    for column, document in enumerate(documents[row]):
      if document == 0:
        opened = True
        continue
      if opened or document != last:
        lengths.append(0)
      lengths[-1] += int(is_byte[row][column])
      opened, last = closes[row][column], document
  return [length for length in lengths if length]


@hypothesis.given(st.integers(0, 10**6))
def test_lengths_are_those_counted_by_hand(seed):
  rng = np.random.default_rng(seed)
  shape = rng.integers(1, 4), rng.integers(1, 12)
  closes = rng.random(shape) < 0.4
  documents = 1 + np.cumsum(rng.random(shape) < 0.2, axis=1)
  documents[:, rng.integers(1, shape[1] + 1) :] = 0
  closes &= documents > 0
  is_byte = rng.random(shape) < 0.8
  found = patch_lengths.lengths(closes, documents, is_byte)
  assert found.tolist() == counted(closes, documents, is_byte)
  number = patch_lengths.numbers(closes, documents)[documents > 0]
  assert np.all(np.isin(np.diff(number), [0, 1]))


def test_statistics():
  lengths = np.array([1, 1, 1, 2, 3, 16, 17, 32, 33, 70])
  found = patch_lengths.statistics(lengths, cut=4)
  assert found.bytes == 176
  assert found.patches == 10
  assert found.mean == pytest.approx(17.6)
  assert found.median == 9.5
  assert (found.longest, found.single, found.cut) == (70, 0.3, 0.4)
  assert [line for line in found.histogram if line[2]] == [
    (1, 1, 3), (2, 2, 1), (3, 3, 1), (16, 16, 1), (17, 32, 2), (33, 64, 1),
    (65, 128, 1),
  ]  # fmt: skip
  assert sum(count for *_, count in found.histogram) == 10


def test_statistics_of_nothing():
  found = patch_lengths.statistics(np.zeros(0, np.int64), cut=0)
  assert found == (0, 0, 0.0, 0.0, 0, 0.0, 0.0, ())
  assert dict(patch_lengths.described(found))['mean length'] == '0.000 bytes'
  chosen = patch_lengths.choose([2.0], np.zeros(0), lambda value: 1.0)
  assert chosen == [(2.0, None, 0.0)]


@hypothesis.given(
  st.floats(-10, 10, width=32), st.integers(1, 40), st.booleans()
)
def test_a_number_between_has_few_digits_and_is_between(low, steps, wide):
  high = np.float32(low)
  for _ in range(steps):
    high = np.nextafter(high, np.float32(np.inf))
  high = float(high) + (1.0 if wide else 0.0)
  value = patch_lengths.between(low, high)
  assert low <= np.float32(value) < high
  if wide:
    assert len(repr(abs(value))) <= 5


def test_thresholds_are_found_among_all():
  rng = np.random.default_rng(0)
  scores = rng.gamma(2.0, 1.0, 300).astype(np.float32)
  scores[rng.integers(0, 300, 60)] = scores[0]  # Many equal ones: a leap.

  def mean_at(value):
    return len(scores) / (1 + np.sum(scores[:-1] > np.float32(value)))

  edges = np.unique(scores)
  possible = [mean_at(edge) for edge in edges] + [mean_at(edges[0] - 1)]
  for wanted in (1.0, 1.2, 1.5, 2.0, 3.3, 4.5, 8.0, 250.0):
    (found,) = patch_lengths.choose([wanted], scores, mean_at)
    assert found.mean == mean_at(found.value)
    best = min(abs(mean - wanted) for mean in possible)
    assert abs(found.mean - wanted) == pytest.approx(best)
  assert patch_lengths.choose([0.5, 400.0], scores, mean_at) == [
    (0.5, None, 1.0), (400.0, None, 300.0)
  ]  # fmt: skip
