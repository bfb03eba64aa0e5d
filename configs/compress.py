"""From a network's parameters to the few integers that its file holds."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from bounds import alphabet as alphabets
from bounds import quantise
from bounds import structure as structures
from configs import base
from configs import predictor
from data import pipeline
from evals import symbol_scores
from models import forward
from training import compression

# Quantiser steps, in deviations, that are tried.
_WIDEST, _FINEST = 16.0, 1 / 64


@dataclasses.dataclass(frozen=True)
class Target:
  """What a file is made for.

  alphabet: name; symbols: of the stream; delta: 1 - confidence.
  structure: from the free arrays, which the file holds, to parameters.
  """

  alphabet: str
  symbols: int
  delta: float
  structure: structures.Structure = structures.PLAIN


@dataclasses.dataclass(frozen=True)
class PostTraining:
  """Rounds the weights as they are, one step per deviation of every array.

  bits: per weight on average, after entropy coding.
  """

  bits: float = 3.0

  def __post_init__(self) -> None:
    _check_bits(self.bits)

  def __call__(
    self, config: base.Config, params: Any, target: Target
  ) -> dict[str, quantise.Coded]:
    """Free arrays by path, coded."""
    del config
    free = target.structure.shrink(predictor.flat(params))
    return quantised_to(free, self.bits)


@dataclasses.dataclass(frozen=True)
class OnCertificate:
  """Trains weights, steps and smoothing on the certificate, then rounds.

  seconds or steps: how long. plain: first share of it without rounding, for
    parameters that are fresh. bits: per weight, where rounding begins.
  price: multiplies what a bit of file costs; 1 is the certificate's.
  """

  seconds: float | None = None
  steps: int | None = None
  plain: float = 0.0
  bits: float = 1.5
  learning_rate: float = 2e-3
  plain_rate: float = 5e-3
  price: float = 1.0

  def __post_init__(self) -> None:
    _check_bits(self.bits)
    if not 0 <= self.plain < 1:
      raise ValueError(f'plain={self.plain} must be in [0, 1)')

  def __call__(
    self, config: base.Config, params: Any, target: Target
  ) -> dict[str, quantise.Coded]:
    """Free arrays by path, coded; batches are those of the config."""
    kind = alphabets.named(target.alphabet)
    structure, of_model = target.structure, predictor.shapes_of(config.model)

    def expand(free: dict[str, Any]) -> Any:
      return predictor.nested(structure.expand(free, of_model))

    value = {
      'expand': expand,
      'apply': forward.pure(config.model),
      'measure': symbol_scores.measure(kind.classes),
    }
    setting = compression.Setting(
      target.symbols, kind.size, target.delta, price=self.price
    )
    batches = pipeline.iterate(
      pipeline.batches(
        config.data.open('train'),
        row_length=config.row_length,
        batch_size=config.batch_size,
        seed=config.seed,
      )
    )
    free = structure.shrink(predictor.flat(params))
    if self.plain:
      free = compression.train(
        compression.start(free, step=1.0),
        batches,
        value=functools.partial(compression.plain, **value),
        learning_rate=self.plain_rate,
        report=compression.log,
        **self._share(self.plain),
      ).weights
    latent = compression.train(
      compression.start(free, step=step_of(self.bits)),
      batches,
      value=functools.partial(compression.bound, setting=setting, **value),
      learning_rate=self.learning_rate,
      report=compression.log,
      **self._share(1 - self.plain),
    )
    found = compression.symbols(latent)
    return {
      name: quantise.Coded(symbols, found.codes[name])
      for name, symbols in found.symbols.items()
    }

  def _share(self, share: float) -> dict[str, float | int]:
    if self.steps is not None:
      return {'steps': max(1, round(share * self.steps))}
    return {'seconds': share * (self.seconds or 0.0)}


def quantised_to(
  free: dict[str, Any], bits: float
) -> dict[str, quantise.Coded]:
  """Arrays rounded by one relative step so that they take `bits` per weight."""
  total = sum(np.size(x) for x in free.values())
  fine, wide = _FINEST, _WIDEST
  for _ in range(12):
    step = math.sqrt(fine * wide)
    coded = predictor.quantised(free, quantise.Deadzone(step))
    if predictor.ideal_bits(coded) > bits * total:
      fine = step
    else:
      wide = step
  return predictor.quantised(free, quantise.Deadzone(wide))


@functools.lru_cache
def step_of(bits: float) -> float:
  """The step, in deviations, at which normal weights take so many bits."""
  rng = np.random.default_rng(0)
  sample = {'w': rng.standard_normal((200, 100))}
  coded = quantised_to(sample, bits)['w']
  return float(quantise.scales(coded.codes)[0] / sample['w'].std())


def _check_bits(bits: float) -> None:
  if not 0 < bits <= 8:
    raise ValueError(f'--bits={bits} must be above 0 and at most 8 per weight')
