"""From a network's parameters to the few integers that its file holds."""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

from bounds import alphabet as alphabets
from bounds import quantise
from bounds import rate_distortion
from bounds import structure as structures
from configs import base
from configs import predictor
from data import pipeline
from evals import symbol_scores
from models import forward
from training import compression

# Quantiser steps, in deviations, that are tried.
_WIDEST, _FINEST = 16.0, 1 / 64

# Weights of an array that a step is looked for by.
_SAMPLE = 50_000

# Batches by which a rounding is chosen.
_TRIALS = 16

# Of a file besides its weights: notes, shapes, scales and checksum.
_HEADER_BYTES = 350


@dataclasses.dataclass(frozen=True)
class Target:
  """What a file is made for.

  alphabet: name; symbols: of the stream; delta: 1 - confidence.
  structure: from the free arrays, which the file holds, to parameters.
  file_bytes: how large it is to be; None for what is best.
  """

  alphabet: str
  symbols: int
  delta: float
  structure: structures.Structure = structures.PLAIN
  file_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class PostTraining:
  """Rounds the weights as they are, one step per deviation of every array.

  By `rate_distortion.RateDistortion`.

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
  fidelities: what an error of rounding costs (`compression.worth`) is
    multiplied by; of these roundings the best is kept. 0 is the nearest symbol.
  """

  seconds: float | None = None
  steps: int | None = None
  plain: float = 0.0
  bits: float = 1.5
  learning_rate: float = 2e-3
  plain_rate: float = 5e-3
  price: float = 1.0
  fidelities: tuple[float, ...] = (0.0, 2.0, 5.0, 15.0, 50.0)

  def __post_init__(self) -> None:
    _check_bits(self.bits)
    if not 0 <= self.plain < 1:
      raise ValueError(f'plain={self.plain} must be in [0, 1)')
    if self.seconds is not None and not 0 < self.seconds < math.inf:
      raise ValueError(
        f'--minutes={self.seconds / 60:g} must be above 0 to train in, or 0'
      )

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
      ).latent.weights
    setting = self._setting(target, kind.size)
    objective = functools.partial(compression.bound, setting=setting, **value)
    trained = compression.train(
      compression.start(free, step=step_of(self.bits)),
      batches,
      value=objective,
      learning_rate=self.learning_rate,
      report=compression.log,
      **self._share(1 - self.plain),
    )
    trials = [next(batches) for _ in range(_TRIALS)]
    return self._rounded(trained, target.symbols, objective, trials)

  def _setting(self, target: Target, classes: int) -> compression.Setting:
    bits = None
    if target.file_bytes is not None:
      bits = 8.0 * (target.file_bytes - _HEADER_BYTES)
    return compression.Setting(
      target.symbols, classes, target.delta, 8.0 * _HEADER_BYTES, self.price,
      bits,
    )  # fmt: skip

  def _rounded(
    self,
    trained: compression.Trained,
    symbols: int,
    objective: Any,
    trials: list[Any],
  ) -> dict[str, quantise.Coded]:
    """The rounding of least objective on the trial batches."""
    latent = trained.latent
    codes = compression.symbols(latent).codes
    ratios = compression.ratios(latent)
    worth = compression.worth(trained, symbols)
    measure = jax.jit(lambda latent, batch: objective(latent, batch)[0])
    best, least = {}, math.inf
    for fidelity in self.fidelities:
      found = {
        name: rate_distortion.rounded(ratio, fidelity * worth[name])
        if fidelity
        else np.rint(ratio).astype(np.int32)
        for name, ratio in ratios.items()
      }
      coded = {x: quantise.Coded(found[x], codes[x]) for x in found}
      decoded = latent._replace(
        weights={name: x.decode() for name, x in coded.items()}
      )
      values = [float(measure(decoded, batch)) for batch in trials]
      compression.log_rounding(fidelity, np.mean(values))
      if np.mean(values) < least:
        best, least = coded, np.mean(values)
    return best

  def _share(self, share: float) -> dict[str, float | int]:
    if self.steps is not None:
      return {'steps': max(1, round(share * self.steps))}
    return {'seconds': share * (self.seconds or 0.0)}


def quantised_to(
  free: dict[str, Any], bits: float
) -> dict[str, quantise.Coded]:
  """Arrays rounded by one relative step so that they take `bits` per weight."""
  sample = {name: _sampled(array) for name, array in free.items()}
  total = sum(np.size(x) for x in free.values())
  fine, wide = _FINEST, _WIDEST
  for _ in range(12):
    step = math.sqrt(fine * wide)
    coded = predictor.quantised(sample, rate_distortion.RateDistortion(step))
    found = sum(
      predictor.ideal_bits({name: x}) * np.size(free[name]) / x.symbols.size
      for name, x in coded.items()
    )
    if found > bits * total:
      fine = step
    else:
      wide = step
  return predictor.quantised(free, rate_distortion.RateDistortion(wide))


def _sampled(array: Any) -> np.ndarray:
  """Some rows of a large array, evenly spaced."""
  array = np.asarray(array)
  if array.ndim < 2 or array.size <= _SAMPLE:
    return array
  return array[:: -(-array.size // _SAMPLE)]


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
