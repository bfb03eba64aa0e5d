"""What one projection costs: work, memory traffic, parameters, rank.

Counts of the program that runs (core_chain.contract), not of an ideal one:
matmuls and the permutations between them read and write memory, and what
compilers fuse on top is left out.
"""

import itertools
from typing import NamedTuple

import flax.linen as nn

from models import core_chain
from models import execution
from models import linear
from models import mixture
from models import structured


class Cost(NamedTuple):
  """Of a forward pass over some tokens.

  macs: multiply-adds per token, with what is padding.
  params: of the layer. rank: of its matrix, of one expert of a mixture.
  moved: numbers per token that are read and written, the parameters' share of
    a token included.
  peak: numbers per token alive at the same time, input and output included.
  kept: numbers per token that the backward pass reads, its input included.
  """

  macs: float
  params: int
  rank: int
  moved: float
  peak: float
  kept: float


def cost(layer: nn.Module, d_in: int, d_out: int, tokens: int) -> Cost:
  """Costs of a prototype of models.linear, structured or mixture.

  Raises ValueError for another.
  """
  if isinstance(layer, linear.Dense):
    layer = structured.Full()
  if isinstance(layer, structured.Structured):
    return _of_chain(layer.chain(d_in, d_out), tokens, layer.recompute)
  if isinstance(layer, mixture.Mixture):
    return _of_mixture(layer, [layer.expert], [(d_in, d_out)], tokens)
  if isinstance(layer, mixture.MixtureFeedForward):
    sizes = [(d_in, layer.hidden), (d_in, layer.hidden), (layer.hidden, d_out)]
    expert = mixture.expert_of(layer.linear)
    return _of_mixture(layer, [expert] * 3, sizes, tokens)
  raise ValueError(
    f'linear={type(layer).__name__} has no cost here; use linear.Dense or a'
    ' class of models.structured or models.mixture.'
  )


def _of_chain(
  chain: core_chain.Chain, tokens: int, recompute: bool
) -> Cost:
  last = execution.tokens_last(tokens)
  sizes = core_chain.states(chain)
  moved = sum(sizes[:-1]) + sum(sizes[1:])
  # The state that a product reads and the one that it writes, or two orders
  # of one state.
  peak = max(a + b for a, b in itertools.pairwise(sizes))
  steps = list(core_chain.steps(chain, last))
  orders = [(step.came, step.read) for step in steps]
  orders.append((steps[-1].after, (core_chain.TOKENS, *chain.outputs)))
  for size, (came, read) in zip(sizes, orders, strict=True):
    if _is_moved(chain, came, read):
      moved, peak = moved + 2 * size, max(peak, 2 * size)
  kept = sizes[0] if recompute else sum(sizes[:-1])
  moved += chain.params / tokens
  return Cost(chain.macs, chain.params, chain.rank, moved, peak, kept)


def _of_mixture(
  layer: mixture.Mixture | mixture.MixtureFeedForward,
  experts: list[structured.Structured],
  sizes: list[tuple[int, int]],
  tokens: int,
) -> Cost:
  """The gate, rows gathered into tiles, experts on these, and their sum."""
  count = layer.experts
  rows = mixture.rows_per_tile(tokens, count, layer.active)
  share = mixture.computed_share(tokens, count, layer.active)
  parts = [
    _of_chain(expert.chain(*size), rows, expert.recompute)
    for expert, size in zip(experts, sizes, strict=True)
  ]
  d_in, d_out = sizes[0][0], sizes[-1][1]
  params = count * (d_in + sum(part.params for part in parts))
  # Each tile reads the parameters of its expert.
  moved = sum(part.moved for part in parts) + 2 * d_in
  moved = share * moved + d_in + layer.active * d_out + count
  return Cost(
    share * sum(part.macs for part in parts) + count * d_in,
    params,
    min(part.rank for part in parts),
    moved + count * d_in / tokens,
    share * max(part.peak for part in parts),
    d_in + count + share * sum(part.kept for part in parts),
  )


def _is_moved(
  chain: core_chain.Chain, axes: tuple[str, ...], wanted: tuple[str, ...]
) -> bool:
  """Whether a permutation changes the order of numbers in memory."""
  sizes = chain.sizes | {core_chain.TOKENS: 2}
  before, after = (
    [axis for axis in side if sizes[axis] > 1] for side in (axes, wanted)
  )
  return before != after
