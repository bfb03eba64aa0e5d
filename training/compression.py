"""Training on a certificate: weights of few symbols, paid for by the bit.

Minimised is the geometric-mean betting bound itself, on a batch, as a function
of latent weights, of the quantiser step of every array and of the smoothing:

  mean(B) - exp(mean(ln(B - x)) - cost),  cost = (bits ln 2 + ln 1/delta) / N

for losses x of the quantised weights, ceilings B and N symbols in the stream.
`bits` is the length of an entropy code of the symbols. Rounding passes
gradients straight through (arXiv 1308.3432), which gives steps the gradient of
arXiv 1902.08153; between two symbols the code length is interpolated.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from training import objectives

LARGEST = 30  # The largest symbol by magnitude.
GRID = 8  # Steps are 2**(integer / GRID).

# Bits per symbol for a file of e times its size; 1 % off is then a hundredth.
_PULL = 30.0
# Batches over which squared gradients are averaged, as a decay.
_SQUARES_DECAY = 0.99


class Measure(Protocol):
  """(logits_BTV, targets_BT) -> probability and entropy in bits, [B, T]."""

  def __call__(
    self, logits_BTV: jax.Array, targets_BT: jax.Array
  ) -> tuple[jax.Array, jax.Array]: ...


class Setting(NamedTuple):
  """What the certificate will be about.

  symbols: N; classes: V; delta: 1 - confidence; fixed_bits: of the file beside
    its weights; price: multiplies the bits, 1 for the certificate itself.
  target_bits: that the weights are to take, whatever is best; None for what is.
  """

  symbols: int
  classes: int
  delta: float
  fixed_bits: float = 0.0
  price: float = 1.0
  target_bits: float | None = None


class Smoothing(NamedTuple):
  """alpha = 2**(-base - |slope| H), B = log2(V / alpha) + |slack|."""

  base: jax.Array
  slope: jax.Array
  slack: jax.Array


class Latent(NamedTuple):
  """What is trained: weights, log2 of the step of each array, smoothing."""

  weights: Any
  steps: Any
  smoothing: Smoothing


class Symbols(NamedTuple):
  """Arrays of integers and their step, 2**(code / GRID)."""

  symbols: Any
  codes: Any


class Values(NamedTuple):
  """Of one batch: the bound, mean loss in bits, and bits of all weights.

  price: the bound's derivative by cost, as a term of bounds.betting.Betting.
  """

  bound: jax.Array
  risk: jax.Array
  bits: jax.Array
  price: jax.Array


class Trained(NamedTuple):
  """What training ends with.

  squares: of the gradient by every weight, averaged over the last hundred
    batches of `count` symbols each. values: of the last batch.
  """

  latent: Latent
  squares: Any
  count: jax.Array
  values: Values


def start(params: Any, *, step: float, vector_step: float = 0.1) -> Latent:
  """Latent weights that are `params`, with steps in standard deviations.

  Arrays of one axis (norms) take `vector_step`: they are few.
  """

  def log_step(array: jax.Array) -> jax.Array:
    size = step if array.ndim > 1 else vector_step
    deviation = jnp.sqrt(jnp.mean(jnp.square(array)))
    return jnp.log2(size * jnp.where(deviation > 1e-6, deviation, 0.02))

  smoothing = Smoothing(*(jnp.float32(x) for x in (4.0, 0.5, 0.5)))
  return Latent(params, jax.tree.map(log_step, params), smoothing)


def quantised(latent: Latent) -> Any:
  """The weights as they will be decoded, with gradients passed through."""
  return jax.tree.map(_quantise, latent.weights, latent.steps)


def _on_grid(log_step: jax.Array) -> jax.Array:
  rounded = jnp.round(log_step * GRID) / GRID
  return log_step + jax.lax.stop_gradient(rounded - log_step)


def _ratio(array: jax.Array, log_step: jax.Array) -> jax.Array:
  return jnp.clip(array / jnp.exp2(_on_grid(log_step)), -LARGEST, LARGEST)


def _quantise(array: jax.Array, log_step: jax.Array) -> jax.Array:
  ratio = _ratio(array, log_step)
  ratio += jax.lax.stop_gradient(jnp.round(ratio) - ratio)
  return ratio * jnp.exp2(_on_grid(log_step))


def symbols(latent: Latent) -> Symbols:
  """The integers and step codes (int32 NumPy) that go into the file."""
  codes = jax.tree.map(
    lambda x: np.asarray(jnp.round(x * GRID), np.int32).reshape(1),
    latent.steps,
  )
  integers = jax.tree.map(lambda x: np.rint(x).astype(np.int32), ratios(latent))
  return Symbols(integers, codes)


def ratios(latent: Latent) -> Any:
  """Weights in steps of the file (NumPy), which symbols are the nearest of.

  Raises ValueError if one is no number.
  """
  found = jax.tree.map(
    lambda x, step: np.asarray(_ratio(x, step)), latent.weights, latent.steps
  )
  if not all(np.isfinite(x).all() for x in jax.tree.leaves(found)):
    raise ValueError(
      'some weights are NaN: training diverged, so begin at another checkpoint'
    )
  return found


def worth(trained: Trained, symbols: int) -> Any:
  """Bits of file that a squared error of a step is worth, by weight.

  A bit of file is worth price ln(2) / N bits per symbol of the bound. An error
  e costs h e**2 / 2 with h the second derivative by that weight; for log
  losses in bits it is about ln(2) count times the squared gradient (the
  empirical Fisher information).
  """
  scale = float(trained.count) * symbols / (2 * float(trained.values.price))

  def one(square: jax.Array, log_step: jax.Array) -> np.ndarray:
    step = np.exp2(np.round(float(log_step) * GRID) / GRID)
    return scale * step**2 * np.asarray(square, np.float64)

  return jax.tree.map(one, trained.squares, trained.latent.steps)


def code_length(array: jax.Array, log_step: jax.Array) -> jax.Array:
  """Bits of an array's symbols under their own frequencies.

  The frequencies are constants to the gradient; a weight between two symbols
  has a length between theirs, so that it is drawn to the likelier one.
  """
  ratio = _ratio(array, log_step).ravel()
  symbol = jax.lax.stop_gradient(jnp.round(ratio)).astype(jnp.int32)
  count_K = jnp.zeros(2 * LARGEST + 2).at[symbol + LARGEST].add(1.0)
  share_K = (count_K + 0.05) / (ratio.size + 0.05 * len(count_K))
  bits_K = -jnp.log2(share_K)
  low = jnp.floor(jax.lax.stop_gradient(ratio)).astype(jnp.int32)
  low = jnp.minimum(low, LARGEST - 1)
  slope = bits_K[low + LARGEST + 1] - bits_K[low + LARGEST]
  between = ratio * slope
  exact = jnp.sum(bits_K[symbol + LARGEST])
  between = jnp.sum(between)
  return exact + between - jax.lax.stop_gradient(between)


def total_bits(latent: Latent) -> jax.Array:
  lengths = jax.tree.map(code_length, latent.weights, latent.steps)
  return sum(jax.tree.leaves(lengths))


def bound(
  latent: Latent,
  batch: objectives.Batch,
  *,
  apply: objectives.Apply,
  measure: Measure,
  setting: Setting,
  expand: Callable[[Any], Any] = lambda weights: weights,
) -> tuple[jax.Array, Values]:
  """The betting bound of a batch, in bits per symbol.

  expand: from the weights in the file to the parameters of the model.
  """
  params = expand(quantised(latent))
  logits_BTV = apply(params, batch['ids'], batch['documents'])
  probability_BT, entropy_BT = measure(logits_BTV, batch['targets'])
  smoothing = latent.smoothing
  log_alpha_BT = -smoothing.base - jnp.abs(smoothing.slope) * entropy_BT
  log_alpha_BT = jnp.minimum(log_alpha_BT, np.log2(0.9))
  alpha_BT = jnp.exp2(log_alpha_BT)
  floor_BT = alpha_BT / setting.classes
  loss_BT = -jnp.log2((1 - alpha_BT) * probability_BT + floor_BT)
  ceiling_BT = -jnp.log2(floor_BT) + jnp.abs(smoothing.slack) + 1e-3
  mask_BT = batch['mask']
  count = jnp.maximum(mask_BT.sum(), 1.0)

  def mean(x_BT: jax.Array) -> jax.Array:
    return jnp.sum(x_BT * mask_BT) / count

  bits = total_bits(latent)
  whole = setting.price * bits + setting.fixed_bits
  cost = (whole * np.log(2) - np.log(setting.delta)) / setting.symbols
  room = jnp.exp(mean(jnp.log(ceiling_BT - loss_BT)) - cost)
  value = mean(ceiling_BT) - room
  values = Values(value, mean(loss_BT), bits, room)
  if setting.target_bits is not None:
    value += _PULL * jnp.square(jnp.log(bits / setting.target_bits))
  return value, values


def plain(
  latent: Latent,
  batch: objectives.Batch,
  *,
  apply: objectives.Apply,
  measure: Measure,
  expand: Callable[[Any], Any] = lambda weights: weights,
) -> tuple[jax.Array, Values]:
  """Mean loss in bits of the weights as they are, neither rounded nor smoothed.

  For the time in which there is nothing yet to compress.
  """
  params = expand(latent.weights)
  logits_BTV = apply(params, batch['ids'], batch['documents'])
  probability_BT, _ = measure(logits_BTV, batch['targets'])
  loss_BT = -jnp.log2(jnp.maximum(probability_BT, 1e-12))
  mask_BT = batch['mask']
  loss = jnp.sum(loss_BT * mask_BT) / jnp.maximum(mask_BT.sum(), 1.0)
  return loss, Values(loss, loss, jnp.zeros(()), jnp.ones(()))


def train(
  latent: Latent,
  batches: Iterator[objectives.Batch],
  *,
  value: Callable[[Latent, objectives.Batch], tuple[jax.Array, Values]],
  learning_rate: float,
  seconds: float | None = None,
  steps: int | None = None,
  step_rate: float = 2.0,
  smoothing_rate: float = 10.0,
  report: Callable[[int, float, Values], Any] | None = None,
) -> Trained:
  """Minimises `value` by Adam for that many seconds or steps.

  The learning rate rises over the first twentieth of the time and then falls
  to 0 as a cosine; log steps and smoothing have `step_rate` and
  `smoothing_rate` times that. Raises FloatingPointError if it diverges.
  """
  if (seconds is None) == (steps is None):
    raise ValueError('give the time of compression in seconds or in steps')
  rates = Latent(1.0, step_rate, smoothing_rate)
  optimizer = optax.chain(
    _squares(), optax.clip_by_global_norm(1.0), optax.scale_by_adam(0.9, 0.99)
  )
  state = optimizer.init(latent)
  update = jax.jit(
    functools.partial(_update, value=value, optimizer=optimizer, rates=rates),
    donate_argnums=(0, 1),
  )
  latent = jax.tree.map(jnp.array, latent)
  began, said = time.monotonic(), time.monotonic()
  step, progress = 0, 0.0
  while progress < 1:
    rate = learning_rate * _schedule(progress)
    batch = next(batches)
    latent, state, values = update(latent, state, batch, rate)
    step += 1
    if steps is not None:
      progress = step / steps
    else:
      jax.block_until_ready(values)
      # Compiling takes as long on a busy machine as a short training.
      began = time.monotonic() if step == 1 else began
      progress = (time.monotonic() - began) / seconds
    if progress >= 1 or time.monotonic() - said > 10:
      said = time.monotonic()
      _check_finite(step, values)
      if report:
        report(step, progress, values)
  # An average that began at 0.
  share = 1 - _SQUARES_DECAY**step
  squares = jax.tree.map(lambda x: x / share, state[0].weights)
  count = jnp.asarray(batch['mask']).sum()
  return Trained(latent, squares, count, values)


def _squares() -> optax.GradientTransformation:
  """Changes nothing; its state is an average of squared gradients."""

  def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    del params
    weight = 1 - _SQUARES_DECAY
    state = jax.tree.map(
      lambda x, g: _SQUARES_DECAY * x + weight * jnp.square(g), state, grads
    )
    return grads, state

  return optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params), update
  )


def _check_finite(step: int, values: Values) -> None:
  if not np.isfinite(values.bound):
    raise FloatingPointError(
      f'training on the certificate diverged: the bound is {values.bound} after'
      f' {step} steps; begin at finite weights or lower the learning rate'
    )


def _update(
  latent: Latent,
  state: optax.OptState,
  batch: objectives.Batch,
  rate: jax.Array,
  *,
  value: Callable[[Latent, objectives.Batch], tuple[jax.Array, Values]],
  optimizer: optax.GradientTransformation,
  rates: Latent,
) -> tuple[Latent, optax.OptState, Values]:
  grads, values = jax.grad(value, has_aux=True)(latent, batch)
  updates, state = optimizer.update(grads, state)
  scaled = Latent(
    *(
      jax.tree.map(lambda x, factor=factor: -rate * factor * x, part)
      for part, factor in zip(updates, rates, strict=True)
    )
  )
  return optax.apply_updates(latent, scaled), state, values


def _schedule(progress: float) -> float:
  warm = 0.05
  if progress < warm:
    return max(progress, 0.005) / warm
  return 0.5 + 0.5 * float(np.cos(np.pi * (progress - warm) / (1 - warm)))


def log(step: int, progress: float, values: Values) -> None:
  """A line of what compression has come to."""
  logging.info(
    'compressing %3.0f %%, step %d: bound %.3f, loss %.3f bits, %.0f kbit',
    100 * progress, step, values.bound, values.risk, values.bits / 1000,
  )  # fmt: skip


def log_rounding(fidelity: float, value: float) -> None:
  """A line of what one way to round comes to."""
  logging.info('rounding at fidelity %g: bound %.4f', fidelity, value)
