"""Einsum layers for all projections of a config, under a budget.

What arXiv 2410.02117 found to matter decides on the order: no sharing of
parameters and full rank come first, and among equals more multiply-adds.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from configs import base
from configs import layer_table
from models import layer_cost
from models import linear
from models import projections
from models import structured
from models import taxonomy
from training import estimate

# Exponents are multiples of one of these.
_PARTS = (4, 6)
# Padding of a width that a candidate may need.
_TOLERANCE = 0.15


class Budget(NamedTuple):
  """Upper bounds, None for none.

  macs, moved: multiply-adds and bytes moved per position of the rows by all
    projections. microseconds: of their forward pass over a batch by the
    roofline of `chip` (training.estimate.CHIPS).
  """

  macs: float | None = None
  moved: float | None = None
  microseconds: float | None = None
  chip: str = 'H100'


class Candidate(NamedTuple):
  """One theta for all projections; None is the dense layer.

  macs, moved, microseconds: as Budget. params: of all projections. rank: the
  least of a layer's over its smaller width. sharing: the most multiply-adds
  that a layer does per parameter and token. exponents: how these grow.
  """

  theta: tuple[float, ...] | None
  macs: float
  moved: float
  microseconds: float
  params: int
  rank: float
  sharing: float
  exponents: taxonomy.Taxonomy


def thetas() -> list[tuple[float, ...]]:
  """All exponents of a grid, one of each pair that the cores exchange.

  Bonds that repeat what cores can do already are left out.
  """
  found = set()
  for parts in _PARTS:
    triples = [
      t for t in itertools.product(range(parts + 1), repeat=3)
      if sum(t) == parts
    ]
    for a, b, rho in itertools.product(triples, triples, range(parts + 1)):
      alpha, beta, _, delta, epsilon, _ = (*a, *b)
      first, second = min(alpha, epsilon), min(beta, delta)
      if (first, alpha, epsilon) >= (second, beta, delta) and rho <= first:
        found.add(tuple(part / parts for part in (*a, *b, rho)))
  return sorted(found, reverse=True)


def search(config: base.Config, budget: Budget) -> list[Candidate]:
  """The dense layer, then what is within the budget, the best first.

  Only candidates of fewer multiply-adds than dense layers. Raises ValueError
  if there are none, with the least that there is.
  """
  if (budget.macs, budget.moved, budget.microseconds) == (None,) * 3:
    raise ValueError(
      '--search needs a budget: --macs or --bytes per position, or --time in'
      ' microseconds of a forward pass.'
    )
  if budget.chip not in estimate.CHIPS:
    raise ValueError(
      f'--chip={budget.chip} is not known; choose among'
      f' {", ".join(estimate.CHIPS)}.'
    )
  layers = replaceable(config)
  positions = config.batch_size // config.accumulate * config.row_length
  first = _candidate(None, layers, positions, budget.chip)
  found = [
    candidate
    for theta in thetas()
    for candidate in _tried(theta, layers, positions, budget.chip)
  ]
  # One that does the work of a dense layer has nothing to offer.
  cheaper = (one for one in found if one.macs < first.macs)
  kept = sorted(
    (one for one in cheaper if _is_within(one, budget)), key=_merit
  )
  if not kept:
    least = ', '.join(
      f'{min(getattr(one, name) for one in found):.0f} {unit}'
      for name, unit in (
        ('macs', 'MACs'), ('moved', 'bytes'), ('microseconds', 'us'),
      )
    )  # fmt: skip
    raise ValueError(
      f'--search: no theta keeps within {_spelled(budget)} and below the'
      f' {first.macs:.0f} MACs of dense layers; the least of the candidates are'
      f' {least}: raise the budget.'
    )
  return [first, *kept]


def replaceable(config: base.Config) -> list[projections.Projection]:
  """The projections that a prototype for all but the head replaces.

  Not those of another model inside, which says where patches end.
  """
  marked = linear.with_linear(config.model, structured.Full())
  count = config.batch_size // config.accumulate
  found = projections.find(marked, rows=count, length=config.row_length)
  return [one for one in found if isinstance(one.layer, structured.Full)]


def _tried(
  theta: tuple[float, ...],
  layers: list[projections.Projection],
  positions: int,
  chip: str,
) -> Iterator[Candidate]:
  """The candidate, unless it does not fit a layer."""
  try:
    yield _candidate(theta, layers, positions, chip)
  except ValueError:
    return


def _candidate(
  theta: tuple[float, ...] | None,
  layers: list[projections.Projection],
  positions: int,
  chip: str,
) -> Candidate:
  """The sums over layers; ValueError if theta does not fit one of them."""
  made = linear.Dense()
  exponents = taxonomy.Taxonomy(0.0, 1.0, 1.0)
  if theta is not None:
    made = structured.Einsum(theta=theta, tolerance=_TOLERANCE)
    exponents = taxonomy.taxonomy(theta)
  rates = estimate.CHIPS[chip]
  macs = moved = seconds = params = 0
  rank = sharing = 1.0
  costs: dict[tuple[int, int, int], layer_cost.Cost] = {}
  for one in layers:
    size = (one.d_in, one.d_out, one.tokens)
    if size not in costs:
      costs[size] = layer_cost.cost(made, *size)
    cost, times = costs[size], (one.copies or 1) * one.tokens
    data = layer_table.number_of(one.layer) * cost.moved
    macs += times * cost.macs
    moved += times * data
    seconds += times * max(2 * cost.macs / rates.flops, data / rates.bandwidth)
    params += (one.copies or 1) * cost.params
    rank = min(rank, cost.rank / min(one.d_in, one.d_out))
    sharing = max(sharing, cost.macs / cost.params)
  sums = (macs / positions, moved / positions, 1e6 * seconds)
  return Candidate(theta, *sums, params, rank, sharing, exponents)


def _merit(one: Candidate) -> tuple[float, ...]:
  """Full rank first, then little sharing, more work, fewer bytes."""
  return (
    -round(one.rank, 6),
    round(one.sharing, 6),
    -one.macs,
    one.moved,
    *one.theta,
  )


def _is_within(one: Candidate, budget: Budget) -> bool:
  limits = (budget.macs, budget.moved, budget.microseconds)
  found = (one.macs, one.moved, one.microseconds)
  return all(
    limit is None or value <= limit
    for limit, value in zip(limits, found, strict=True)
  )


def _spelled(budget: Budget) -> str:
  names = ('MACs', 'bytes', 'microseconds')
  return ' and '.join(
    f'{limit:g} {name}'
    for limit, name in zip(budget[:3], names, strict=True)
    if limit is not None
  )


def table(found: list[Candidate], most: int = 12) -> list[str]:
  """The dense layer and the best candidates, as text."""
  lines = [
    f'{"alpha beta gamma delta epsilon phi rho":<44} {"rank":>5}'
    f' {"shared":>6} {"psi":>5} {"omega":>5} {"nu":>5} {"MACs":>11}'
    f' {"bytes":>11} {"us":>10} {"params":>10}'
  ]
  for one in found[: most + 1]:
    text = 'dense'
    if one.theta is not None:
      text = ' '.join(f'{exponent:.3g}' for exponent in one.theta)
    sharing, rank, compute = one.exponents
    lines.append(
      f'{text:<44} {one.rank:>5.2f} {one.sharing:>6.2f} {rank:>5.2f}'
      f' {sharing:>5.2f}'
      f' {compute:>5.2f} {one.macs:>11.0f} {one.moved:>11.0f}'
      f' {one.microseconds:>10.3f} {one.params:>10}'
    )
  return [
    *lines,
    f'{len(found) - 1} within the budget; the first is'
    f' linear=structured.Einsum(theta={found[1].theta})',
  ]
