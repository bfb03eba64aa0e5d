"""Penalties for tokens that came before: repetition, frequency, presence.

`window` counts the last so many tokens only (0 = all) and `prompt` says whether
those of the prompt count; both may differ from row to row.
"""

import dataclasses

import jax
import jax.numpy as jnp

from samplers import history
from samplers import knobs


@knobs.register
@dataclasses.dataclass(frozen=True)
class Repetition:
  """Divides positive logits of tokens seen and multiplies negative ones.

  Once per token, however often it came; 1 changes nothing. Keskar et al. 2019,
  CTRL.
  """

  penalty: knobs.Number = 1.0
  window: knobs.Number = 0
  prompt: knobs.Number | bool = True

  def __post_init__(self) -> None:
    knobs.settle(
      self,
      'penalty',
      float,
      'repetition penalty',
      'must be a finite number > 0; 1 turns it off, more discourages',
      lambda penalty: (penalty > 0) & (penalty < float('inf')),
    )
    _settle_scope(self, 'repetition')

  def init(self, prompt: history.Prompt) -> history.History:
    return history.begin(prompt)

  def __call__(
    self, logits_BV: jax.Array, memory: history.History
  ) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    penalty_B1 = knobs.column(self.penalty)
    counts_BV = _counts(self, logits_BV, memory)
    changed_BV = jnp.where(
      logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1
    )
    changed_BV = history.within_float32(changed_BV, logits_BV)
    return jnp.where(counts_BV > 0, changed_BV, logits_BV)

  def update(
    self, memory: history.History, drawn: history.Drawn
  ) -> history.History:
    return history.append(memory, drawn.token_B, drawn.active_B)


@knobs.register
@dataclasses.dataclass(frozen=True)
class Frequency:
  """Subtracts the penalty for every time that a token came; 0 is off."""

  penalty: knobs.Number = 0.0
  window: knobs.Number = 0
  prompt: knobs.Number | bool = False

  def __post_init__(self) -> None:
    _settle_amount(self, 'frequency')
    _settle_scope(self, 'frequency')

  def init(self, prompt: history.Prompt) -> history.History:
    return history.begin(prompt)

  def __call__(
    self, logits_BV: jax.Array, memory: history.History
  ) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    counts_BV = _counts(self, logits_BV, memory)
    changed_BV = logits_BV - knobs.column(self.penalty) * counts_BV
    return history.within_float32(changed_BV, logits_BV)

  def update(
    self, memory: history.History, drawn: history.Drawn
  ) -> history.History:
    return history.append(memory, drawn.token_B, drawn.active_B)


@knobs.register
@dataclasses.dataclass(frozen=True)
class Presence:
  """Subtracts the penalty once from every token that came; 0 is off."""

  penalty: knobs.Number = 0.0
  window: knobs.Number = 0
  prompt: knobs.Number | bool = False

  def __post_init__(self) -> None:
    _settle_amount(self, 'presence')
    _settle_scope(self, 'presence')

  def init(self, prompt: history.Prompt) -> history.History:
    return history.begin(prompt)

  def __call__(
    self, logits_BV: jax.Array, memory: history.History
  ) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    came_BV = jnp.minimum(_counts(self, logits_BV, memory), 1.0)
    changed_BV = logits_BV - knobs.column(self.penalty) * came_BV
    return history.within_float32(changed_BV, logits_BV)

  def update(
    self, memory: history.History, drawn: history.Drawn
  ) -> history.History:
    return history.append(memory, drawn.token_B, drawn.active_B)


def _counts(
  rule: Repetition | Frequency | Presence,
  logits_BV: jax.Array,
  memory: history.History,
) -> jax.Array:
  return history.counts(memory, logits_BV.shape[1], rule.window, rule.prompt)


def _settle_amount(rule: Frequency | Presence, label: str) -> None:
  knobs.settle(
    rule,
    'penalty',
    float,
    f'{label} penalty',
    'must be a finite number; 0 turns it off, more discourages',
    lambda penalty: abs(penalty) < float('inf'),
  )


def _settle_scope(rule: object, label: str) -> None:
  knobs.settle(
    rule,
    'window',
    int,
    f'{label} window',
    'must be a whole number >= 0; 0 counts all tokens',
    lambda window: window >= 0,
  )
  knobs.settle(
    rule,
    'prompt',
    bool,
    f'{label} prompt',
    'must be True or False',
    lambda prompt: (prompt == 0) | (prompt == 1),
  )
