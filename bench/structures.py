"""Milliseconds of every structured layer beside those of a dense one.

  python -m bench.structures

Forward and backward pass of square layers: the output, the gradient of the
input and those of the parameters; float32 on a CPU, bfloat16 on a GPU, where
two block cores are one kernel (models.fused_structured) and, in rows of their
own, plain products. What a structure saves in multiply-adds it may lose in
moving data: time per multiply-add says how much.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags

from bench import tables
from bench import timing
from configs import command
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
  """Width of input and output, tokens at a time, dtype of the computation."""

  width: int
  tokens: int
  dtype: str = 'float32'

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
    their gradients, the parameters and theirs, which are float32.
    """
    computing = 6 * self.macs * size.tokens / flop_rate
    number = jnp.dtype(size.dtype).itemsize
    moved = number * 4 * size.width * size.tokens + 4 * 2 * self.params
    return max(computing, moved / byte_rate)


FULL = tuple(Size(d, t) for d in (1024, 2048) for t in (512, 4096))
QUICK = (Size(16, 32),)
# Enough tokens for a pass to take longer than its start.
ON_GPU = tuple(Size(d, 32768, 'bfloat16') for d in (1024, 2048, 4096, 8192))


def rows(
  sizes: tuple[Size, ...],
  rounds: int,
  flop_rate: float,
  byte_rate: float,
  *,
  layers: Mapping[str, nn.Module] | None = None,
) -> Iterator[dict[str, object]]:
  """One row per size and structure, all structures of a size interleaved.

  flop_rate, byte_rate: of matmuls and memory, per second, for the floor.
  layers: by name, `dense` among them; LAYERS by default.
  """
  for size in sizes:
    runs, costs = {}, {}
    for name, layer in (LAYERS if layers is None else layers).items():
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
  layer = layer.clone(parent=None, features=size.width, dtype=size.dtype)
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


def draw(layer: nn.Module, size: Size) -> tuple[object, jax.Array, jax.Array]:
  """Parameters, an input and the gradient of the output, all random."""
  keys = jax.random.split(jax.random.key(0), 3)
  shape = (size.tokens, size.width)
  x_TD, change_TD = (
    jax.random.normal(key, shape, size.dtype) for key in keys[:2]
  )
  layer = layer.clone(parent=None, features=size.width, dtype=size.dtype)
  return jax.jit(layer.init)(keys[2], x_TD)['params'], x_TD, change_TD


def plain(
  layers: Mapping[str, nn.Module],
) -> dict[str, nn.Module]:
  """The layers, and those that a GPU runs as one kernel without it, too."""
  found = dict(layers)
  for name, layer in layers.items():
    blocks = structured.BlockTensorTrain | structured.Monarch
    if isinstance(layer, blocks):
      found[f'{name}, plain'] = layer.clone(parent=None, fused=False)
  return found


def rates(width: int, dtype: str) -> tuple[float, float]:
  """FLOP/s of a product of square matrices, bytes/s through a large array."""
  options = host.compiler_options()
  x = jnp.ones((width, width), dtype)
  product = jax.jit(jnp.matmul, compiler_options=options)
  double = jax.jit(lambda x: 2 * x, compiler_options=options)
  large = jnp.ones((8 * width, width), dtype)
  runs = (
    lambda: jax.block_until_ready(product(x, x)),
    lambda: jax.block_until_ready(double(large)),
  )
  seconds = timing.interleaved(dict(enumerate(runs)), 5)
  return 2 * width**3 / min(seconds[0]), 2 * large.nbytes / min(seconds[1])


def main(widths: list[str], tokens: int | None, rounds: int) -> None:
  """Prints the table of this machine.

  widths, tokens: instead of those that suit its kind.
  """
  command.quiet()
  host.keep_memory()
  with command.explained('bench.structures'):
    is_gpu = jax.default_backend() == 'gpu'
    sizes = ON_GPU if is_gpu else FULL
    if widths:
      if not all(width.isdigit() and int(width) > 0 for width in widths):
        raise ValueError(
          f'--widths={",".join(widths)} must be widths, as 1024,2048.'
        )
      counts = dict.fromkeys(size.tokens for size in sizes)
      sizes = tuple(
        Size(int(d), t, sizes[0].dtype) for d in widths for t in counts
      )
    if tokens is not None:
      sizes = tuple(dict.fromkeys(s._replace(tokens=tokens) for s in sizes))
    flop_rate, byte_rate = rates(8192 if is_gpu else 1024, sizes[0].dtype)
    print(
      f'{jax.devices()[0].device_kind}, {sizes[0].dtype}, jax'
      f' {jax.__version__}; matmul {flop_rate / 1e9:.0f} GFLOP/s, memory'
      f' {byte_rate / 1e9:.0f} GB/s\n'
    )
    layers = plain(LAYERS) if is_gpu else LAYERS
    for size in sizes:
      found = rows((size,), rounds, flop_rate, byte_rate, layers=layers)
      print(tables.markdown(list(found)), flush=True)


if __name__ == '__main__':
  _WIDTHS = flags.DEFINE_list('widths', [], 'Of layers; else those of a kind.')
  _TOKENS = flags.DEFINE_integer('tokens', None, 'At a time.', lower_bound=1)
  _ROUNDS = flags.DEFINE_integer('rounds', 7, 'Timed rounds.', lower_bound=1)
  command.run(lambda _: main(_WIDTHS.value, _TOKENS.value, _ROUNDS.value))
