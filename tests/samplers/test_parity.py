"""Kept sets against transformers' warpers, token for token.

Cases and counts are those of `bench.parity`.
"""

import jax
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as warpers

from bench import parity
from samplers import entropy
from samplers import truncation


@jax.jit
def apply(rule, logits_BV):
  return rule(logits_BV)


@pytest.mark.parametrize('size', parity.SIZES)
@pytest.mark.parametrize('name', parity.CASES)
def test_kept_set_is_that_of_transformers(name, size):
  found = parity.count(parity.CASES[name], size)
  knobs = len(parity.CASES[name].knobs)
  assert found.decisions == 11 * knobs * parity.ROWS * size
  assert (found.wrong, found.theirs_wrong) == (0, 0)
  assert found.soft <= 1e-4 * found.decisions
  # By value, or by the order of a sort.
  has_ties = name in ('top_p', 'top_h_of_100')
  assert (found.ties > 0) == has_ties


@pytest.mark.parametrize('name', parity.CASES)
def test_ties_stay_together(name):
  case = parity.CASES[name]
  for logits_BV in parity.families(260).values():
    for knob in case.knobs:
      kept_BV = parity.kept_by_us(case.rule, knob, logits_BV)
      for logits_V, kept_V in zip(logits_BV, kept_BV, strict=True):
        assert not np.intersect1d(logits_V[kept_V], logits_V[~kept_V]).size


def test_counts_of_a_hand_made_case(monkeypatch):
  logits_BV = np.array([[3.0, 2.0, 2.0, 1.0, 0.0]], np.float32)
  sets = {
    'ours': np.array([[True, True, True, False, True]]),
    'theirs': np.array([[True, False, True, False, False]]),
  }
  monkeypatch.setattr(parity, 'kept_by_us', lambda *_: sets['ours'])
  monkeypatch.setattr(parity, 'kept_by_them', lambda *_: sets['theirs'])
  stays_BV = np.array([[True, False, False, True, False]])
  goes_BV = np.array([[False, False, False, False, True]])
  case = parity.Case(object, '', lambda *_: (stays_BV, goes_BV), ())
  # Both drop what stays, we keep what goes; the second was cut from the third.
  found = parity.compare(case, logits_BV, 0.5)
  assert found == parity.Counts(5, 2, 1, 1, 1)


def test_min_keep_is_that_of_transformers():
  logits_BV = parity.families(260)['text']
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
    theirs_BV = warper(None, torch.tensor(logits_BV)).numpy() > -np.inf
    np.testing.assert_array_equal(kept_BV, theirs_BV)


def test_whole_chain_is_that_of_transformers():
  # Probabilities, and not only kept sets, after all warpers in their order.
  logits_BV = parity.families(32000)['text']
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


def test_rows_are_per_rule_and_in_all(monkeypatch):
  names = 'top_k', 'min_p'
  cases = {name: parity.CASES[name] for name in names}
  monkeypatch.setattr(parity, 'CASES', cases)
  monkeypatch.setattr(
    parity, 'count', lambda case, size: parity.Counts(size, 0, 0, 2, 3)
  )
  found = list(parity.rows((260, 32000)))
  assert [row['rule'] for row in found] == [*names, 'all']
  assert [row['decisions'] for row in found] == ['32,260', '32,260', '64,520']
  assert [row['soft: rounding'] for row in found] == ['4', '4', '8']
  assert [row['ties: sort order'] for row in found] == ['6', '6', '12']
