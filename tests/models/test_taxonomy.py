"""The taxonomy of einsum layers against published values and real counts."""

import math

import numpy as np
import pytest

from models import structured
from models import taxonomy


@pytest.mark.parametrize(
  ('theta', 'expected'),
  [
    ((0, 0, 1, 0, 0, 1, 0), (0, 1, 1)),
    ((1 / 2, 0, 1 / 2, 0, 1 / 2, 1 / 2, 0), (0, 1, 1 / 2)),
    ((1 / 2, 0, 1 / 2, 0, 1 / 2, 1 / 2, 1 / 4), (0, 1, 3 / 4)),
    ((1 / 2, 1 / 2, 0, 1 / 2, 1 / 2, 0, 0), (1 / 2, 1, 1 / 2)),
    ((1, 0, 0, 0, 1, 0, 0.3), (0, 0.3, 0.3)),
    ((2 / 3, 0, 1 / 3, 0, 2 / 3, 1 / 3, 0), (0, 2 / 3, 1 / 3)),
    ((1 / 2, 1 / 4, 1 / 4, 1 / 4, 1 / 2, 1 / 4, 0), (1 / 4, 1, 1 / 2)),
    ((1 / 3, 2 / 3, 0, 3 / 4, 1 / 4, 0, 0), (1 / 4, 7 / 12, 1 / 3)),
  ],
)
def test_taxonomy(theta, expected):
  np.testing.assert_allclose(taxonomy.taxonomy(theta), expected, atol=1e-12)


def test_taxonomy_is_the_growth_of_the_counts():
  # Every size is a power of two, so that the exponents are exact.
  theta, width = (1 / 2, 1 / 4, 1 / 4, 1 / 4, 1 / 2, 1 / 4, 1 / 4), 2**16
  small, large = (
    structured.Einsum(theta=theta).chain(d, d) for d in (width, width * 2**4)
  )

  def exponent(name):
    return math.log2(getattr(large, name) / getattr(small, name)) / 4

  found = taxonomy.Taxonomy(
    exponent('macs') - exponent('params'),
    exponent('rank'),
    exponent('macs') - 1,
  )
  np.testing.assert_allclose(found, taxonomy.taxonomy(theta), atol=1e-12)
