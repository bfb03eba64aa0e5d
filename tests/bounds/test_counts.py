"""Tables of counts against counting with dictionaries."""

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from bounds import codec
from bounds import counts

RNG = np.random.default_rng(0)
CLASSES = 5
SIZES = (40, 1, 60, 99)
PLACES = np.concatenate([np.arange(size) for size in SIZES])
STREAM = RNG.choice(CLASSES, len(PLACES), p=[0.4, 0.3, 0.2, 0.07, 0.03])
OPTIONS = counts.Options(0, CLASSES, 3, least=2, weight=3)
LEVELS = counts.count(STREAM, PLACES, OPTIONS)
FILE = counts.encode(LEVELS, OPTIONS)


def contexts(order):
  """Successor counts of contexts of that length within a document."""
  table = collections.defaultdict(collections.Counter)
  for index, place in enumerate(PLACES):
    if place >= order:
      table[tuple(STREAM[index - order : index])][STREAM[index]] += 1
  return table


def expected(context, least):
  """Witten-Bell by recursion on dictionaries; None if it is not listed."""
  shorter = np.full(CLASSES, 1 / CLASSES)
  for order in range(len(context) + 1):
    suffix = context[len(context) - order :]
    for length in range(1, order + 1):
      head = contexts(length - 1)[suffix[: length - 1]]
      if head[suffix[length - 1]] < least:
        return None
    seen = contexts(order)[suffix]
    kept = {s: n for s, n in seen.items() if n >= least}
    count = np.zeros(CLASSES)
    for successor, n in kept.items():
      count[successor] = 2 ** (np.rint(2 * np.log2(n)) / 2)
    extra = max(0.75 * len(kept), 1e-3)
    shorter = (count + extra * shorter) / (count.sum() + extra)
  return shorter


def test_scores_are_those_of_the_longest_listed_context():
  predictions = counts.predict(LEVELS, OPTIONS.weight / 4)
  probability, entropy, rank = counts.score(LEVELS, predictions, STREAM, PLACES)
  for index, place in enumerate(PLACES):
    for order in range(min(3, place), -1, -1):
      p = expected(tuple(STREAM[index - order : index]), 2)
      if p is not None:
        break
    assert probability[index] == pytest.approx(p[STREAM[index]], rel=1e-9)
    assert entropy[index] == pytest.approx(-(p * np.log2(p)).sum(), rel=1e-5)
    above = p - p[STREAM[index]]
    ties = np.abs(above[: STREAM[index]]) < 1e-12
    assert rank[index] == (above > 1e-12).sum() + ties.sum()


def test_probabilities_sum_to_one():
  for p_RC in counts.predict(LEVELS, 0.75).probability:
    np.testing.assert_allclose(p_RC.sum(1), 1, atol=1e-12)
    assert p_RC.min() > 0


def test_file_holds_the_table():
  levels, options = counts.decode(FILE)
  assert options == OPTIONS
  for one, other in zip(LEVELS, levels, strict=True):
    np.testing.assert_array_equal(one.bucket_RC, other.bucket_RC)
    np.testing.assert_array_equal(one.suffix_R, other.suffix_R)
  assert counts.encode(levels, options) == FILE


def test_damage_is_refused():
  for size in range(len(FILE)):
    with pytest.raises(ValueError, match=r'cut short|no model file'):
      counts.decode(FILE[:size])
  for place in range(8 * len(FILE)):
    data = bytearray(FILE)
    data[place // 8] ^= 1 << place % 8
    with pytest.raises(ValueError, match=r'damaged|cut short|version'):
      counts.decode(bytes(data))


@hypothesis.given(strategies.binary(max_size=80))
def test_bodies_of_chance_raise_value_errors_only(body):
  try:
    counts.decode(codec.sealed(body, counts.MAGIC))
  except ValueError as error:
    assert str(error)


def test_future_does_not_matter():
  changed = STREAM.copy()
  changed[120:] = RNG.integers(CLASSES, size=len(STREAM) - 120)
  predictions = counts.predict(LEVELS, 0.75)
  one = counts.score(LEVELS, predictions, STREAM, PLACES)
  other = counts.score(LEVELS, predictions, changed, PLACES)
  for a, b in zip(one, other, strict=True):
    np.testing.assert_array_equal(a[:120], b[:120])
