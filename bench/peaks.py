"""What the machine can do: matrix products and memory traffic, measured.

The best of both libraries and several sizes, for a peak that is measured too
low flatters whatever is compared with it.
"""

import time
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp

from bench import timing


def matmul_flops(sizes: Iterable[int]) -> float:
  """FLOP/s of the fastest float32 product of square matrices."""
  return max(
    2 * size**3 / _least_seconds(run)
    for size in sizes
    for run in _matmuls(size)
  )


def memory_bytes(size: int) -> float:
  """Bytes per second that go through an array of so many bytes, at best."""
  import torch

  x = jnp.ones(size // 4, jnp.float32)
  total, double = jax.jit(jnp.sum), jax.jit(lambda x: 2 * x)
  source, target = torch.ones(size // 4), torch.empty(size // 4)
  return max(
    size / _least_seconds(lambda: total(x).block_until_ready()),
    2 * size / _least_seconds(lambda: double(x).block_until_ready()),
    2 * size / _least_seconds(lambda: target.copy_(source)),
  )


def _matmuls(size: int) -> Iterator[timing.Run]:
  import torch

  x = jnp.ones((size, size), jnp.float32)
  # XLA has two implementations, and its default is not the faster one.
  for options in ({}, {'xla_cpu_experimental_ynn_fusion_type': ''}):
    product = jax.jit(jnp.matmul, compiler_options=options)
    yield lambda product=product: product(x, x).block_until_ready()
  y, out = torch.ones(size, size), torch.empty(size, size)
  yield lambda: torch.mm(y, y, out=out)


def _least_seconds(run: timing.Run) -> float:
  run()
  seconds = []
  for _ in range(7):
    began = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - began)
  return min(seconds)
