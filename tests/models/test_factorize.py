"""Factors of widths: balanced, padded upwards, never short of a feature."""

import itertools
import math

from models import factorize


def test_factors():
  pairs = {768: (24, 32), 3072: (48, 64), 640: (20, 32), 2560: (40, 64)}
  for size, factors in pairs.items():
    assert factorize.balanced(size) == factors
  assert factorize.greedy(768) == (16, 48)
  assert factorize.greedy(2560) == (32, 80)
  assert factorize.greedy(50257) == (29, 1733)
  for size, parts in itertools.product(range(1, 300), (2, 3)):
    factors = factorize.balanced(size, parts)
    assert size <= math.prod(factors) <= 1.2 * size + 3
    assert factors[-1] <= 4 * factors[0]


def test_exponents_never_drop_a_feature():
  for size in range(1, 300):
    factors = factorize.by_exponents(size, (1 / 3, 0.0, 2 / 3))
    assert math.prod(factors) >= size and factors[1] == 1
  assert factorize.by_exponents(256, (1 / 3, 0.0, 2 / 3)) == (8, 1, 32)
