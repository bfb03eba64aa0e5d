"""Kept sets against transformers' warpers, token for token.

A float64 evaluation says which decisions are hard; rounding may move only those
within a tolerance of the boundary (soft), and sort order only those of a group
of equal logits that the boundary cuts (tie), which we keep whole.
"""

import jax
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as warpers

from samplers import entropy
from samplers import truncation

ROWS = 8


@jax.jit
def apply(rule, logits_BV):
  return rule(logits_BV)


def families(size):
  rng = np.random.default_rng(size)
  gauss = rng.normal(size=(ROWS, size)) * 3
  rank = rng.permuted(np.tile(np.arange(size), (ROWS, 1)), axis=1)
  text = -1.3 * np.log1p(rank) + 0.3 * rng.normal(size=(ROWS, size))
  holes = np.where(rng.random((ROWS, size)) < 0.6, -np.inf, gauss)
  holes[:, size // 2] = 0.0
  one = np.full((ROWS, size), -np.inf)
  one[np.arange(ROWS), rng.integers(0, size, ROWS)] = 1.5
  bits = gauss.astype(np.float32).view(np.uint32) & 0xFFFF0000
  return {
    'gauss': gauss,
    'text': text,
    'peaked': gauss + np.where(rank == 0, 40.0, 0.0),
    'flat': 1e-3 * gauss,
    'constant': np.full((ROWS, size), -3.0),
    'ties': np.round(gauss),
    'signed_zeros': np.where(rng.random((ROWS, size)) < 0.5, -0.0, 0.0),
    'bfloat16': bits.view(np.float32),
    'holes': holes,
    'one': one,
    'huge': gauss * 1e30,
  }


NAMES = tuple(families(8))


def exact(logits_BV):
  """p, log p and H in float64."""
  logits_BV = logits_BV.astype(np.float64)
  shifted_BV = logits_BV - logits_BV.max(axis=1, keepdims=True)
  log_p_BV = shifted_BV - np.log(np.exp(shifted_BV).sum(axis=1, keepdims=True))
  p_BV = np.exp(log_p_BV)
  with np.errstate(invalid='ignore'):
    terms_BV = np.where(p_BV > 0, -p_BV * log_p_BV, 0.0)
  return p_BV, log_p_BV, terms_BV.sum(axis=1)


def mass_up_to(sorted_N, weights_N, at_N, side):
  """Weight of what sorts before (left) or up to and with (right) a value."""
  sums_N = np.concatenate([[0.0], np.cumsum(weights_N)])
  return sums_N[np.searchsorted(sorted_N, at_N, side)]


# Each gives [B, V] bounds in float64: a token stays for sure where the first is
# True, and goes for sure where the second is.


def top_k_bounds(logits_BV, k):
  kept_BV = logits_BV >= np.sort(logits_BV, axis=1)[:, -k][:, None]
  return kept_BV, ~kept_BV


def near(quantity_BV, bound, slack):
  with np.errstate(invalid='ignore'):
    return quantity_BV > bound + slack, quantity_BV < bound - slack


def or_best(logits_BV, bounds):
  best_BV = logits_BV == logits_BV.max(axis=1, keepdims=True)
  return bounds[0] | best_BV, bounds[1] & ~best_BV


def or_some_best(logits_BV, bounds):
  """Where sort order may drop all but one of the best."""
  best_BV = logits_BV == logits_BV.max(axis=1, keepdims=True)
  alone_BV = best_BV & (best_BV.sum(axis=1, keepdims=True) == 1)
  stays_BV, goes_BV = bounds
  return stays_BV & ~best_BV | alone_BV, goes_BV & ~best_BV


def min_p_bounds(logits_BV, m):
  log_p_BV = exact(logits_BV)[1]
  gap_BV = log_p_BV - log_p_BV.max(axis=1, keepdims=True)
  return or_best(logits_BV, near(gap_BV, np.log(m), 1e-5))


def epsilon_bounds(logits_BV, epsilon):
  return or_best(logits_BV, near(exact(logits_BV)[1], np.log(epsilon), 1e-5))


def eta_bounds(logits_BV, epsilon):
  _, log_p_BV, entropy_B = exact(logits_BV)
  bound_B = np.minimum(np.log(epsilon), np.log(epsilon) / 2 - entropy_B)
  return or_best(logits_BV, near(log_p_BV, bound_B[:, None], 3e-5))


def top_p_bounds(logits_BV, p):
  stays_BV, goes_BV = np.zeros((2, *logits_BV.shape), bool)
  for row, (logits_V, p_V) in enumerate(
    zip(logits_BV, exact(logits_BV)[0], strict=True)
  ):
    order = np.argsort(logits_V)
    sums = [logits_V[order], p_V[order], logits_V]
    # Cumulative mass of the token if it is the first or the last of its ties.
    first_V = mass_up_to(*sums, 'left') + p_V
    last_V = mass_up_to(*sums, 'right')
    stays_BV[row], goes_BV[row] = first_V > 1 - p + 3e-6, last_V < 1 - p - 3e-6
  return or_some_best(logits_BV, (stays_BV, goes_BV))


def typical_bounds(logits_BV, mass):
  stays_BV, goes_BV = np.zeros((2, *logits_BV.shape), bool)
  p_BV, log_p_BV, entropy_B = exact(logits_BV)
  for row in range(ROWS):
    d_V, p_V = np.abs(-log_p_BV[row] - entropy_B[row]), p_BV[row]
    order = np.argsort(d_V)
    slack_V = 3e-5 * np.maximum(1.0, np.where(np.isinf(d_V), 1.0, d_V))
    before_V = mass_up_to(d_V[order], p_V[order], d_V - slack_V, 'left')
    around_V = mass_up_to(d_V[order], p_V[order], d_V + slack_V, 'right')
    stays_BV[row] = around_V - p_V < mass - 1e-5
    goes_BV[row] = before_V > mass + 1e-5
  return stays_BV, goes_BV


def top_h_bounds(logits_BV, alpha):
  stays_BV, goes_BV = np.zeros((2, *logits_BV.shape), bool)
  for row, logits_V in enumerate(logits_BV):
    order = np.argsort(-logits_V)
    best_N = logits_V[order[:100]]
    p_1N, log_p_1N, entropy_1 = exact(best_N[None])
    with np.errstate(invalid='ignore'):
      terms_N = np.where(p_1N > 0, -p_1N * log_p_1N, 0.0)[0]
    limit = alpha * entropy_1[0]
    term_V = np.zeros(len(logits_V))
    term_V[order[:100]] = terms_N
    # Those tied with the hundredth have its term too, but may be left out.
    term_V[logits_V == best_N[-1]] = terms_N[-1]
    sums = [-best_N, terms_N, -logits_V]
    first_V = mass_up_to(*sums, 'left') + term_V
    last_V = mass_up_to(*sums, 'right')
    slack = 1e-5 * max(limit, 1e-3)
    cut_V = (logits_V == best_N[-1]) & ((logits_V == best_N[-1]).sum() > 1)
    stays_BV[row] = (last_V < limit - slack) & (logits_V >= best_N[-1]) & ~cut_V
    goes_BV[row] = (first_V > limit + slack) | (logits_V < best_N[-1])
    goes_BV[row] |= np.exp(logits_V - logits_V.max()) == 0
  return or_some_best(logits_BV, (stays_BV, goes_BV))


CASES = {
  'top_k': (
    truncation.TopK,
    lambda k: warpers.TopKLogitsWarper(k),
    top_k_bounds,
    (1, 7, 50, 200),
  ),
  'top_p': (
    truncation.TopP,
    warpers.TopPLogitsWarper,
    top_p_bounds,
    (0.01, 0.5, 0.9, 0.999),
  ),
  'typical': (
    entropy.Typical,
    warpers.TypicalLogitsWarper,
    typical_bounds,
    (0.2, 0.9, 0.95),
  ),
  'min_p': (
    truncation.MinP,
    warpers.MinPLogitsWarper,
    min_p_bounds,
    (0.01, 0.1, 1.0),
  ),
  'epsilon': (
    entropy.Epsilon,
    warpers.EpsilonLogitsWarper,
    epsilon_bounds,
    (3e-4, 9e-3, 0.2),
  ),
  'eta': (
    entropy.Eta,
    warpers.EtaLogitsWarper,
    eta_bounds,
    (3e-4, 2e-3, 0.1),
  ),
  'top_h': (
    entropy.TopHOfHundred,
    warpers.TopHLogitsWarper,
    top_h_bounds,
    (0.1, 0.4, 0.95),
  ),
}


def kept_by_us(kind, knob, logits_BV):
  # A copy of its own, which nobody changes while JAX reads it.
  rule = kind(np.full(ROWS, knob, int if kind is truncation.TopK else float))
  result_BV = np.asarray(apply(rule, np.array(logits_BV)).block_until_ready())
  kept_BV = result_BV > -np.inf
  np.testing.assert_array_equal(result_BV[kept_BV], logits_BV[kept_BV])
  return kept_BV


def kept_by_them(warper, logits_BV):
  result_BV = warper(None, torch.tensor(logits_BV)).numpy()
  return result_BV > -np.inf


@pytest.mark.parametrize('size', [260, 32000])
@pytest.mark.parametrize('name', CASES)
def test_kept_set_is_that_of_transformers(name, size):
  kind, warper, bounds, knobs = CASES[name]
  decisions = soft = 0
  for family, logits_BV in families(size).items():
    logits_BV = logits_BV.astype(np.float32)
    finite_BV = logits_BV > -np.inf
    for knob in knobs:
      ours_BV = kept_by_us(kind, knob, logits_BV)
      theirs_BV = kept_by_them(warper(knob), logits_BV)
      stays_BV, goes_BV = bounds(logits_BV, knob)
      case = f'{name}({knob}) on {family}'
      assert not np.any(stays_BV & goes_BV & finite_BV), case
      for kept_BV in (ours_BV, theirs_BV):
        assert not np.any(stays_BV & finite_BV & ~kept_BV), case
        assert not np.any(goes_BV & kept_BV), case
      for logits_V, ours_V, theirs_V in zip(
        logits_BV, ours_BV, theirs_BV, strict=True
      ):
        assert not np.intersect1d(logits_V[ours_V], logits_V[~ours_V]).size
        values, counts = np.unique(logits_V, return_counts=True)
        tied_V = np.isin(logits_V, values[counts > 1])
        decisions += len(logits_V)
        soft += np.sum((ours_V != theirs_V) & ~tied_V)
  assert soft <= 1e-4 * decisions, f'{soft} of {decisions} differ by rounding'


def test_min_keep_is_that_of_transformers():
  logits_BV = families(260)['text'].astype(np.float32)
  pairs = (
    (truncation.TopP(0.05, 5), warpers.TopPLogitsWarper(0.05, -np.inf, 5)),
    (truncation.TopK(2, 5), warpers.TopKLogitsWarper(2, -np.inf, 5)),
    (truncation.MinP(0.9, 5), warpers.MinPLogitsWarper(0.9, -np.inf, 5)),
    (entropy.Typical(0.01, 5), warpers.TypicalLogitsWarper(0.01, -np.inf, 5)),
    (entropy.Epsilon(0.9, 5), warpers.EpsilonLogitsWarper(0.9, -np.inf, 5)),
    (entropy.Eta(0.9, 5), warpers.EtaLogitsWarper(0.9, -np.inf, 5)),
  )
  for rule, warper in pairs:
    kept_BV = np.asarray(apply(rule, np.array(logits_BV))) > -np.inf
    assert kept_BV.sum(axis=1).min() == 5
    np.testing.assert_array_equal(kept_BV, kept_by_them(warper, logits_BV))


def test_whole_chain_is_that_of_transformers():
  # Probabilities, and not only kept sets, after all warpers in their order.
  logits_BV = families(32000)['text'].astype(np.float32)
  rules = (
    truncation.Temperature(0.8),
    truncation.TopK(200),
    truncation.TopP(0.9),
    truncation.MinP(0.02),
    entropy.Typical(0.8),
    entropy.Eta(2e-3),
  )
  theirs = torch.tensor(logits_BV)
  for warper in (
    warpers.TemperatureLogitsWarper(0.8),
    warpers.TopKLogitsWarper(200),
    warpers.TopPLogitsWarper(0.9),
    warpers.MinPLogitsWarper(0.02),
    warpers.TypicalLogitsWarper(0.8),
    warpers.EtaLogitsWarper(2e-3),
  ):
    theirs = warper(None, theirs)
  ours = np.array(logits_BV)
  for rule in rules:
    ours = apply(rule, ours)
  p_BV = jax.nn.softmax(ours, axis=1)
  assert 2 < np.mean(np.sum(p_BV > 0, axis=1)) < 100
  np.testing.assert_allclose(p_BV, torch.softmax(theirs, 1), atol=1e-6)
