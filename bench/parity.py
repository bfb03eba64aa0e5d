"""Counts where our truncation rules and transformers' warpers disagree.

python -m bench.parity

A float64 evaluation says which decisions are hard: neither library may miss
one. Rounding moves only those within a tolerance of the boundary (soft), sort
order only those of a group of equal logits that the boundary cuts (ties), which
we keep whole and transformers does not.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bench import tables
from configs import command
from samplers import entropy
from samplers import truncation

ROWS = 8
SIZES = (260, 32000)
# For each id of [B, V], in float64: does it stay, does it go for sure?
Bounds = tuple[np.ndarray, np.ndarray]


class Case(NamedTuple):
  """Our rule, their class, who decides between them, and at which knobs."""

  rule: type
  warper: str
  bounds: Callable[[np.ndarray, Any], Bounds]
  knobs: tuple[float, ...]


class Counts(NamedTuple):
  """Ids of rows: decided on, missed by us and by them, and else different."""

  decisions: int = 0
  wrong: int = 0
  theirs_wrong: int = 0
  soft: int = 0
  ties: int = 0


def families(size: int) -> dict[str, np.ndarray]:
  """Kinds of logits [B, size], by name."""
  rng = np.random.default_rng(size)
  gauss = rng.normal(size=(ROWS, size)) * 3
  rank = rng.permuted(np.tile(np.arange(size), (ROWS, 1)), axis=1)
  text = -1.3 * np.log1p(rank) + 0.3 * rng.normal(size=(ROWS, size))
  holes = np.where(rng.random((ROWS, size)) < 0.6, -np.inf, gauss)
  holes[:, size // 2] = 0.0
  one = np.full((ROWS, size), -np.inf)
  one[np.arange(ROWS), rng.integers(0, size, ROWS)] = 1.5
  bits = gauss.astype(np.float32).view(np.uint32) & 0xFFFF0000
  found = {
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
  return {name: x_BV.astype(np.float32) for name, x_BV in found.items()}


def compare(case: Case, logits_BV: np.ndarray, knob: float) -> Counts:
  """Of one knob on one kind of logits."""
  ours_BV = kept_by_us(case.rule, knob, logits_BV)
  theirs_BV = kept_by_them(case.warper, knob, logits_BV)
  stays_BV, goes_BV = case.bounds(logits_BV, knob)
  finite_BV = logits_BV > -np.inf
  if np.any(stays_BV & goes_BV & finite_BV):
    raise ValueError(f'{case.warper}({knob}): an id both stays and goes')

  def missed(kept_BV: np.ndarray) -> int:
    return int(np.sum(np.where(kept_BV, goes_BV, stays_BV & finite_BV)))

  differs_BV = ours_BV != theirs_BV
  ties = sum(
    int(np.sum(differs_V & np.isin(logits_V, _cut(logits_V, theirs_V))))
    for differs_V, logits_V, theirs_V in zip(
      differs_BV, logits_BV, theirs_BV, strict=True
    )
  )
  return Counts(
    logits_BV.size,
    missed(ours_BV),
    missed(theirs_BV),
    int(differs_BV.sum()) - ties,
    ties,
  )


def count(case: Case, size: int) -> Counts:
  """Of all knobs and kinds of logits of a vocabulary."""
  found = [
    compare(case, logits_BV, knob)
    for logits_BV in families(size).values()
    for knob in case.knobs
  ]
  return Counts(*map(sum, zip(*found, strict=True)))


def kept_by_us(kind: type, knob: float, logits_BV: np.ndarray) -> np.ndarray:
  # A copy of its own, which nobody changes while JAX reads it.
  dtype = int if kind is truncation.TopK else float
  result_BV = _apply(kind(np.full(ROWS, knob, dtype)), np.array(logits_BV))
  result_BV = np.asarray(result_BV)
  kept_BV = result_BV > -np.inf
  if np.any(result_BV[kept_BV] != logits_BV[kept_BV]):
    raise ValueError(f'{kind.__name__}({knob}) changes what it keeps')
  return kept_BV


def kept_by_them(name: str, knob: float, logits_BV: np.ndarray) -> np.ndarray:
  import torch
  from transformers.generation import logits_process

  warper = getattr(logits_process, name)(knob)
  return warper(None, torch.tensor(logits_BV)).numpy() > -np.inf


@jax.jit
def _apply(rule: Any, logits_BV: jax.Array) -> jax.Array:
  return rule(logits_BV)


def _cut(logits_V: np.ndarray, kept_V: np.ndarray) -> np.ndarray:
  """The values of which some are kept and some are not."""
  return np.intersect1d(logits_V[kept_V], logits_V[~kept_V])


def _exact(logits_BV: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """p, log p and H in float64."""
  logits_BV = logits_BV.astype(np.float64)
  shifted_BV = logits_BV - logits_BV.max(axis=1, keepdims=True)
  log_p_BV = shifted_BV - np.log(np.exp(shifted_BV).sum(axis=1, keepdims=True))
  p_BV = np.exp(log_p_BV)
  with np.errstate(invalid='ignore'):
    terms_BV = np.where(p_BV > 0, -p_BV * log_p_BV, 0.0)
  return p_BV, log_p_BV, terms_BV.sum(axis=1)


def _mass_up_to(
  sorted_N: np.ndarray, weights_N: np.ndarray, at_N: np.ndarray, side: str
) -> np.ndarray:
  """Weight of what sorts before (left) or up to and with (right) a value."""
  sums_N = np.concatenate([[0.0], np.cumsum(weights_N)])
  return sums_N[np.searchsorted(sorted_N, at_N, side)]


def _near(quantity_BV: np.ndarray, bound: Any, slack: float) -> Bounds:
  with np.errstate(invalid='ignore'):
    return quantity_BV > bound + slack, quantity_BV < bound - slack


def _or_best(logits_BV: np.ndarray, bounds: Bounds) -> Bounds:
  best_BV = logits_BV == logits_BV.max(axis=1, keepdims=True)
  return bounds[0] | best_BV, bounds[1] & ~best_BV


def _or_some_best(logits_BV: np.ndarray, bounds: Bounds) -> Bounds:
  """Where sort order may drop all but one of the best."""
  best_BV = logits_BV == logits_BV.max(axis=1, keepdims=True)
  alone_BV = best_BV & (best_BV.sum(axis=1, keepdims=True) == 1)
  stays_BV, goes_BV = bounds
  return stays_BV & ~best_BV | alone_BV, goes_BV & ~best_BV


def _top_k(logits_BV: np.ndarray, k: int) -> Bounds:
  kept_BV = logits_BV >= np.sort(logits_BV, axis=1)[:, -k][:, None]
  return kept_BV, ~kept_BV


def _min_p(logits_BV: np.ndarray, m: float) -> Bounds:
  log_p_BV = _exact(logits_BV)[1]
  gap_BV = log_p_BV - log_p_BV.max(axis=1, keepdims=True)
  return _or_best(logits_BV, _near(gap_BV, np.log(m), 1e-5))


def _epsilon(logits_BV: np.ndarray, epsilon: float) -> Bounds:
  bounds = _near(_exact(logits_BV)[1], np.log(epsilon), 1e-5)
  return _or_best(logits_BV, bounds)


def _eta(logits_BV: np.ndarray, epsilon: float) -> Bounds:
  _, log_p_BV, entropy_B = _exact(logits_BV)
  bound_B = np.minimum(np.log(epsilon), np.log(epsilon) / 2 - entropy_B)
  return _or_best(logits_BV, _near(log_p_BV, bound_B[:, None], 3e-5))


def _top_p(logits_BV: np.ndarray, p: float) -> Bounds:
  stays_BV, goes_BV = np.zeros((2, *logits_BV.shape), bool)
  for row, (logits_V, p_V) in enumerate(
    zip(logits_BV, _exact(logits_BV)[0], strict=True)
  ):
    order = np.argsort(logits_V)
    sums = [logits_V[order], p_V[order], logits_V]
    # Cumulative mass of the token if it is the first or the last of its ties.
    first_V = _mass_up_to(*sums, 'left') + p_V
    last_V = _mass_up_to(*sums, 'right')
    stays_BV[row], goes_BV[row] = first_V > 1 - p + 3e-6, last_V < 1 - p - 3e-6
  return _or_some_best(logits_BV, (stays_BV, goes_BV))


def _typical(logits_BV: np.ndarray, mass: float) -> Bounds:
  stays_BV, goes_BV = np.zeros((2, *logits_BV.shape), bool)
  p_BV, log_p_BV, entropy_B = _exact(logits_BV)
  for row in range(ROWS):
    d_V, p_V = np.abs(-log_p_BV[row] - entropy_B[row]), p_BV[row]
    order = np.argsort(d_V)
    slack_V = 3e-5 * np.maximum(1.0, np.where(np.isinf(d_V), 1.0, d_V))
    before_V = _mass_up_to(d_V[order], p_V[order], d_V - slack_V, 'left')
    around_V = _mass_up_to(d_V[order], p_V[order], d_V + slack_V, 'right')
    stays_BV[row] = around_V - p_V < mass - 1e-5
    goes_BV[row] = before_V > mass + 1e-5
  return stays_BV, goes_BV


def _top_h(logits_BV: np.ndarray, alpha: float) -> Bounds:
  stays_BV, goes_BV = np.zeros((2, *logits_BV.shape), bool)
  for row, logits_V in enumerate(logits_BV):
    order = np.argsort(-logits_V)
    best_N = logits_V[order[:100]]
    p_1N, log_p_1N, entropy_1 = _exact(best_N[None])
    with np.errstate(invalid='ignore'):
      terms_N = np.where(p_1N > 0, -p_1N * log_p_1N, 0.0)[0]
    limit = alpha * entropy_1[0]
    term_V = np.zeros(len(logits_V))
    term_V[order[:100]] = terms_N
    # Those tied with the hundredth have its term too, but may be left out.
    term_V[logits_V == best_N[-1]] = terms_N[-1]
    sums = [-best_N, terms_N, -logits_V]
    first_V = _mass_up_to(*sums, 'left') + term_V
    last_V = _mass_up_to(*sums, 'right')
    slack = 1e-5 * max(limit, 1e-3)
    cut_V = (logits_V == best_N[-1]) & ((logits_V == best_N[-1]).sum() > 1)
    stays_BV[row] = (last_V < limit - slack) & (logits_V >= best_N[-1]) & ~cut_V
    goes_BV[row] = (first_V > limit + slack) | (logits_V < best_N[-1])
    goes_BV[row] |= np.exp(logits_V - logits_V.max()) == 0
  return _or_some_best(logits_BV, (stays_BV, goes_BV))


CASES = {
  'top_k': Case(truncation.TopK, 'TopKLogitsWarper', _top_k, (1, 7, 50, 200)),
  'top_p': Case(
    truncation.TopP, 'TopPLogitsWarper', _top_p, (0.01, 0.5, 0.9, 0.999)
  ),
  'typical': Case(
    entropy.Typical, 'TypicalLogitsWarper', _typical, (0.2, 0.9, 0.95)
  ),
  'min_p': Case(truncation.MinP, 'MinPLogitsWarper', _min_p, (0.01, 0.1, 1.0)),
  'epsilon': Case(
    entropy.Epsilon, 'EpsilonLogitsWarper', _epsilon, (3e-4, 9e-3, 0.2)
  ),
  'eta': Case(entropy.Eta, 'EtaLogitsWarper', _eta, (3e-4, 2e-3, 0.1)),
  'top_h_of_100': Case(
    entropy.TopHOfHundred, 'TopHLogitsWarper', _top_h, (0.1, 0.4, 0.95)
  ),
}


def rows(sizes: Sequence[int] = SIZES) -> Iterator[dict[str, object]]:
  """One row per rule, over all sizes of vocabulary, and one of the sums."""
  total = Counts()
  for name, case in CASES.items():
    counted = [count(case, size) for size in sizes]
    found = Counts(*map(sum, zip(*counted, strict=True)))
    total = Counts(*map(sum, zip(total, found, strict=True)))
    yield {'rule': name, **_shown(found)}
  yield {'rule': 'all', **_shown(total)}


def _shown(counts: Counts) -> dict[str, object]:
  return {
    'decisions': f'{counts.decisions:,}',
    'hard, missed by us': counts.wrong,
    'hard, by transformers': counts.theirs_wrong,
    'soft: rounding': f'{counts.soft:,}',
    'ties: sort order': f'{counts.ties:,}',
  }


def main(_: Sequence[str]) -> None:
  if importlib.util.find_spec('transformers') is None:
    sys.exit(
      'bench.parity: PyTorch and transformers are missing; pip install'
      " '.[bench]'."
    )
  command.quiet()
  with command.explained('bench.parity'):
    print(
      f'Ids kept or not, {ROWS} rows of {len(families(8))} kinds of logits, V ='
      f' {" and ".join(map(str, SIZES))}; different from transformers:\n'
    )
    print(tables.markdown(list(rows())), end='')


if __name__ == '__main__':
  command.run(main)
