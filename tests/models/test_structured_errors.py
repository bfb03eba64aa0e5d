"""What structured layers refuse names the layer, the sizes and a way out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import block_rank
from models import core_fit
from models import linear
from models import mixture
from models import projections
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
    (lambda: BTT(factors=((4, 4, 4),)), ('(4, 4, 4)', '2 whole numbers')),
    (lambda: BTT(factors=((4, 0),)), ('(4, 0)', '((8, 8), (16, 16))')),
    (
      lambda: structured.Kronecker(factors=()),
      ('Kronecker factors=()', '2 whole numbers'),
    ),
    (lambda: structured.Einsum(theta=(1.0, 0.0)), ('seven exponents',)),
    (
      lambda: structured.Einsum(theta=(2, -1, 0, 0, 1, 0, 0)),
      ('-1', 'none negative'),
    ),
    (
      lambda: structured.Einsum(theta=(float('nan'), 0, 1, 0, 1, 0, 0)),
      ('nan', 'as (0.5, 0.0, 0.5, 0.0, 0.5, 0.5, 0.0)'),
    ),
    (
      lambda: block_rank.BlockDense(rank=6),
      ('BlockDense rank=6', 'multiple of blocks=4', 'as 16'),
    ),
    (lambda: block_rank.Blast(rank=0), ('Blast rank=0', 'at least 1')),
    (lambda: block_rank.Blast(blocks=0), ('Blast blocks=0', 'at least 1')),
    (
      lambda: linear.Roles(mlp=BTT()),
      ("unknown role 'mlp' for BlockTensorTrain", 'default, attention, feed_'),
    ),
    (lambda: linear.Roles(BTT(), hed=BTT()), ("'hed'", 'as head')),
    (lambda: linear.Roles(head='btt'), ("head='btt'", 'linear.Dense()')),
    (lambda: linear.Roles(None), ('default=None', 'must be a prototype')),
    (lambda: linear.Roles(*[BTT()] * 6), ('6 prototypes', 'by its name')),
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
    (
      structured.Einsum(theta=(0.5, 0.0, 0.3, 0, 0.5, 0.5, 0)),
      (
        'query 16 -> 24',
        'not to 0.8 and 1',
        'use (0.625, 0.0, 0.375, 0.0, 0.5, 0.5, 0)',
      ),
    ),
    (
      structured.Einsum(theta=(0.5, 0.0, 0.5, 0, 0, 0, 0)),
      ('not to 1 and 0', 'use (0.5, 0.0, 0.5, 0.0, 0.5, 0.5, 0)'),
    ),
    (
      BTT(factors=((4, 4), (4, 5))),
      ('query 16 -> 24', '((4, 4), (4, 5)) multiply to 24', 'add (4, 6)'),
    ),
    (
      structured.Kronecker(factors=((3, 8),)),
      ('query 16 -> 24', 'multiply to 16', 'add (4, 4)'),
    ),
    (
      block_rank.BlockDense(rank=20),
      ('query 16 -> 24', 'rank=20', 'at most 16'),
    ),
    (
      block_rank.BlockDense(blocks=17),
      ('query 16 -> 24', 'blocks=17', 'at most 16'),
    ),
    (
      block_rank.Blast(rank=17),
      ('query 16 -> 24', 'rank=17', 'at most 16'),
    ),
    (
      block_rank.Blast(blocks=17),
      ('query 16 -> 24', 'blocks=17', 'at most 16'),
    ),
    (
      mixture.Mixture(expert=BTT(rank=9), experts=2),
      ('query/experts', '16 -> 24', 'rank=9', 'at most 4'),
    ),
  ],
)
def test_bad_sizes_name_the_layer_and_a_way_out(layer, words):
  with pytest.raises(ValueError) as error:
    jax.eval_shape(Net(layer).init, jax.random.key(0), jnp.zeros((1, 16)))
  assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
  ('layer', 'valid'),
  [
    (
      structured.Einsum(theta=(0.5, 0.0, 0.3, 0, 0.5, 0.5, 0)),
      {'theta': (0.625, 0.0, 0.375, 0.0, 0.5, 0.5, 0)},
    ),
    (BTT(factors=((4, 4),)), {'factors': ((4, 4), (4, 6))}),
    (BTT(rank=9), {'rank': 4}),
    (block_rank.BlockDense(rank=20), {'rank': 16}),
    (block_rank.Blast(rank=17), {'rank': 16}),
  ],
)
def test_what_an_error_advises_is_valid(layer, valid):
  with pytest.raises(ValueError):
    layer.chain(16, 24)
  assert layer.copy(**valid).chain(16, 24).rank > 0


def test_a_matrix_that_cannot_be_converted_is_named():
  matrix = np.ones((16, 24))
  matrix[3, 5:7] = np.nan, np.inf
  for given, words in (
    (matrix, '(16, 24) with 2 entries that are not finite'),
    (np.ones((16, 25)), '(16, 25) with 0 entries'),
  ):
    with pytest.raises(ValueError) as error:
      core_fit.from_dense(BTT().chain(16, 24), given, where='query')
    assert str(error.value).startswith('query 16 -> 24: ')
    assert words in str(error.value)
  one = projections.Projection('up', linear.Dense(), 16, 24, 1, None)
  target = one._replace(path='block_0/up', layer=BTT())
  with pytest.raises(ValueError, match=r'block_0/up 16 -> 24: .* 2 entries'):
    projections._convert(one, target, {'kernel': matrix})


def test_factors_are_taken_as_they_are_given():
  layer = BTT(factors=((2, 8), (6, 4)))
  assert layer.chain(16, 24).shapes == ((8, 2, 6), (6, 8, 4))


def test_a_prototype_without_features_is_refused():
  with pytest.raises(ValueError, match='features=0'):
    structured.Monarch().init(jax.random.key(0), jnp.zeros((1, 16)))


def test_prototypes_are_hashable_values():
  assert len({BTT(), BTT(rank=1), BTT(rank=2), linear.Dense()}) == 3
