"""Losses over learning rates and widths: whether the best rate stays.

Under a rule that transfers (training.transfer) the learning rate of the least
loss is the same at every width (arXiv 2203.03466, figure 1).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import base
from configs import coordinates
from models import forward
from training import host
from training import step as step_lib

# The last steps whose mean loss counts.
_LAST = 10


class Column(NamedTuple):
  """Mean losses in nats at the end of training, one per learning rate.

  A run whose loss is no number any more has an infinite one.
  """

  rule: str
  width: int
  losses: tuple[float, ...]


def sweep(
  config: base.Config, rates: tuple[float, ...], batches: list[Any]
) -> tuple[float, ...]:
  """The loss after one run over the batches for each rate, compiled once.

  Each begins with the same parameters and keeps the config's schedule.
  """
  model, steps = config.model, len(batches)
  unit = config.optimizer.learning_rate
  # A number of the state, so that another rate is no other program.
  optimizer = optax.chain(
    config.optimizer.build(steps),
    optax.inject_hyperparams(optax.scale)(step_size=1.0),
  )
  step = jax.jit(
    functools.partial(
      step_lib.train_step,
      objective=config.objective,
      apply=forward.counted(model),
      optimizer=optimizer,
      accumulate=config.accumulate,
    ),
    compiler_options=host.compiler_options(),
  )
  init_key, train_key = jax.random.split(jax.random.key(config.seed))
  params = jax.jit(model.init)(init_key, batches[0]['ids'][:1])['params']
  for source in config.initial:
    params = source(config, params, None)
  first = step_lib.create(params, optimizer, train_key)
  found = []
  for rate in rates:
    head, scaled = first.optimizer
    size = {'step_size': jnp.float32(rate / unit)}
    scaled = scaled._replace(hyperparams=size)
    state, losses = first._replace(optimizer=(head, scaled)), []
    for batch in batches:
      state, metrics = step(state, batch)
      losses.append(metrics.loss)
    last = float(np.mean(jax.device_get(losses[-_LAST:])))
    found.append(last if math.isfinite(last) else math.inf)
  return tuple(found)


def columns(
  config: base.Config,
  rates: tuple[float, ...],
  factors: list[float],
  rules: list[str],
  batches: list[Any],
) -> list[Column]:
  """Losses for every rule and width; all configs are made before any trains."""
  wider = [
    (rule, coordinates.at_width(config, factor, rule))
    for rule in rules
    for factor in factors
  ]
  return [
    Column(rule, coordinates.width_of(one.model), sweep(one, rates, batches))
    for rule, one in wider
  ]


def table(rates: tuple[float, ...], found: list[Column]) -> list[str]:
  """A line per rate and a column per width; * marks the least loss of one."""
  heads = ''.join(f'{f"{one.rule} {one.width}":>16}' for one in found)
  lines = [f'{"learning rate":<14}{heads}']
  for i, rate in enumerate(rates):
    numbers = ''.join(
      f'{one.losses[i]:>15.4f}{"*" if best(one) == i else " "}' for one in found
    )
    lines.append(f'{rate:<14g}{numbers}')
  for rule in dict.fromkeys(one.rule for one in found):
    places = [best(one) for one in found if one.rule == rule]
    shown = ', '.join(f'{rates[i]:g}' for i in places)
    apart = max(places) - min(places)
    same = 'at one place' if not apart else f'{apart} rates apart'
    lines.append(f'{rule}: the best rates by width are {shown}, {same}')
    if {0, len(rates) - 1} & set(places):
      lines.append(f'{rule}: a best rate stands at an end; give more of them')
  return lines


def best(column: Column) -> int:
  """The index of the rate of least loss."""
  return int(np.argmin(column.losses))
