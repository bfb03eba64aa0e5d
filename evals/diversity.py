"""Diversity against risk of truncation rules at equal mean risk.

Where a corpus shows which ids can follow, a rule that keeps n ids of the n*
that reach down to the last of them has recall min(1, n / n*) and risk max(0, n
/ n* - 1). Zhou, Keuper and Fritz 2025 (arXiv 2408.13586). One sort per context
gives n for every value of every rule: each id has a critical value of the knob
up to which, or from which on, it is kept.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

# Nodes are N here.


class Sorted(NamedTuple):
  """Laws in float64, the most probable id first."""

  logits_NV: np.ndarray
  log_p_NV: np.ndarray
  entropy_N1: np.ndarray  # nats
  order_NV: np.ndarray  # the ids


class Rule(NamedTuple):
  """critical_NV: an id is kept while the knob is at most (or least) this."""

  critical_NV: np.ndarray
  is_upper: bool  # is it kept up to its critical value?


class Match(NamedTuple):
  """A rule at the knob whose mean risk is nearest to the one asked for."""

  knob: float
  risk: float
  risk_error: float  # standard errors of both means over contexts
  recall: float
  recall_error: float


def sort(logits_NV: np.ndarray) -> Sorted:
  logits_NV = logits_NV.astype(np.float64)
  order_NV = np.argsort(-logits_NV, axis=1, kind='stable')
  logits_NV = np.take_along_axis(logits_NV, order_NV, axis=1)
  shifted_NV = logits_NV - logits_NV[:, :1]
  log_p_NV = shifted_NV - np.log(np.exp(shifted_NV).sum(axis=1, keepdims=True))
  entropy_N1 = -_terms(log_p_NV).sum(axis=1, keepdims=True)
  return Sorted(logits_NV, log_p_NV, entropy_N1, order_NV)


def optimal(laws: Sorted, supports: list[np.ndarray]) -> np.ndarray:
  """[N]: how far down the last id of each support lies; 1 is the first."""
  return np.array(
    [
      np.flatnonzero(np.isin(order_V, support))[-1] + 1
      for order_V, support in zip(laws.order_NV, supports, strict=True)
    ]
  )


def kept(rule: Rule, knob: float) -> np.ndarray:
  """[N]: how many ids a rule leaves, one at least."""
  if rule.is_upper:
    counts_N = np.sum(rule.critical_NV >= knob, axis=1)
  else:
    counts_N = np.sum(rule.critical_NV <= knob, axis=1)
  return np.maximum(counts_N, 1)


def recall_and_risk(
  kept_N: np.ndarray, optimal_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  share_N = kept_N / optimal_N
  return np.minimum(share_N, 1.0), np.maximum(share_N - 1.0, 0.0)


def match(rule: Rule, optimal_N: np.ndarray, risk: float) -> Match:
  """Over all values of the knob: more ids are kept, and risked, one way."""
  knobs = _knobs(rule)
  low, high = 0, len(knobs) - 1
  while low < high:
    middle = (low + high) // 2
    if _measure(rule, knobs[middle], optimal_N).risk < risk:
      low = middle + 1
    else:
      high = middle
  found = [_measure(rule, knobs[i], optimal_N) for i in {max(low - 1, 0), low}]
  return min(found, key=lambda match: abs(match.risk - risk))


def curve(
  rule: Rule, optimal_N: np.ndarray, points: int = 100
) -> list[tuple[float, float]]:
  """Mean risk and mean recall from few to all ids."""
  knobs = _knobs(rule)
  places = np.unique(np.linspace(0, len(knobs) - 1, points).astype(int))
  found = [_measure(rule, knobs[i], optimal_N) for i in places]
  return [(match.risk, match.recall) for match in found]


def rules(laws: Sorted) -> Mapping[str, Rule]:
  """Every rule that needs nothing but the law, by the name of samplers."""
  p_NV, terms_NV = np.exp(laws.log_p_NV), -_terms(laws.log_p_NV)
  before_NV = np.cumsum(p_NV, axis=1) - p_NV
  rank_1V = np.arange(1, p_NV.shape[1] + 1)[None]
  gap_NV = laws.logits_NV[:, :1] - laws.logits_NV
  sigma_N1 = laws.logits_NV.std(axis=1, keepdims=True)
  mass_NV = np.cumsum(p_NV, axis=1)
  prefix_NV = np.cumsum(terms_NV, axis=1) / mass_NV + np.log(mass_NV)
  # The first id is kept by all, which `kept` sees to.
  top_h_NV = prefix_NV / np.maximum(laws.entropy_N1, 1e-300)
  return {
    'top_k': Rule(np.broadcast_to(rank_1V, p_NV.shape) * 1.0, False),
    'top_p': Rule(np.nextafter(before_NV, 2.0), False),
    'typical': Rule(_typical(laws), False),
    'min_p': Rule(np.exp(-gap_NV), True),
    'epsilon': Rule(p_NV, True),
    'eta': Rule(as_eta(p_NV, laws.entropy_N1), True),
    'top_n_sigma': Rule(gap_NV / np.maximum(sigma_N1, 1e-300), False),
    'top_h': Rule(top_h_NV, False),
    'top_h_of_100': Rule(_top_h_of_hundred(laws), False),
    # Of the mu that it starts with, 2 tau bits.
    'mirostat': Rule(laws.log_p_NV / (-2 * np.log(2)), False),
    'adaptive': Rule(_adaptive(p_NV), True),
  }


def as_eta(threshold_NV: np.ndarray, entropy_N1: np.ndarray) -> np.ndarray:
  """The epsilon of eta sampling whose threshold it is."""
  return np.maximum(threshold_NV, np.square(threshold_NV * np.exp(entropy_N1)))


def table(
  found: Mapping[str, Rule], optimal_N: np.ndarray, risks: tuple[float, ...]
) -> dict[str, dict[float, Match]]:
  """Every rule at every mean risk, the best mean recall first."""
  matches = {
    name: {risk: match(rule, optimal_N, risk) for risk in risks}
    for name, rule in found.items()
  }

  def mean_recall(name: str) -> float:
    return float(np.mean([m.recall for m in matches[name].values()]))

  order = sorted(matches, key=mean_recall, reverse=True)
  return {name: matches[name] for name in order}


def _terms(log_p_NV: np.ndarray) -> np.ndarray:
  """p log p, 0 where p is."""
  p_NV = np.exp(log_p_NV)
  return np.where(p_NV > 0, p_NV * np.where(p_NV > 0, log_p_NV, 0.0), 0.0)


def _top_h_of_hundred(laws: Sorted) -> np.ndarray:
  """Share of the entropy of the 100 best; at 1 the rule is off."""
  best_N100 = laws.log_p_NV[:, :100]
  mass_N1 = np.exp(best_N100).sum(axis=1, keepdims=True)
  terms_N100 = -_terms(best_N100 - np.log(mass_N1))
  total_N1 = np.maximum(terms_N100.sum(axis=1, keepdims=True), 1e-300)
  share_NV = np.ones_like(laws.log_p_NV)
  share_NV[:, :100] = np.cumsum(terms_N100, axis=1) / total_N1
  return np.where(np.exp(laws.log_p_NV) > 0, np.minimum(share_NV, 1.0), 1.0)


def _typical(laws: Sorted) -> np.ndarray:
  """Mass that lies nearer to the entropy: not a prefix, but it has a size."""
  distance_NV = np.abs(-laws.log_p_NV - laws.entropy_N1)
  order_NV = np.argsort(distance_NV, axis=1, kind='stable')
  p_NV = np.take_along_axis(np.exp(laws.log_p_NV), order_NV, axis=1)
  return np.nextafter(np.cumsum(p_NV, axis=1) - p_NV, 2.0)


def _adaptive(p_NV: np.ndarray) -> np.ndarray:
  """Adaptive decoding (Zhu et al. 2024, arXiv 2402.18223).

  An id is kept while it or a later one gains more than the knob: with R_i the
  mass after i ids, gain_i = (p_i log p_i + R_i log(R_i / (V - i)) - R_{i-1}
  log(R_{i-1} / (V - i + 1))) / log V.
  """
  size = p_NV.shape[1]
  after_NV = np.cumsum(p_NV[:, ::-1], axis=1)[:, ::-1]
  after_NV = np.concatenate([after_NV, np.zeros((len(p_NV), 1))], axis=1)
  count_V = np.arange(size, -1, -1)
  ratio_NV = after_NV / np.maximum(count_V, 1)[None]
  log_NV = np.log(ratio_NV, where=ratio_NV > 0, out=np.zeros_like(ratio_NV))
  rest_NV = after_NV * log_NV
  log_p_NV = np.log(p_NV, where=p_NV > 0, out=np.zeros_like(p_NV))
  gain_NV = (p_NV * log_p_NV + rest_NV[:, 1:] - rest_NV[:, :-1]) / np.log(size)
  return np.maximum.accumulate(gain_NV[:, ::-1], axis=1)[:, ::-1]


def _knobs(rule: Rule) -> np.ndarray:
  """All values at which something changes, those that keep few first."""
  values = np.unique(rule.critical_NV[np.isfinite(rule.critical_NV)])
  return values[::-1] if rule.is_upper else values


def _measure(rule: Rule, knob: float, optimal_N: np.ndarray) -> Match:
  recall_N, risk_N = recall_and_risk(kept(rule, knob), optimal_N)
  scale = len(optimal_N) ** -0.5
  return Match(
    float(knob),
    float(risk_N.mean()),
    float(risk_N.std() * scale),
    float(recall_N.mean()),
    float(recall_N.std() * scale),
  )
