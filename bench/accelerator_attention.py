"""Attention of bench.accelerator: our kernel, our plain form and cuDNN's."""

import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from bench import accelerator_sizes
from bench import queued
from bench import timing
from models import attention
from models import execution
from models import masks
from models import positions

# Queries, keys and values to outputs.
_Mix = Callable[..., jax.Array]


def rows(
  sizes: accelerator_sizes.Sizes, rounds: int, room: float | None
) -> Iterator[dict[str, object]]:
  """Lambda attention against full causal attention, in bf16.

  The kernels are those of models.fused_window where the device has them; the
  plain forms are what other devices take.

  room: bytes of the device that may be used; None where it does not say.
  """
  heads, width = sizes.heads
  for length in sizes.lengths:
    rng = np.random.default_rng(0)
    arrays = tuple(
      jnp.asarray(rng.normal(size=(1, length, heads, width)), jnp.bfloat16)
      for _ in range(3)
    )
    for gradient in (False, True):
      programs = {
        name: _program(mix, gradient).lower(*arrays).compile()
        for name, mix in forms(sizes, length).items()
      }
      runs = {
        name: functools.partial(
          queued.several, functools.partial(program, *arrays)
        )
        for name, program in programs.items()
        if _fits(program, room)
      }
      seconds = timing.interleaved(runs, rounds)
      passes = 'forward and gradient' if gradient else 'forward'
      row: dict[str, object] = {'attention': f'{passes}, {length}'}
      for name, program in programs.items():
        memory = program.memory_analysis().temp_size_in_bytes
        spent = 'not run'
        if name in seconds:
          median = timing.spread(seconds[name]).median
          spent = f'{1e3 * median / queued.REPEATS:.3g} ms'
        row[name] = f'{spent}, {memory / 1e6:.0f} MB'
      for slow in programs:
        if slow != 'Lambda':
          row[f'{slow} over Lambda'] = '-'
          if {slow, 'Lambda'} <= set(seconds):
            row[f'{slow} over Lambda'] = timing.ratio(
              seconds[slow], seconds['Lambda']
            )
      yield row


def forms(sizes: accelerator_sizes.Sizes, length: int) -> dict[str, _Mix]:
  """What is measured for rows of a length, by name.

  Only where there are kernels do the plain forms and cuDNN differ from what
  the model takes.
  """
  heads, width = sizes.heads

  def ours(mask: Any) -> _Mix:
    layer = attention.Attention(heads, heads, width, mask, False, 'bfloat16')

    def mix(*arrays: jax.Array) -> jax.Array:
      return layer.mix(*arrays, *_places(arrays[0]))[0]

    return mix

  found = {'Lambda': ours(sizes.mask), 'full': ours(masks.Causal())}
  if execution.fuses_attention(length):
    found |= {f'{name}, plain': _plain(mix) for name, mix in found.items()}
    found['full, cuDNN'] = _cudnn
  return found


def _places(x_BTHK: jax.Array) -> tuple[masks.Tokens, positions.Rotation]:
  """Of rows of one document, with what their queries and keys turn by."""
  tokens = masks.row_tokens(jnp.ones(x_BTHK.shape[:2], jnp.int32))
  return tokens, positions.Rotary().turn(tokens.position_BT, x_BTHK.shape[3])


def _plain(mix: _Mix) -> _Mix:
  """The same without a kernel of ours."""

  def run(*arrays: jax.Array) -> jax.Array:
    with mock.patch.object(execution, 'fuses_attention', lambda _: False):
      return mix(*arrays)

  return run


def _cudnn(
  query_BTHK: jax.Array, key_BTHK: jax.Array, value_BTHK: jax.Array
) -> jax.Array:
  _, turn = _places(query_BTHK)
  return jax.nn.dot_product_attention(
    positions.rotate(query_BTHK, turn),
    positions.rotate(key_BTHK, turn),
    value_BTHK,
    is_causal=True,
    implementation='cudnn',
  )


def _program(mix: _Mix, gradient: bool) -> Any:
  def total(*arrays: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(mix(*arrays).astype(jnp.float32)))

  return jax.jit(jax.grad(total, (0, 1, 2)) if gradient else mix)


def _fits(program: jax.stages.Compiled, room: float | None) -> bool:
  # Several of them are queued.
  memory = program.memory_analysis().temp_size_in_bytes
  return not room or 2 * memory <= room
