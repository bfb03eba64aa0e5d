"""How often bounds fail on streams whose risk is known: a simulation.

python -m bounds.coverage --runs=3600

Prints a table and leaves with code 1 if a bound fails too often, if a form that
is known to be wrong does not, or if the sharp case is not where it must be.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from bounds import azuma
from bounds import bernstein
from bounds import betting
from bounds import bound
from bounds import catoni
from bounds import smoothing

DELTA = 0.1
SHARP = betting.Betting(DELTA, slacks=(0.0,))
V = 16
ALPHAS = (0.01, 0.05, 0.1, 0.25)
# Runs that share their hypotheses, which bounds the memory in use.
_CHUNK = 60

Rule = Callable[[np.ndarray, float], bound.Bound]


class Runs(NamedTuple):
  """Axes: R runs, H hypotheses, N symbols. Losses, risks and entropies."""

  losses_RHN: np.ndarray
  risk_RH: np.ndarray
  lows_H: np.ndarray
  highs_H: np.ndarray


class Case(NamedTuple):
  """Share of runs that failed, where it must lie, and the mean gap in bits."""

  name: str
  runs: int
  rate: float
  low: float
  high: float
  gap: float = math.nan

  @property
  def holds(self) -> bool:
    return self.low <= self.rate <= self.high


def markov(
  runs: int, count: int, models: int, *, rare: bool, seed: int
) -> Runs:
  """A stream that adapts to its past, and hypotheses that mix in the truth.

  The context is the last symbol and the regime, which changes with the number
  of small symbols among all earlier ones. A planted rare symbol has probability
  2 / count everywhere.
  """
  rng = np.random.default_rng(seed)
  truth_CV = rng.dirichlet(np.full(V, 0.3), 2 * V)
  if rare:
    truth_CV[:, -1] = 0
    truth_CV /= truth_CV.sum(1, keepdims=True)
    truth_CV *= 1 - 2 / count
    truth_CV[:, -1] = 2 / count
  contexts_RN, symbols_RN = _walk(rng, truth_CV, runs, count)
  losses_RHN, risk_RH, ends = [], [], []
  for model in range(models):
    noise_CV = rng.dirichlet(np.full(V, 0.3), 2 * V)
    guess_CV = 0.7 * truth_CV + 0.3 * noise_CV if model % 2 else noise_CV
    if rare:  # No hypothesis expects the rare symbol.
      guess_CV[:, -1] = 0
      guess_CV /= guess_CV.sum(1, keepdims=True)
    for alpha in ALPHAS:
      loss_CV = smoothing.smoothed_losses(guess_CV, alpha, V)
      risk_C = (truth_CV * loss_CV).sum(1)
      losses_RHN.append(loss_CV[contexts_RN, symbols_RN])
      risk_RH.append(risk_C[contexts_RN].mean(1))
      ends.append(smoothing.interval(alpha, V))
  lows_H, highs_H = np.array(ends).T
  return Runs(
    np.stack(losses_RHN, 1), np.stack(risk_RH, 1), lows_H, highs_H + 1e-9
  )


def _walk(
  rng: np.random.Generator, truth_CV: np.ndarray, runs: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Contexts and symbols [R, N] of the stream."""
  edge_CV = truth_CV.cumsum(1)
  contexts_RN = np.empty((runs, count), np.int64)
  symbols_RN = np.empty((runs, count), np.int64)
  last, small = np.zeros(runs, np.int64), np.zeros(runs, np.int64)
  for place in range(count):
    context = last + V * (small // 5 % 2)
    draw_R1 = rng.random((runs, 1))
    last = np.minimum((draw_R1 > edge_CV[context]).sum(1), V - 1)
    small += last < V // 2
    contexts_RN[:, place], symbols_RN[:, place] = context, last
  return contexts_RN, symbols_RN


def rules(low: float, high: float) -> dict[str, Rule]:
  """Every bound as a function of losses and bits."""
  return {
    'azuma': lambda x, k: azuma.Azuma(DELTA)(x, k, low=low, high=high),
    'tokenwise': lambda x, k: azuma.TokenwiseAzuma(DELTA)(
      x, k, lows_N=low, highs_N=high
    ),
    'catoni': lambda x, k: catoni.Catoni(DELTA)(x, k, low=low, high=high),
    'bernstein': lambda x, k: bernstein.EmpiricalBernstein(DELTA)(
      x, k, centres_N=bernstein.running_means(x, 3.0), reach=high
    ),
    'freedman': lambda x, k: bernstein.Freedman(DELTA, bernstein.RATES[::4])(
      x, k, centres_N=2.0, reach=high
    ),
    'betting': lambda x, k: betting.Betting(DELTA, (0.0, 2.0, 8.0, 32.0))(
      x, k, ceilings_N=high
    ),
  }


def simulate(
  runs: int, count: int, models: int, *, rare: bool, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
  """Share of runs in which any hypothesis is above its bound, and mean gaps."""
  data = markov(runs, count, models, rare=rare, seed=seed)
  hypotheses = data.losses_RHN.shape[1]
  bits = math.log2(hypotheses)
  failed, gaps = {}, {}
  for h in range(hypotheses):
    for name, rule in rules(data.lows_H[h], data.highs_H[h]).items():
      value_R = np.array([rule(x, bits).value for x in data.losses_RHN[:, h]])
      bad_R = value_R < data.risk_RH[:, h]
      failed[name] = failed.get(name, np.zeros(runs, bool)) | bad_R
      gaps.setdefault(name, []).append(value_R - data.risk_RH[:, h])
  rates = {name: float(bad_R.mean()) for name, bad_R in failed.items()}
  return rates, {name: float(np.mean(gap)) for name, gap in gaps.items()}


def plug_in(losses_N: np.ndarray) -> np.ndarray:
  """The wrong bound that trusts the empirical variance."""
  count = losses_N.shape[-1]
  spread = losses_N.std(-1) * math.sqrt(2 * math.log(1 / DELTA) / count)
  return losses_N.mean(-1) + spread


def failures(values_R: np.ndarray | list[float], risk: float) -> float:
  return float((np.asarray(values_R) < risk).mean())


def two_point(
  missing: float, count: int, runs: int, *, seed: int
) -> tuple[np.ndarray, float]:
  """Losses 1 or, with a probability that spares a run at `missing`, 9."""
  share = 1 - missing ** (1 / count)
  rng = np.random.default_rng(seed)
  return 1 + 8.0 * (rng.random((runs, count)) < share), 1 + 8 * share


def sharp(missing: float, runs: int, rule: betting.Betting = SHARP) -> float:
  """Failures at two losses; the bound depends only on how many are 9.

  A run without a 9 has the bound 9 - 8 delta**(1/N), which is below the risk
  just if it is rarer than delta. So 3 % less cost would already be wrong.
  """
  losses_RN, risk = two_point(missing, 150, runs, seed=3)
  hits_R = (losses_RN > 1).sum(1)
  _, first, index_R = np.unique(hits_R, return_index=True, return_inverse=True)
  values = [rule(losses_RN[run], 0, ceilings_N=9.0).value for run in first]
  return failures(np.array(values)[index_R], risk)


def without_units(missing: float, runs: int) -> float:
  """Control: ln 2 too small a cost, as with ln(1/delta) in the wrong unit."""
  wrong = betting.Betting(DELTA ** math.log(2), slacks=(0.0,))
  return sharp(missing, runs, wrong)


def of_the_best(runs: int, description_bits: float) -> float:
  """Failures of the best of 64 hypotheses, 6 bits each.

  Hypothesis h expects everything but symbol h, of 64 alike. Control: 0 bits.
  """
  hypotheses = 64
  count = round(math.log(0.09) / math.log(1 - 1 / hypotheses))
  rng = np.random.default_rng(0)
  risk, failed = 1 + 8 / hypotheses, 0
  for symbols_N in rng.integers(hypotheses, size=(runs, count)):
    missing = np.setdiff1d(np.arange(hypotheses), symbols_N)
    if len(missing):
      losses_N = 1 + 8.0 * (symbols_N == missing[0])
      value = SHARP(losses_N, description_bits, ceilings_N=9.0).value
      failed += value < risk
  return failed / runs


def of_a_rare_loss(runs: int) -> tuple[float, float]:
  """Failures of the bound and, as a control, of the empirical variance."""
  losses_RN, risk = two_point(0.3, 150, runs, seed=1)
  values = [SHARP(x, 0, ceilings_N=9.0).value for x in losses_RN]
  return failures(values, risk), failures(plug_in(losses_RN), risk)


def of_a_leak(runs: int) -> tuple[float, float]:
  """Failures at a fixed ceiling and, as a control, at that of each loss."""
  rng = np.random.default_rng(0)
  losses_RN = rng.gamma(0.8, 2.4, (runs, 300)).clip(0, 11)
  risk = rng.gamma(0.8, 2.4, 400_000).clip(0, 11).mean()
  values = [SHARP(x, 0, ceilings_N=11.0).value for x in losses_RN]
  leaky = [SHARP(x, 0, ceilings_N=x + 3).value for x in losses_RN]
  return failures(values, risk), failures(leaky, risk)


def at_any_time(runs: int, count: int) -> float:
  """Share of streams of coins in which the curve is ever below the risk.

  A ceiling of ten times the largest loss makes small stakes, so that little is
  lost by overshooting.
  """
  rng = np.random.default_rng(0)
  rule = betting.Curve(DELTA, slacks=(0.0,))
  ever = 0
  for _ in range(runs):
    losses_N = rng.integers(0, 2, count).astype(float)
    ever += rule(losses_N, 0, ceilings_N=10.0).min() < 0.5
  return ever / runs


def cases(runs: int, count: int, models: int) -> Iterator[Case]:
  """All of the table, the quick ones first."""
  many = 10 * runs
  # The standard error of a share, three times.
  slack = 3 * math.sqrt(DELTA * (1 - DELTA) / runs)
  for missing, low, high in ((0.178, 0, 0), (0.107, 0, 0), (0.093, 0.07, 0.1)):
    name = f'sharp, spared at {missing}'
    yield Case(name, many, sharp(missing, many), low, high)
  rate = without_units(0.178, many)
  yield Case('control: bits taken for nats', many, rate, 0.16, 1)
  yield Case('best of 64', runs, of_the_best(runs, 6.0), 0, DELTA + slack)
  rate = of_the_best(runs, 0.0)
  yield Case('control: its choice is not paid for', runs, rate, 0.5, 1)
  right, wrong = of_a_rare_loss(runs)
  yield Case('rare large loss', runs, right, 0, DELTA + slack)
  yield Case('control: empirical variance', runs, wrong, 0.2, 1)
  right, wrong = of_a_leak(runs)
  yield Case('gamma losses', runs, right, 0, DELTA + slack)
  yield Case('control: ceiling of its own loss', runs, wrong, 0.25, 1)
  rate = at_any_time(runs, 3000)
  yield Case('curve, at any time', runs, rate, 0.05, DELTA + slack)
  for rare in (False, True):
    yield from _simulated(runs, count, models, rare)


def _simulated(
  runs: int, count: int, models: int, rare: bool
) -> Iterator[Case]:
  """The adaptive stream, a chunk of runs at a time."""
  rates: dict[str, float] = {}
  gaps: dict[str, float] = {}
  began = time.monotonic()
  for first in range(0, runs, _CHUNK):
    size = min(_CHUNK, runs - first)
    seed = 2 * first + int(rare)
    found = simulate(size, count, models, rare=rare, seed=seed)
    for total, part in zip((rates, gaps), found, strict=True):
      for name, value in part.items():
        total[name] = total.get(name, 0.0) + value * size / runs
    left = (time.monotonic() - began) * (runs / (first + size) - 1)
    if sys.stderr.isatty():
      print(f'\r{first + size} of {runs} runs, {left:.0f} s left ',
            end='', file=sys.stderr)  # fmt: skip
  for name, rate in rates.items():
    label = f'adaptive stream{", rare symbol" if rare else ""}: {name}'
    yield Case(label, runs, rate, 0, 0.01, gaps[name])


def main() -> None:
  parser = argparse.ArgumentParser(prog='bounds.coverage')
  parser.add_argument(
    '--runs', type=int, default=3600, help='of the adaptive stream'
  )
  parser.add_argument('--symbols', type=int, default=800, help='of each')
  parser.add_argument('--models', type=int, default=32, help='times 4 alphas')
  given = parser.parse_args()
  if min(given.runs, given.symbols, given.models) < 1:
    parser.error('--runs, --symbols and --models must be at least 1')
  print(f'| case, delta = {DELTA} | runs | failed | allowed | gap | |')
  print('|---|---|---|---|---|---|')
  wrong = 0
  for case in cases(given.runs, given.symbols, given.models):
    gap = '' if math.isnan(case.gap) else f'{case.gap:.3f}'
    verdict = 'as it must' if case.holds else 'WRONG'
    wrong += not case.holds
    print(
      f'| {case.name} | {case.runs} | {case.rate:.4f} |'
      f' {case.low:.2f} to {case.high:.2f} | {gap} | {verdict} |',
      flush=True,
    )
  sys.exit(int(wrong > 0))


if __name__ == '__main__':
  main()
