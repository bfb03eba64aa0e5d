"""Matrices written as a chain of cores, each a batch of small matrices.

Axes have names. The input features are the axes `inputs`, the output features
the axes `outputs`, row-major and padded with zeros. An axis that several cores
hold is a block index, unless it is no feature: then it is their bond.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models import execution

# Axes of the einsum family: the input's, the output's, the bond.
EINSUM = ('alpha', 'beta', 'gamma', 'delta', 'epsilon', 'phi', 'rho')
TOKENS = 'tokens'


class Core(NamedTuple):
  """A kernel [batch, contract, out]; each entry is a tuple of axis names."""

  batch: tuple[str, ...]
  contract: tuple[str, ...]
  out: tuple[str, ...]

  @property
  def axes(self) -> tuple[str, ...]:
    return self.batch + self.contract + self.out


@dataclasses.dataclass(frozen=True)
class Chain:
  """Cores in the order in which they meet the input, and their sizes.

  d_in, d_out: widths of the layer, at most the products of the sizes of
  `inputs` and `outputs`.
  """

  d_in: int
  d_out: int
  inputs: tuple[str, ...]
  outputs: tuple[str, ...]
  cores: tuple[Core, ...]
  sizes: dict[str, int]

  def size(self, axes: Iterable[str]) -> int:
    """Product of the sizes of axes."""
    return math.prod(self.sizes[axis] for axis in axes)

  @property
  def shapes(self) -> tuple[tuple[int, int, int], ...]:
    """Kernel shapes: blocks, fan-in and fan-out of every core."""
    return tuple(tuple(map(self.size, core)) for core in self.cores)

  @property
  def params(self) -> int:
    """Numbers in all kernels."""
    return sum(map(math.prod, self.shapes))

  @property
  def macs(self) -> int:
    """Multiply-adds per token, padding included."""
    total, state = 0, self.inputs
    for core in self.cores:
      idle = [a for a in state if a not in core.batch + core.contract]
      total += self.size(core.axes) * self.size(idle)
      state = core.batch + tuple(idle) + core.out
    return total

  @property
  def rank(self) -> int:
    """Rank of the matrix of generic cores: the least cut of the network.

    With padding it is an upper bound, which generic cores reach as a rule.
    """
    least = min(self.d_in, self.d_out)
    # Every core stands on the side of the input (0) or of the output (1).
    for sides in itertools.product((0, 1), repeat=len(self.cores)):
      cut = 1
      for axis, size in self.sizes.items():
        held = {
          side
          for side, core in zip(sides, self.cores, strict=True)
          if axis in core.axes
        }
        held |= {0} if axis in self.inputs else set()
        held |= {1} if axis in self.outputs else set()
        cut *= size if len(held) == 2 else 1
      least = min(least, cut)
    return least

  @property
  def max_bond(self) -> int:
    """The largest useful bond: beyond it cores only repeat each other."""
    features = set(self.inputs + self.outputs)
    limits = []
    for i in range(1, len(self.cores)):
      left, right = (
        {axis for core in part for axis in core.axes} & features
        for part in (self.cores[:i], self.cores[i:])
      )
      limits += [self.size(left - right), self.size(right - left)]
    return min(limits)


def pair(d_in: int, d_out: int, sizes: dict[str, int]) -> Chain:
  """Two cores of the einsum family, the one first that makes it cheaper.

  sizes: of the axes EINSUM. The input is (gamma, alpha, beta), the output (phi,
  delta, epsilon).
  """
  chains = []
  for first, second in (
    (('beta', 'epsilon'), ('alpha', 'delta')),
    (('alpha', 'delta'), ('beta', 'epsilon')),
  ):
    cores = (
      Core(('gamma',), first[:1], ('phi', first[1], 'rho')),
      Core(('phi',), (second[0], 'gamma', 'rho'), second[1:]),
    )
    inputs, outputs = ('gamma', 'alpha', 'beta'), ('phi', 'delta', 'epsilon')
    chains.append(Chain(d_in, d_out, inputs, outputs, cores, sizes))
  return min(chains, key=lambda chain: chain.macs)


def train(
  d_in: int,
  d_out: int,
  ins: tuple[int, ...],
  outs: tuple[int, ...],
  *,
  rank: int = 1,
) -> Chain:
  """A tensor train with these factors, contracted from its cheaper end."""
  names = range(1, len(ins) + 1)
  inputs = tuple(f'm{i}' for i in names)
  outputs = tuple(f'n{i}' for i in names)
  chains = []
  # The last end first: where both cost the same, it moves less.
  for order in (names[::-1], names):
    cores = []
    for step, i in enumerate(order):
      before = (f'r{min(i, j)}' for j in order[step - 1 : step] if step)
      after = (f'r{min(i, j)}' for j in order[step + 1 : step + 2])
      cores.append(Core((), (f'm{i}', *before), (f'n{i}', *after)))
    sizes = _train_sizes(ins, outs, rank)
    chains.append(Chain(d_in, d_out, inputs, outputs, tuple(cores), sizes))
  return min(chains, key=lambda chain: chain.macs)


def block_train(
  d_in: int,
  d_out: int,
  ins: tuple[int, ...],
  outs: tuple[int, ...],
  *,
  rank: int = 1,
) -> Chain:
  """A block tensor train with these factors: all idle axes are block indices.

  Core i contracts ins[i] and makes outs[i]; the input is (.., m2, m1), the
  output (n1, n2, ..).
  """
  names = range(1, len(ins) + 1)
  inputs = tuple(f'm{i}' for i in names[::-1])
  outputs = tuple(f'n{i}' for i in names)
  cores = []
  for i in names:
    idle = outputs[: i - 1] + inputs[: len(ins) - i]
    before = (f'r{i - 1}',) if i > 1 else ()
    after = (f'r{i}',) if i < len(ins) else ()
    cores.append(Core(idle, (f'm{i}', *before), (f'n{i}', *after)))
  sizes = _train_sizes(ins, outs, rank)
  return Chain(d_in, d_out, inputs, outputs, tuple(cores), sizes)


class Step(NamedTuple):
  """A product with a core: axes of the state before, as read, and after.

  last: whether what the core leaves alone stands last in `read` and `after`,
    else it stands between the blocks and the core's own axes.
  """

  core: Core
  came: tuple[str, ...]
  read: tuple[str, ...]
  after: tuple[str, ...]
  last: bool


def steps(chain: Chain, tokens_last: bool = True) -> Iterator[Step]:
  """The products of a pass, in order.

  tokens_last: in products with blocks, so that what moves between two cores
    are contiguous rows of tokens and the matmuls are wide: the fastest for
    many tokens. A plain product takes tokens first.
  """
  axes = (TOKENS, *chain.inputs)
  for core in chain.cores:
    idle = tuple(a for a in axes if a not in core.batch + core.contract)
    last = chain.size(core.batch) > 1 and tokens_last
    if last:
      idle = (*(a for a in idle if a != TOKENS), TOKENS)
      read = core.batch + core.contract + idle
      after = core.batch + core.out + idle
    else:
      read = core.batch + idle + core.contract
      after = core.batch + idle + core.out
    yield Step(core, axes, read, after, last)
    axes = after


def blast(d_in: int, d_out: int, blocks: int, rank: int) -> Chain:
  """Blocks (j, i) of a matrix, V_j diag(s_ji) U_i of rank `rank` each.

  The bond is a block index of the core in the middle: three cores hold it.
  """
  sizes = {
    'm1': blocks, 'm2': -(-d_in // blocks),
    'n1': blocks, 'n2': -(-d_out // blocks), 'r1': rank,
  }  # fmt: skip
  cores = (
    Core(('m1',), ('m2',), ('r1',)),
    Core(('r1',), ('m1',), ('n1',)),
    Core(('n1',), ('r1',), ('n2',)),
  )
  return Chain(d_in, d_out, ('m1', 'm2'), ('n1', 'n2'), cores, sizes)


def contract(
  chain: Chain,
  kernels: Sequence[jax.Array],
  x_TD: jax.Array,
  *,
  tokens_last: bool | None = None,
) -> jax.Array:
  """x W for rows of x, without forming W; kernels have `chain.shapes`.

  The backward pass is written out: its products read what the forward pass
  has put in order, and permute nothing of their own.

  tokens_last: as in `steps`; None for what models.execution says.
  """
  if tokens_last is None:
    tokens_last = execution.tokens_last(x_TD.shape[0])
  plan = list(steps(chain, tokens_last))
  padding = chain.size(chain.inputs) - chain.d_in
  x_TD = jnp.pad(x_TD, [(0, 0), (0, padding)]) if padding else x_TD

  @jax.custom_vjp
  def run(kernels: list[jax.Array], x_TD: jax.Array) -> jax.Array:
    return _forward(chain, plan, kernels, x_TD)[0]

  def forward(kernels: list[jax.Array], x_TD: jax.Array) -> Any:
    out_TD, states = _forward(chain, plan, kernels, x_TD)
    return out_TD, (kernels, states)

  def backward(kept: Any, change_TD: jax.Array) -> Any:
    return _backward(chain, plan, *kept, change_TD)

  run.defvjp(forward, backward)
  return run(list(kernels), x_TD)[:, : chain.d_out]


def _forward(
  chain: Chain,
  plan: list[Step],
  kernels: list[jax.Array],
  x_TD: jax.Array,
) -> tuple[jax.Array, list[jax.Array]]:
  """The output, and what each product reads."""
  tokens = x_TD.shape[0]
  sizes = chain.sizes | {TOKENS: tokens}
  axes, state, states = (TOKENS, *chain.inputs), x_TD, []
  for step, kernel in zip(plan, kernels, strict=True):
    blocks, fan_in, _ = kernel.shape
    state = state.reshape([sizes[axis] for axis in axes])
    state = transpose(state, axes, step.read)
    # A matmul takes either side transposed, but not both at full speed.
    if step.last:
      state = state.reshape(blocks, fan_in, -1)
      states.append(state)
      state = _multiply(kernel, state, (1, 1))
    else:
      state = state.reshape(blocks, -1, fan_in)
      states.append(state)
      state = _multiply(state, kernel, (2, 1))
    axes = step.after
  state = state.reshape([sizes[axis] for axis in axes])
  out_TD = transpose(state, axes, (TOKENS, *chain.outputs))
  return out_TD.reshape(tokens, -1), states


def _backward(
  chain: Chain,
  plan: list[Step],
  kernels: list[jax.Array],
  states: list[jax.Array],
  change_TD: jax.Array,
) -> tuple[list[jax.Array], jax.Array]:
  """Gradients of the kernels and of the input."""
  tokens = change_TD.shape[0]
  sizes = chain.sizes | {TOKENS: tokens}
  axes, change, found = (TOKENS, *chain.outputs), change_TD, []
  for step, kernel, state in zip(
    plan[::-1], kernels[::-1], states[::-1], strict=True
  ):
    blocks, _, fan_out = kernel.shape
    change = change.reshape([sizes[axis] for axis in axes])
    change = transpose(change, axes, step.after)
    if step.last:
      change = change.reshape(blocks, fan_out, -1)
      found.append(_multiply(state, change, (2, 2)))
      change = _multiply(kernel, change, (2, 1))
    else:
      change = change.reshape(blocks, -1, fan_out)
      found.append(_multiply(state, change, (1, 1)))
      change = _multiply(change, kernel, (2, 2))
    axes = step.read
  change = change.reshape([sizes[axis] for axis in axes])
  of_x = transpose(change, axes, (TOKENS, *chain.inputs))
  return found[::-1], of_x.reshape(tokens, -1)


def _multiply(
  a: jax.Array, b: jax.Array, axes: tuple[int, int]
) -> jax.Array:
  """Products of blocks, [blocks, ..] each, summed over an axis of each."""
  if a.shape[0] == 1:
    numbers = (((axes[0] - 1,), (axes[1] - 1,)), ((), ()))
    return jax.lax.dot_general(a[0], b[0], numbers)[None]
  numbers = (((axes[0],), (axes[1],)), ((0,), (0,)))
  return jax.lax.dot_general(a, b, numbers)


def states(chain: Chain) -> list[int]:
  """Numbers per token that each core reads, and that the last one writes."""
  found = list(steps(chain))
  axes = [step.came for step in found] + [found[-1].after]
  return [chain.size(set(names) - {TOKENS}) for names in axes]


def to_dense(chain: Chain, kernels: Sequence[jax.Array]) -> jax.Array:
  """The matrix W [d_in, d_out] that the kernels stand for."""
  numbers = {axis: i for i, axis in enumerate(chain.sizes)}
  operands: list[Any] = []
  for core, kernel in zip(chain.cores, kernels, strict=True):
    operands.append(kernel.reshape([chain.sizes[a] for a in core.axes]))
    operands.append([numbers[a] for a in core.axes])
  matrix = jnp.einsum(
    *operands,
    [numbers[a] for a in chain.inputs + chain.outputs],
    precision=jax.lax.Precision.HIGHEST,
  )
  matrix = matrix.reshape(chain.size(chain.inputs), -1)
  return matrix[: chain.d_in, : chain.d_out]


def transpose(
  x: Any, axes: tuple[str, ...], wanted: tuple[str, ...]
) -> Any:
  """x with its named axes in the wanted order."""
  return x.transpose([axes.index(axis) for axis in wanted])


def _train_sizes(
  ins: tuple[int, ...], outs: tuple[int, ...], rank: int
) -> dict[str, int]:
  sizes = {f'm{i}': size for i, size in enumerate(ins, 1)}
  sizes |= {f'n{i}': size for i, size in enumerate(outs, 1)}
  return sizes | {f'r{i}': rank for i in range(1, len(ins))}
