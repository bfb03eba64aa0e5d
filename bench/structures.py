"""Milliseconds of every structured layer beside those of a dense one.

Forward and backward pass of square layers in float32: the output, the gradient
of the input and those of the parameters. What a structure saves in multiply-
adds it may lose in moving data: time per multiply-add says how much.
"""

from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax

from bench import timing
from models import flops
from models import linear
from models import mixture
from models import structured
from training import host

LAYERS: dict[str, nn.Module] = {
  'dense': linear.Dense(),
  'low-rank, sqrt(d)': structured.LowRank(),
  'Kronecker': structured.Kronecker(),
  'tensor train, r=4': structured.TensorTrain(rank=4),
  'Monarch, 4 blocks': structured.Monarch(blocks=4),
  'BTT, r=1': structured.BlockTensorTrain(rank=1),
  'BTT, r=4': structured.BlockTensorTrain(rank=4),
  'BTT-MoE, 2 of 8': mixture.Mixture(),
}


class Size(NamedTuple):
  """Width of input and output, and tokens at a time."""

  width: int
  tokens: int

  def __str__(self) -> str:
    return f'd={self.width}, T={self.tokens}'


class Cost(NamedTuple):
  """Multiply-adds per token, those of a mixture's padding too; parameters."""

  macs: float
  params: int

  def floor(self, size: Size, flop_rate: float, byte_rate: float) -> float:
    """Seconds below which no forward and backward pass of these counts can be.

    Three products of two FLOPs per multiply-add, at the best rate of a matmul;
    or the memory that must be read and written once: the input, the output,
    their gradients, the parameters and theirs.
    """
    computing = 6 * self.macs * size.tokens / flop_rate
    moved = 4 * (4 * size.width * size.tokens + 2 * self.params)
    return max(computing, moved / byte_rate)


FULL = tuple(Size(d, t) for d in (1024, 2048) for t in (512, 4096))
QUICK = (Size(16, 32),)


def rows(
  sizes: tuple[Size, ...], rounds: int, flop_rate: float, byte_rate: float
) -> Iterator[dict[str, object]]:
  """One row per size and structure, all structures of a size interleaved.

  flop_rate, byte_rate: of matmuls and memory, per second, for the floor.
  """
  for size in sizes:
    runs, costs = {}, {}
    for name, layer in LAYERS.items():
      runs[name], costs[name] = build(layer, size)
    seconds = timing.interleaved(runs, rounds)
    dense = costs['dense']
    for name, cost in costs.items():
      own = timing.spread(seconds[name]).median
      speed = timing.ratio(seconds['dense'], seconds[name])
      floor = cost.floor(size, flop_rate, byte_rate)
      saved = dense.macs / cost.macs
      yield {
        'layer': size,
        'structure': name,
        'ms': f'{1e3 * own:.2f}',
        'speed over dense': speed,
        'MACs, dense over it': f'{saved:.2f}',
        'time per MAC over dense': f'{saved / speed.median:.2f}',
        'floor, ms': f'{1e3 * floor:.2f}',
      }


def build(layer: nn.Module, size: Size) -> tuple[timing.Run, Cost]:
  """A forward and backward pass of a layer, and what it costs.

  The pass returns the output and the gradients of `draw`'s first two arrays.
  """
  params, x_TD, change_TD = draw(layer, size)
  layer = layer.clone(parent=None, features=size.width)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  cost = Cost(flops.macs(layer, size.width, size.width, size.tokens), count)

  def pass_both_ways(
    params: object, x_TD: jax.Array, change_TD: jax.Array
  ) -> object:
    y_TD, back = jax.vjp(
      lambda params, x_TD: layer.apply({'params': params}, x_TD), params, x_TD
    )
    return y_TD, back(change_TD)

  run = jax.jit(pass_both_ways, compiler_options=host.compiler_options())
  return lambda: jax.block_until_ready(run(params, x_TD, change_TD)), cost


def draw(
  layer: nn.Module, size: Size
) -> tuple[object, jax.Array, jax.Array]:
  """Parameters, an input and the gradient of the output, all random."""
  keys = jax.random.split(jax.random.key(0), 3)
  shape = (size.tokens, size.width)
  x_TD, change_TD = (jax.random.normal(key, shape) for key in keys[:2])
  layer = layer.clone(parent=None, features=size.width)
  return jax.jit(layer.init)(keys[2], x_TD)['params'], x_TD, change_TD
