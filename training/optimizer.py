"""Optimizers as frozen dataclasses: `build` makes the Optax transformation."""

import dataclasses
import re
from typing import Any

import jax
import optax

from training import sharding


@dataclasses.dataclass(frozen=True)
class AdamW:
  """AdamW (arXiv 1711.05101), linear warm-up, cosine decay, global clipping.

  learning_rate: peak, reached after `warmup_steps`; it falls along a cosine to
    `final_ratio` of it at the last step.
  decay_rule: regular expression of the parameter paths that are decayed, by
    default every matrix of a projection and no norm or embedding.
  multipliers: (regular expression, factor) pairs; the first that matches a
    parameter's path scales its learning rate.
  clip: bound on the global gradient norm, None for none.
  frozen: regular expressions of the paths of parameters that stay as they are.
  """

  learning_rate: float = 1e-3
  warmup_steps: int = 100
  final_ratio: float = 0.1
  b1: float = 0.9
  b2: float = 0.95
  epsilon: float = 1e-8
  weight_decay: float = 0.1
  decay_rule: str = r'kernel$'
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
    multiplied = (rule for rule, _ in self.multipliers)
    for rule in (self.decay_rule, *self.frozen, *multiplied):
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
      optax.scale_by_adam(self.b1, self.b2, self.epsilon),
      optax.add_decayed_weights(self.weight_decay, self._decayed),
      optax.scale_by_learning_rate(self.schedule(steps)),
      _scale_by_path(self.multipliers),
    ]
    if self.clip is not None:
      parts.insert(0, optax.clip_by_global_norm(self.clip))
    if not self.frozen:
      return optax.chain(*parts)
    return optax.partition(
      {False: optax.chain(*parts), True: optax.set_to_zero()}, self._frozen
    )

  def _frozen(self, params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
      lambda path, _: any(
        re.search(rule, sharding.name(path)) for rule in self.frozen
      ),
      params,
    )

  def _decayed(self, params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
      lambda path, _: bool(re.search(self.decay_rule, sharding.name(path))),
      params,
    )


def _scale_by_path(
  multipliers: tuple[tuple[str, float], ...],
) -> optax.GradientTransformation:
  """Scales each update by the factor of the first rule its path matches."""

  def factor(path: Any) -> float:
    for rule, value in multipliers:
      if re.search(rule, sharding.name(path)):
        return value
    return 1.0

  def scale(updates: Any, _: Any = None) -> Any:
    return jax.tree_util.tree_map_with_path(
      lambda path, update: update * factor(path), updates
    )

  return optax.stateless(scale)
