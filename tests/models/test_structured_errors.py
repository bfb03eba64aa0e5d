"""What structured layers refuse names the layer, the sizes and a way out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from models import linear
from models import structured

BTT = structured.BlockTensorTrain


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda: structured.LowRank(rank=0), ('rank=0', 'at least 1')),
    (lambda: structured.LowRank(rank=2, fraction=0.1), ('set one',)),
    (lambda: structured.LowRank(fraction=1.5), ('fraction=1.5', 'at most 1')),
    (lambda: structured.Monarch(blocks=0), ('blocks=0', 'at least 1')),
    (lambda: structured.TensorTrain(cores=1), ('cores=1', 'at least 2')),
    (lambda: BTT(factors='even'), ("'even'", "'balanced', 'greedy'")),
    (
      lambda: structured.Einsum(theta=(0.5, 0.0, 0.4, 0, 0.5, 0.5, 0)),
      ('0.4', '(0.9, 1.0)', '(0.5, 0.0, 0.5, 0.0, 0.5, 0.5, 0.0)'),
    ),
    (lambda: structured.Einsum(theta=(1.0, 0.0)), ('seven exponents',)),
  ],
)
def test_bad_fields(make, words):
  with pytest.raises(ValueError) as error:
    make()
  assert all(word in str(error.value) for word in words), error.value


class Net(nn.Module):
  layer: nn.Module

  @nn.compact
  def __call__(self, x):
    return self.layer.copy(name='query', features=24)(x)


@pytest.mark.parametrize(
  ('layer', 'words'),
  [
    (BTT(rank=9), ('query 16 -> 24', 'rank=9', 'at most 4')),
    (structured.LowRank(rank=17), ('query 16 -> 24', 'rank=17', 'at most 16')),
    (structured.Monarch(blocks=17), ('query 16 -> 24', 'at most 16')),
    (
      structured.Einsum(theta=(0.5, 0, 0.5, 0, 0.5, 0.5, 0.9)),
      ('query 16 -> 24', 'rank=12', 'at most 4'),
    ),
    (
      structured.Einsum(theta=(0.5, 0, 0.5, 0, 0.5, 0.5, 0), tolerance=-1),
      ('query 16 -> 24', 'use the width 16'),
    ),
  ],
)
def test_bad_sizes_name_the_layer_and_a_way_out(layer, words):
  with pytest.raises(ValueError) as error:
    Net(layer).init(jax.random.key(0), jnp.zeros((1, 16)))
  assert all(word in str(error.value) for word in words), error.value


def test_a_prototype_without_features_is_refused():
  with pytest.raises(ValueError, match='features=0'):
    structured.Monarch().init(jax.random.key(0), jnp.zeros((1, 16)))


def test_prototypes_are_hashable_values():
  assert len({BTT(), BTT(rank=1), BTT(rank=2), linear.Dense()}) == 3
