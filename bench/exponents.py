"""How loss falls with training FLOPs, and which published orders that shows."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

_SPENT = 'arXiv 2406.06248'
_SEARCH = 'arXiv 2410.02117'


class Fit(NamedTuple):
  """loss = scale * FLOPs^-exponent, by least squares of logarithms.

  low, high: of the exponent, in 95% of cases; nan for fewer than 3 runs.
  """

  exponent: float
  low: float
  high: float
  scale: float

  def __str__(self) -> str:
    if math.isnan(self.low):
      return f'{self.exponent:.3f}'
    return f'{self.exponent:.3f} ({self.low:.3f} to {self.high:.3f})'

  def flops(self, loss: float) -> float:
    """FLOPs at which the line has a loss."""
    return (self.scale / loss) ** (1 / self.exponent)


class Claim(NamedTuple):
  """A published order on a problem: one structure against another.

  by: 'below', a lower loss at equal FLOPs; 'near', the loss at most 5% off;
  'flatter' or 'steeper', the exponent.
  """

  problem: str
  one: str
  by: str
  other: str
  source: str


CLAIMS = (
  Claim('text', 'btt_4', 'below', 'dense', _SPENT),
  Claim('text', 'btt_4', 'below', 'low_rank', _SEARCH),
  Claim('text', 'btt', 'below', 'kronecker', _SEARCH),
  Claim('text', 'kronecker', 'flatter', 'dense', _SEARCH),
  Claim('text', 'low_rank', 'flatter', 'dense', _SEARCH),
  Claim('text', 'moe', 'below', 'dense', _SEARCH),
  Claim('text', 'btt_moe', 'below', 'moe', _SEARCH),
  Claim('teacher', 'btt', 'near', 'dense', _SEARCH),
  Claim('teacher', 'monarch', 'near', 'dense', _SEARCH),
  Claim('teacher', 'btt', 'below', 'low_rank', _SEARCH),
  Claim('teacher', 'btt', 'below', 'kronecker', _SEARCH),
  Claim('teacher', 'kronecker', 'flatter', 'dense', _SEARCH),
  Claim('teacher', 'low_rank', 'flatter', 'dense', _SEARCH),
)
_NEAR = 0.05


def fit(flops: Sequence[float], losses: Sequence[float]) -> Fit:
  """The line through runs of at least two different FLOPs."""
  x, y = np.log(flops), np.log(losses)
  away = x - x.mean()
  spread = np.sum(away**2)
  slope = np.sum(away * y) / spread
  free = len(x) - 2
  half = math.nan
  if free > 0:
    left = y - y.mean() - slope * away
    error = math.sqrt(np.sum(left**2) / free / spread)
    half = stats.t.ppf(0.975, free) * error
  return Fit(
    float(-slope),
    float(-slope - half),
    float(-slope + half),
    math.exp(y.mean() - slope * x.mean()),
  )


def fits(records: Sequence[Mapping[str, Any]]) -> dict[str, Fit]:
  """Of every structure that was run at two budgets; all of one problem."""
  found = {}
  for name in dict.fromkeys(r['structure'] for r in records):
    runs = [r for r in records if r['structure'] == name]
    if len({r['size'] for r in runs}) > 1:
      found[name] = fit([r['flops'] for r in runs], [r['loss'] for r in runs])
  return found


def table(
  records: Sequence[Mapping[str, Any]], lines: Mapping[str, Fit]
) -> list[dict[str, str]]:
  """A row per structure of one problem: losses by budget, and the exponent.

  Losses are means over seeds, +- their standard error.
  """
  sizes = sorted({(r['size'], r['budget']) for r in records}, reverse=True)
  rows = []
  for name in dict.fromkeys(r['structure'] for r in records):
    row = {'structure': name}
    for size, budget in sizes:
      runs = _cell(records, name, size)
      row[f'{budget:.2e} FLOPs'] = _shown(runs)
    line, dense = lines.get(name), lines.get('dense')
    row['exponent'] = '-' if line is None else str(line)
    row['FLOPs of dense for its loss, over its'] = '-'
    last = _cell(records, name, sizes[-1][0])
    if dense is not None and dense.exponent > 0 and last:
      loss = statistics.mean(r['loss'] for r in last)
      gain = dense.flops(loss) / last[0]['flops']
      row['FLOPs of dense for its loss, over its'] = f'{gain:.2f}'
    rows.append(row)
  return rows


def sentences(
  records: Sequence[Mapping[str, Any]],
  lines: Mapping[str, Fit],
  claims: Sequence[Claim],
) -> list[str]:
  """What became of every claim whose structures were run."""
  said = []
  largest = min(r['size'] for r in records)
  for claim in claims:
    if claim.by in ('flatter', 'steeper'):
      if claim.one in lines and claim.other in lines:
        said.append(_of_slopes(claim, lines))
      continue
    pair = [_cell(records, s, largest) for s in (claim.one, claim.other)]
    if all(pair):
      said.append(_of_losses(claim, pair))
  return said


def _of_slopes(claim: Claim, lines: Mapping[str, Fit]) -> str:
  one, other = lines[claim.one], lines[claim.other]
  apart = one.exponent - other.exponent
  if claim.by == 'flatter':
    apart = -apart
  half = math.hypot(one.high - one.exponent, other.high - other.exponent)
  return _said(
    claim, apart, half, f'exponents {one.exponent:.3f}, {other.exponent:.3f}'
  )


def _of_losses(claim: Claim, pair: list[list[Mapping[str, Any]]]) -> str:
  one, other = (statistics.mean(r['loss'] for r in runs) for runs in pair)
  half = _welch([[r['loss'] for r in runs] for runs in pair])
  figures = f'{one:.4g} against {other:.4g}'
  if claim.by == 'near':
    off = abs(one / other - 1)
    return _said(claim, _NEAR - off, half / other, figures)
  return _said(claim, other - one, half, figures)


def _welch(pair: list[list[float]]) -> float:
  """Half the 95% interval of a difference of means over seeds; nan for one.

  Welch's (Biometrika 1947): a structure whose seeds scatter more than others
  says nothing of pairs without it.
  """
  if min(map(len, pair)) < 2:
    return math.nan
  low, high = stats.ttest_ind(*pair, equal_var=False).confidence_interval()
  return float(high - low) / 2


def _said(claim: Claim, apart: float, half: float, figures: str) -> str:
  """apart: positive as claimed; half: up to which it may be chance."""
  verdict = 'reproduced' if apart > 0 else 'contradicted'
  if not abs(apart) > half:
    verdict = 'not decided'
  return (
    f'{claim.problem}: {claim.one} {claim.by} {claim.other} ({claim.source}):'
    f' {verdict}; {figures}.'
  )


def _cell(
  records: Sequence[Mapping[str, Any]], name: str, size: int
) -> list[Mapping[str, Any]]:
  return [r for r in records if r['structure'] == name and r['size'] == size]


def _shown(runs: Sequence[Mapping[str, Any]]) -> str:
  """Mean loss, its error over seeds and the width."""
  if not runs:
    return '-'
  losses = [r['loss'] for r in runs]
  error = ''
  if len(runs) > 1:
    error = f' +- {statistics.stdev(losses) / len(runs) ** 0.5:.2g}'
  return f'{statistics.mean(losses):.4g}{error} (width {runs[0]["width"]})'
