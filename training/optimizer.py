"""Optimizers as frozen dataclasses: `build` makes the Optax transformation."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import optax
import optax.contrib

from training import sharding
from training import transfer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """What all optimizers share: schedule, clipping, factors, frozen parameters.

  learning_rate: peak, reached after `warmup_steps`; it falls along a cosine to
    `final_ratio` of it at the last step.
  base: the model for which learning_rate was chosen, or None. Rates of other
    widths and structures follow from it (training.transfer): this model at its
    width there, its projections as they are or linear.Dense(). It goes with
    configs.initial.LikeBase.
  multipliers: (regular expression, factor) pairs; the first that matches a
    parameter's path scales its learning rate, at every width: what a kind of
    parameters wants at the base, as kernels beside embeddings.
  clip: bound on the global gradient norm, None for none.
  frozen: regular expressions of the paths of parameters that stay as they are.
  """

  learning_rate: float = 1e-3
  warmup_steps: int = 100
  final_ratio: float = 0.1
  base: Any = None
  multipliers: tuple[tuple[str, float], ...] = ()
  clip: float | None = 1.0
  frozen: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    if self.learning_rate <= 0 or self.warmup_steps < 0:
      raise ValueError(
        f'optimizer.learning_rate={self.learning_rate} must be positive and'
        f' optimizer.warmup_steps={self.warmup_steps} not negative.'
      )
    if self.clip is not None and self.clip <= 0:
      raise ValueError(
        f'optimizer.clip={self.clip} must be positive, or None for no bound.'
      )
    for rule in (*self.frozen, *(rule for rule, _ in self.multipliers)):
      sharding.compile_rule(rule, 'optimizer')

  def schedule(self, steps: int) -> optax.Schedule:
    """Learning rate at each of `steps` steps."""
    return optax.warmup_cosine_decay_schedule(
      0.0 if self.warmup_steps else self.learning_rate,
      self.learning_rate,
      min(self.warmup_steps, steps - 1),
      steps,
      self.learning_rate * self.final_ratio,
    )

  def build(self, steps: int) -> optax.GradientTransformation:
    """The transformation for a run of `steps` steps."""
    parts = [
      *self._directions(),
      optax.scale_by_learning_rate(self.schedule(steps)),
      _scale(functools.partial(_by_path, self.multipliers)),
    ]
    if self.base is not None:
      shapes = transfer.base_shapes(self.base)
      parts.append(_scale(functools.partial(self._rates, base=shapes)))
    if self.clip is not None:
      parts.insert(0, optax.clip_by_global_norm(self.clip))
    if not self.frozen:
      return optax.chain(*parts)
    return optax.partition(
      {False: optax.chain(*parts), True: optax.set_to_zero()}, self._frozen
    )

  @property
  def _rule(self) -> str:
    """Of training.transfer.RULES."""
    raise NotImplementedError

  def _rates(
    self, params: Any, base: dict[str, tuple[int, ...]]
  ) -> dict[str, float]:
    """Factors of the learning rate by path, against that of the base."""
    return transfer.rates(params, base, rule=self._rule)

  def _directions(self) -> list[optax.GradientTransformation]:
    """From clipped gradients to steps of a unit learning rate."""
    raise NotImplementedError

  def _frozen(self, params: Any) -> Any:
    return _matching(self.frozen, params)


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
  """AdamW (arXiv 1711.05101).

  decay_rule: regular expression of the parameter paths that are decayed, by
    default every matrix of a projection and no norm or embedding. The decay of
    a parameter goes with its learning rate.
  """

  b1: float = 0.9
  b2: float = 0.95
  epsilon: float = 1e-8
  weight_decay: float = 0.1
  decay_rule: str = r'kernel$'

  _rule = 'adam'

  def __post_init__(self) -> None:
    super().__post_init__()
    sharding.compile_rule(self.decay_rule, 'optimizer')

  def _directions(self) -> list[optax.GradientTransformation]:
    return [
      optax.scale_by_adam(self.b1, self.b2, self.epsilon),
      optax.add_decayed_weights(
        self.weight_decay, functools.partial(_matching, (self.decay_rule,))
      ),
    ]


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
  """Gradient descent with heavy-ball momentum, 0 for none."""

  momentum: float = 0.9

  _rule = 'sgd'

  def __post_init__(self) -> None:
    super().__post_init__()
    if not 0 <= self.momentum < 1:
      raise ValueError(
        f'optimizer.momentum={self.momentum} must be in [0, 1).'
      )

  def _directions(self) -> list[optax.GradientTransformation]:
    return [optax.trace(self.momentum)] if self.momentum else []


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
  """Orthogonalised momentum for kernels, Adam for all other parameters.

  Every block of a core is orthogonalised by itself: a core is a block-diagonal
  matrix, whose spectral norm is the largest of its blocks'. A step of a block
  has the norm (fan-out / fan-in)^1/2 of a unit rate, by which outputs change
  as much at every size (arXiv 2310.17813, 2409.20325), so that no width needs
  another rate; the cores of a layer share the change of its output.

  momentum: of kernels, Nesterov's. kernel_rule: regular expression of their
    paths; heads are left to Adam.
  others: Adam's learning rate over that of kernels.
  weight_decay: of kernels, with their learning rate.
  """

  learning_rate: float = 2e-2
  momentum: float = 0.95
  kernel_rule: str = r'^(?!(.*/)?head/).*kernel$'
  others: float = 0.1
  b1: float = 0.9
  b2: float = 0.95
  epsilon: float = 1e-8
  weight_decay: float = 0.1

  _rule = 'muon'

  def __post_init__(self) -> None:
    super().__post_init__()
    sharding.compile_rule(self.kernel_rule, 'optimizer')
    if not 0 <= self.momentum < 1 or self.others <= 0:
      raise ValueError(
        f'optimizer.momentum={self.momentum} must be in [0, 1) and'
        f' optimizer.others={self.others} positive.'
      )

  def _directions(self) -> list[optax.GradientTransformation]:
    kernels = optax.chain(
      optax.contrib.scale_by_muon(
        beta=self.momentum, weight_dimension_numbers=_matrices
      ),
      optax.stateless(lambda updates, _: jax.tree.map(_spread, updates)),
      optax.add_decayed_weights(self.weight_decay),
    )
    others = optax.chain(
      optax.scale_by_adam(self.b1, self.b2, self.epsilon),
      optax.scale(self.others),
    )
    return [
      optax.partition(
        {True: kernels, False: others},
        functools.partial(_matching, (self.kernel_rule,)),
      )
    ]

  def _rates(
    self, params: Any, base: dict[str, tuple[int, ...]]
  ) -> dict[str, float]:
    by_muon, by_adam = (
      transfer.rates(params, base, rule=rule) for rule in ('muon', 'adam')
    )
    return {
      path: (by_muon if re.search(self.kernel_rule, path) else by_adam)[path]
      for path in by_adam
    }


def _matrices(updates: Any) -> Any:
  """Of all arrays the last two axes are a matrix, the others its copies."""
  numbers = optax.contrib.MuonDimensionNumbers(-2, -1)
  return jax.tree.map(lambda _: numbers, updates)


def _spread(update: jax.Array) -> jax.Array:
  """Of matrices [.., fan-in, fan-out] of unit norm, for outputs of unit RMS."""
  return update * (update.shape[-1] / update.shape[-2]) ** 0.5


def _matching(rules: tuple[str, ...], params: Any) -> Any:
  """True for every parameter whose path one of the rules finds."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: any(re.search(rule, sharding.name(path)) for rule in rules),
    params,
  )


def _by_path(
  multipliers: tuple[tuple[str, float], ...], params: Any
) -> dict[str, float]:
  """The factor of the first rule that each path matches."""
  paths = jax.tree_util.tree_leaves_with_path(params)
  return {
    name: next((v for rule, v in multipliers if re.search(rule, name)), 1.0)
    for name in (sharding.name(path) for path, _ in paths)
  }


def _scale(
  factors: Callable[[Any], dict[str, float]],
) -> optax.GradientTransformation:
  """Scales each update by the factor of its path, which its shapes give."""

  def scale(updates: Any, _: Any = None) -> Any:
    by_path = factors(updates)
    return jax.tree_util.tree_map_with_path(
      lambda path, update: update * by_path[sharding.name(path)], updates
    )

  return optax.stateless(scale)
