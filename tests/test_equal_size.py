"""Networks of other structures that take as many numbers."""

import pytest

from bounds import structure
from configs import equal_size
from models import linear
from models import lm

MODEL = lm.ByteLM(
  width=32, layers=2, heads=2, key_value_heads=1, hidden=64,
  vocabulary_size=40,
)  # fmt: skip
WEIGHTS = equal_size.count(MODEL, structure.PLAIN)


def by_hand(model):
  """Weights of a dense network."""
  width, hidden = model.width, model.hidden
  keys = width // model.heads * model.key_value_heads
  layer = 2 * width**2 + 2 * width * keys + 3 * width * hidden + 2 * width
  return 2 * 40 * width + model.layers * layer + width


def test_dense_network_of_its_own_size_is_itself():
  assert by_hand(MODEL) == WEIGHTS
  dense = equal_size.Kind('dense', linear.Dense())
  assert equal_size.sized(MODEL, dense, WEIGHTS) == MODEL
  twice = equal_size.sized(MODEL, dense, 2 * WEIGHTS)
  assert 1.85 * WEIGHTS < by_hand(twice) <= 2 * WEIGHTS
  with pytest.raises(ValueError, match='dense has at most 10 weights'):
    equal_size.sized(MODEL, dense, 10)


def test_shared_blocks_make_a_wider_network_of_the_same_size():
  kind = equal_size.Kind('shared', linear.Dense(), structure.Shared(1))
  wider = equal_size.sized(MODEL, kind, WEIGHTS)
  assert wider.width > MODEL.width
  once = by_hand(wider.clone(layers=1))
  assert 0.92 * WEIGHTS < once <= WEIGHTS
  assert equal_size.count(wider, kind.structure) == once


@pytest.mark.slow
@pytest.mark.parametrize('kind', equal_size.KINDS, ids=lambda kind: kind.name)
def test_every_kind_fits(kind):
  aim = kind.scale * WEIGHTS
  found = equal_size.sized(MODEL, kind, round(aim))
  assert 0.85 * aim < equal_size.count(found, kind.structure) <= aim
