"""Every projection of a config: its work, memory, parameters, rank and time."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from configs import base
from models import layer_cost
from models import linear
from models import mixture
from models import projections
from training import host

# A measurement repeats its work for so long, and the fastest of some counts.
_SECONDS, _ROUNDS = 0.05, 3


class Row(NamedTuple):
  """One projection; forward and backward are seconds of a step's tokens.

  number: bytes of a number of its computation.
  """

  path: str
  structure: str
  d_in: int
  d_out: int
  copies: int
  tokens: int
  number: int
  cost: layer_cost.Cost
  forward: float | None
  backward: float | None


class Seconds(NamedTuple):
  """Of a forward pass, and of one with all gradients."""

  forward: float
  backward: float


def rows(config: base.Config, *, measured: bool) -> list[Row]:
  """The projections of one device's part of a batch, in the order of calls.

  measured: time each kind of layer on the default device.
  """
  count = config.batch_size // config.accumulate
  found = projections.find(config.model, rows=count, length=config.row_length)
  seconds: dict[Any, Seconds] = {}
  for one in found:
    kind = (one.layer, one.d_in, one.d_out, one.tokens)
    if measured and kind not in seconds:
      seconds[kind] = measure(one.layer, one.d_in, one.tokens)
  return [
    Row(
      one.path,
      describe(one.layer),
      one.d_in,
      one.d_out,
      one.copies or 1,
      one.tokens,
      number_of(one.layer),
      layer_cost.cost(one.layer, one.d_in, one.d_out, one.tokens),
      *seconds.get(
        (one.layer, one.d_in, one.d_out, one.tokens), (None, None)
      ),
    )
    for one in found
  ]


def number_of(layer: nn.Module) -> int:
  """Bytes of a number of a layer's computation."""
  return jnp.dtype(layer.dtype).itemsize


def describe(layer: nn.Module) -> str:
  """A class and those of its fields that decide on its structure."""
  set_by_model = ('parent', 'name', 'features', 'gain', 'dtype', 'hidden')
  if isinstance(layer, linear.Dense):
    return 'Dense'
  fields = {}
  for field in dataclasses.fields(layer):
    value = getattr(layer, field.name)
    if field.name in (*set_by_model, 'residual_gain') or value == field.default:
      continue
    is_layer = isinstance(value, nn.Module)
    fields[field.name] = describe(value) if is_layer else value
  text = ', '.join(f'{name}={value}' for name, value in fields.items())
  return f'{type(layer).__name__}({text})'


def measure(layer: nn.Module, d_in: int, tokens: int) -> Seconds:
  """Seconds of a layer on normal inputs and parameters."""
  keys = jax.random.split(jax.random.key(0), 2)
  shape = (tokens, d_in)
  if isinstance(layer, mixture.MixtureFeedForward):
    shape = (1, *shape)
  x = jax.random.normal(keys[0], shape, jnp.dtype(layer.dtype))
  params = jax.jit(layer.init)(keys[1], x)['params']

  def forward(params: Any, x: jax.Array) -> jax.Array:
    return layer.apply({'params': params}, x)

  def backward(params: Any, x: jax.Array) -> Any:
    out, pull = jax.vjp(forward, params, x)
    return out, pull(out)

  options = host.compiler_options()
  return Seconds(
    *(
      _clock(jax.jit(function, compiler_options=options), params, x)
      for function in (forward, backward)
    )
  )


def _clock(run: Callable[..., Any], *arguments: Any) -> float:
  """Seconds of the fastest of several rounds, after a first run."""
  jax.block_until_ready(run(*arguments))
  best = float('inf')
  for _ in range(_ROUNDS):
    began, runs = time.perf_counter(), 0
    while not runs or time.perf_counter() - began < _SECONDS:
      jax.block_until_ready(run(*arguments))
      runs += 1
    best = min(best, (time.perf_counter() - began) / runs)
  return best


def table(config: base.Config, found: list[Row]) -> list[str]:
  """Rows as text, and their sums per byte of the config's rows."""
  widest = max(len(row.path) for row in found)
  name = max(len(row.structure) for row in found)
  heads = (
    f'{"layer":<{widest}}  {"structure":<{name}} {"sizes":>13} {"copies":>6}'
    f' {"tokens":>7} {"MACs/token":>11} {"params":>10} {"rank":>6}'
    f' {"bytes/token":>11} {"peak MB":>8} {"kept MB":>8} {"ms":>8}'
    f' {"ms, both":>8}'
  )
  lines = [heads]
  for row in found:
    cost, size = row.cost, row.number
    lines.append(
      f'{row.path:<{widest}}  {row.structure:<{name}}'
      f' {f"{row.d_in} -> {row.d_out}":>13} {row.copies:>6} {row.tokens:>7}'
      f' {cost.macs:>11.0f} {cost.params:>10} {cost.rank:>6}'
      f' {size * cost.moved:>11.0f}'
      f' {size * cost.peak * row.tokens / 1e6:>8.3f}'
      f' {size * cost.kept * row.tokens / 1e6:>8.3f}'
      f' {_milliseconds(row.forward)} {_milliseconds(row.backward)}'
    )
  return [*lines, total(config, found)]


def total(config: base.Config, found: list[Row]) -> str:
  """What all projections cost together, per byte or position of the rows."""
  count = config.batch_size // config.accumulate * config.row_length
  macs = moved = kept = params = 0.0
  for row in found:
    times = row.copies * row.tokens
    macs += times * row.cost.macs / count
    moved += times * row.cost.moved * row.number / count
    kept += times * row.cost.kept * row.number
    params += row.copies * row.cost.params
  seconds = [row.copies * (row.backward or 0.0) for row in found]
  return (
    f'{len(found)} projections: {macs:.0f} MACs and {moved:.0f} bytes'
    f' moved per position, {params:.0f} parameters, {kept / 1e6:.2f} MB kept'
    ' for the backward pass'
    + (f', {1e3 * sum(seconds):.2f} ms both ways' if any(seconds) else '')
  )


def _milliseconds(seconds: float | None) -> str:
  return f'{"-":>8}' if seconds is None else f'{1e3 * seconds:>8.3f}'
