"""Certified ids against exact linear programs and a constructed bottleneck."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from scipy import special

from samplers import support


@jax.jit
def decide(basis_VC, p_BV, id_B, threshold_B1):
  active_B = jnp.ones(len(id_B), bool)
  geometry = support.whiten(basis_VC, p_BV)
  return support.decide(geometry, id_B, threshold_B1, active_B)


def is_feasible(basis_VC, p_V, own, threshold):
  """Is there a law without id `own`, by HiGHS in float64, in r = (q - p) / p.

  In these units the rows of the program are of order one.
  """
  others_V = np.arange(len(p_V)) != own
  basis_VC = basis_VC - p_V @ basis_VC
  rows_EV = np.concatenate([np.ones((1, len(p_V))), basis_VC.T])
  left = rows_EV[:, others_V] * p_V[others_V] / p_V[own]
  scale_E1 = np.abs(left).max(axis=1, keepdims=True)
  found = optimize.linprog(
    np.zeros(left.shape[1]),
    A_eq=left / scale_E1,
    b_eq=rows_EV[:, own] / scale_E1[:, 0],
    bounds=(-1.0, threshold / (1 - threshold)),
    method='highs',
  )
  assert found.status in (0, 2)
  return found.status == 0


def draw_logits(rng, kind, size):
  noise_V = rng.normal(size=size)
  rank_V = rng.permutation(size)
  return {
    'text': -1.3 * np.log1p(rank_V) + 0.5 * noise_V,
    'flat': noise_V,
    'wide': 3 * noise_V,
    'peaked': noise_V - 1.3 * np.log1p(rank_V) + 5.0 * (rank_V == 0),
  }[kind]


def questions(seed, kind, size, count):
  """Laws, an id below the threshold of each, and the threshold."""
  rng = np.random.default_rng(seed)
  laws, ids, thresholds = [], [], []
  while len(ids) < count:
    p_V = special.softmax(draw_logits(rng, kind, size)).astype(np.float32)
    threshold = p_V.max() * np.exp(rng.uniform(np.log(0.02), np.log(0.7)))
    below = np.flatnonzero((p_V < threshold) & (p_V > 1e-3 * threshold))
    if below.size:
      laws.append(p_V)
      ids.append(rng.choice(below))
      thresholds.append([threshold])
  return (
    np.array(laws),
    np.array(ids, np.int32),
    np.array(thresholds, np.float32),
  )


SHAPES = ((40, 4), (60, 8), (100, 16), (180, 20), (200, 6))
KINDS = ('text', 'flat', 'wide', 'peaked')


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_every_decision_is_that_of_a_linear_program(shape):
  """400 per shape, 2000 in all."""
  size, columns = shape
  rng = np.random.default_rng(size)
  output_VD = rng.normal(size=(size, 32)) * np.linspace(3, 0.3, 32)
  basis_VC = support.columns(output_VD, columns)
  counts = np.zeros(2, int)
  for number, kind in enumerate(KINDS):
    p_BV, id_B, threshold_B1 = questions(number, kind, size, 100)
    status_B = np.asarray(decide(basis_VC, p_BV, id_B, threshold_B1))
    for row, status in enumerate(status_B):
      feasible = is_feasible(
        basis_VC.astype(np.float64),
        p_BV[row].astype(np.float64),
        id_B[row],
        float(threshold_B1[row, 0]),
      )
      expected = support.REJECTED if feasible else support.CERTIFIED
      assert status == expected, f'{kind} row {row}'
      counts[int(feasible)] += 1
  assert counts.min() > 40, counts


def test_threshold_alone_decides_without_a_basis():
  p_BV, id_B, _ = questions(0, 'text', 50, 40)
  own_B1 = p_BV[np.arange(40), id_B][:, None]
  none_VC = np.zeros((50, 0), np.float32)
  for factor, expected in (
    (0.9, support.CERTIFIED),
    (1.1, support.REJECTED),
  ):
    status_B = decide(none_VC, p_BV, id_B, own_B1 * np.float32(factor))
    np.testing.assert_array_equal(status_B, expected)


def test_decision_does_not_depend_on_neighbours_or_units():
  size = 120
  output_VD = np.random.default_rng(1).normal(size=(size, 9))
  p_BV, id_B, threshold_B1 = questions(5, 'flat', size, 12)
  basis_VC = support.columns(output_VD, 9)
  together_B = decide(basis_VC, p_BV, id_B, threshold_B1)
  assert len(set(np.asarray(together_B).tolist())) == 2
  for row in range(12):
    one = slice(row, row + 1)
    alone_1 = decide(basis_VC, p_BV[one], id_B[one], threshold_B1[one])
    assert alone_1[0] == together_B[row]
  # A constant that is added to all logits says nothing.
  other_VC = support.columns(1e3 * output_VD + 7.0, 9)
  other_B = decide(other_VC, p_BV, id_B, threshold_B1)
  np.testing.assert_array_equal(other_B, together_B)


def bottleneck(seed, size, width):
  """An output layer, a law with zeros, and the best law that the layer has."""
  rng = np.random.default_rng(seed)
  output_VD = rng.normal(size=(size, width))
  true_V = rng.dirichlet(np.full(size, 0.3))
  true_V[rng.permutation(size)[: size // 2]] = 0.0
  true_V /= true_V.sum()

  def loss(hidden_D):
    logits_V = output_VD @ hidden_D
    p_V = special.softmax(logits_V)
    value = special.logsumexp(logits_V) - true_V @ logits_V
    return value, output_VD.T @ (p_V - true_V)

  found = optimize.minimize(
    loss, np.zeros(width), jac=True, method='BFGS', options={'gtol': 1e-10}
  )
  p_V = special.softmax(output_VD @ found.x)
  np.testing.assert_allclose(output_VD.T @ (p_V - true_V), 0, atol=1e-7)
  return output_VD, true_V, p_V


def test_certified_ids_of_a_bottleneck_are_in_the_true_support():
  decided = below = 0
  for seed in range(6):
    output_VD, true_V, p_V = bottleneck(seed, 40, 12)
    delta = np.max(np.log(true_V[true_V > 0]) - np.log(p_V[true_V > 0]))
    threshold = 1 - np.exp(-delta)
    ids_B = np.arange(40)
    p_BV = np.tile(p_V.astype(np.float32), (40, 1))
    threshold_B1 = np.full((40, 1), threshold, np.float32)
    for columns in (5, 12):
      basis_VC = support.columns(output_VD, columns)
      status_B = np.asarray(decide(basis_VC, p_BV, ids_B, threshold_B1))
      certified_B = status_B == support.CERTIFIED
      assert not np.any(certified_B & (true_V == 0))
      decided += certified_B.sum()
      below += np.sum(certified_B & (p_V < threshold))
  # More than the threshold rule could prove.
  assert below > 10, (decided, below)


def test_every_product_is_of_full_float32():
  # An accelerator would round the factors, and prove what is not so.
  rng = np.random.default_rng(0)
  basis_VC = support.columns(rng.normal(size=(50, 9)), 6)
  program = decide.lower(basis_VC, *questions(0, 'text', 50, 2)).as_text()
  products = [line for line in program.splitlines() if 'dot_general' in line]
  assert len(products) > 10
  for line in products:
    assert 'precision = [HIGHEST, HIGHEST]' in line, line


def test_output_layer_must_be_finite():
  with pytest.raises(ValueError, match=r'output layer of shape .* finite'):
    support.columns(np.full((4, 2), np.nan), 2)
