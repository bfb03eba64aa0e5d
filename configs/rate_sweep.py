"""Losses over learning rates and widths: whether the best rate stays.

Under a rule that transfers (training.transfer) the learning rate of the least
loss is the same at every width (arXiv 2203.03466, figure 1).
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import base
from configs import coordinates
from configs import kept
from models import forward
from training import host
from training import step as step_lib
from training import workdir as workdir_lib

# The last steps whose mean loss counts.
_LAST = 10


class Column(NamedTuple):
  """Mean losses in nats at the end of training, one per learning rate.

  A run whose loss is no number any more has an infinite one.

  errors: standard errors of these means over seeds; empty for a single one.
  least: `vertex` of every seed by itself; empty if one has none.
  """

  rule: str
  width: int
  losses: tuple[float, ...]
  errors: tuple[float, ...] = ()
  least: tuple[float, ...] = ()


# (seed of the parameters, rate, batches) -> loss
Trial = Callable[[int, float, list[Any]], float]


def trial(config: base.Config, steps: int) -> Trial:
  """The loss after one run over so many batches, compiled for all rates.

  It keeps the config's schedule, and of one seed all begin alike.
  """
  model = config.model
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
  draw = jax.jit(model.init)

  def run(seed: int, rate: float, batches: list[Any]) -> float:
    init_key, train_key = jax.random.split(jax.random.key(seed))
    params = draw(init_key, batches[0]['ids'][:1])['params']
    for source in config.initial:
      params = source(config, params, None)
    state = step_lib.create(params, optimizer, train_key)
    head, scaled = state.optimizer
    size = {'step_size': jnp.float32(rate / unit)}
    scaled = scaled._replace(hyperparams=size)
    state, losses = state._replace(optimizer=(head, scaled)), []
    for batch in batches:
      state, metrics = step(state, batch)
      losses.append(metrics.loss)
    last = float(np.mean(jax.device_get(losses[-_LAST:])))
    return last if math.isfinite(last) else math.inf

  return run


@dataclasses.dataclass(frozen=True)
class RateSweep:
  """Runs of a config at every rate and width, by every rule.

  factors: that all widths are multiplied by; rules: of coordinates.RULES.
  steps: of a run; seeds: that the config's is the first of.
  """

  config: base.Config
  rates: tuple[float, ...]
  factors: tuple[float, ...]
  rules: tuple[str, ...]
  steps: int = 10
  seeds: int = 1

  def run(self, workdir: pathlib.Path) -> list[Column]:
    """Losses of all runs, each made or found in the folder.

    All configs are made before any trains.
    """
    wider = [
      (rule, coordinates.at_width(self.config, factor, rule))
      for rule in self.rules
      for factor in self.factors
    ]
    content = self.config.data.open('train').metadata['content_sha256']
    setting = {
      'config': base.to_json(self.config),
      'steps': self.steps,
      'content_sha256': content,
    }
    with workdir_lib.hold(workdir):
      file = kept.Kept(workdir / 'rates.json', setting, label='losses')
      # JSON has no infinity.
      losses = file.read(lambda x: math.inf if x is None else float(x))
      for rule, config in wider:
        self._train(rule, config, losses, file)
    return [self._column(rule, config, losses) for rule, config in wider]

  def _train(
    self,
    rule: str,
    config: base.Config,
    losses: dict[str, float],
    file: kept.Kept,
  ) -> None:
    """Adds the losses of one rule and width that are not there."""
    width, run = coordinates.width_of(config.model), None
    for seed in self._seeds:
      names = {rate: _name(rule, width, seed, rate) for rate in self.rates}
      missing = {r: name for r, name in names.items() if name not in losses}
      if not missing:
        continue
      run = run or trial(config, self.steps)
      own = dataclasses.replace(self.config, seed=seed)
      batches = coordinates.read_batches(own, self.steps)
      for rate, name in missing.items():
        losses[name] = run(seed, rate, batches)
        file.write({k: x if x < math.inf else None for k, x in losses.items()})
        print(f'{name}: {losses[name]:.4f}', flush=True)

  def _column(
    self, rule: str, config: base.Config, losses: dict[str, float]
  ) -> Column:
    width = coordinates.width_of(config.model)
    losses_SR = np.array(
      [
        [losses[_name(rule, width, seed, rate)] for rate in self.rates]
        for seed in self._seeds
      ]
    )
    errors: tuple[float, ...] = ()
    if self.seeds > 1:
      with np.errstate(invalid='ignore'):
        spread_R = np.std(losses_SR, axis=0, ddof=1)
      errors = tuple(spread_R / self.seeds**0.5)
    least = [vertex(self.rates, tuple(losses_R)) for losses_R in losses_SR]
    return Column(
      rule,
      width,
      tuple(np.mean(losses_SR, axis=0)),
      errors,
      () if None in least else tuple(least),
    )

  @property
  def _seeds(self) -> range:
    return range(self.config.seed, self.config.seed + self.seeds)


def _name(rule: str, width: int, seed: int, rate: float) -> str:
  """Of a run among those of one config."""
  return f'{rule}, width {width}, seed {seed}, rate {rate!r}'


def table(rates: tuple[float, ...], found: list[Column]) -> list[str]:
  """A line per rate and a column per width; * marks the least loss of one.

  Then the rates at which parabolas through the best and its neighbours are
  least, by the logarithm of the rate.
  """
  heads = ''.join(f'{f"{one.rule} {one.width}":>16}' for one in found)
  lines = [f'{"learning rate":<14}{heads}']
  for i, rate in enumerate(rates):
    numbers = ''.join(
      f'{one.losses[i]:>15.4f}{"*" if best(one.losses) == i else " "}'
      for one in found
    )
    lines.append(f'{rate:<14g}{numbers}')
  for rule in dict.fromkeys(one.rule for one in found):
    own = [one for one in found if one.rule == rule]
    lines += (f'{rule}: {text}' for text in _verdicts(rates, own))
  return lines


def _verdicts(rates: tuple[float, ...], found: list[Column]) -> list[str]:
  """Where the best rates of the widths of one rule stand."""
  places = [best(one.losses) for one in found]
  shown = ', '.join(f'{rates[i]:g}' for i in places)
  apart = max(places) - min(places)
  same = 'at one place' if not apart else f'{apart} rates apart'
  lines = [f'the best rates by width are {shown}, {same}']
  between = [vertex(rates, one.losses) for one in found]
  if None not in between:
    shown = ', '.join(
      f'{rate:.3g}{_spread(one.least)}'
      for rate, one in zip(between, found, strict=True)
    )
    factor = max(between) / min(between)
    lines.append(
      f'least of parabolas at {shown}, within a factor {factor:.2f}'
      f' = 2^{math.log2(factor):.2f}'
    )
  errors = [e for one in found for e in one.errors if math.isfinite(e)]
  if errors:
    lines.append(f'standard errors over seeds are at most {max(errors):.3f}')
  if {0, len(rates) - 1} & set(places):
    lines.append('a best rate stands at an end; give more of them')
  return lines


def _spread(least: tuple[float, ...]) -> str:
  """The standard error of a place over seeds, as a factor."""
  if len(least) < 2:
    return ''
  return f' +- 2^{np.std(np.log2(least), ddof=1) / len(least) ** 0.5:.2f}'


def best(losses: tuple[float, ...]) -> int:
  """The index of the least loss."""
  return int(np.argmin(losses))


def vertex(rates: tuple[float, ...], losses: tuple[float, ...]) -> float | None:
  """The rate of least loss between those tried; None at an end of them."""
  i = best(losses)
  if not 0 < i < len(rates) - 1:
    return None
  near = losses[i - 1 : i + 2]
  if not all(map(math.isfinite, near)):
    return rates[i]
  # Centred, so that the parabola is well determined.
  x = np.log(rates[i - 1 : i + 2]) - math.log(rates[i])
  square, slope, _ = np.polyfit(x, near, 2)
  return rates[i] * math.exp(-slope / (2 * square)) if square > 0 else rates[i]
