"""Mirostat 2: feedback that holds the surprise of what is drawn at a target.

Basu et al. 2021, Mirostat: A Neural Text Decoding Algorithm; version 2 of its
code, as in llama.cpp. Surprise is in bits.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from samplers import entropy
from samplers import history
from samplers import knobs


@knobs.register
@dataclasses.dataclass(frozen=True)
class Mirostat:
  """Keeps tokens of surprise <= mu, at least the best; the memory is mu_B.

  mu starts at twice the target and moves by -rate * (surprise - target), where
  the surprise is that of the drawn token in the law it was drawn from, what
  rules after this one dropped included. Target 0 changes nothing.

  target: bits per token; 5 is usual.
  rate: of the feedback.
  """

  target: knobs.Number = 0.0
  rate: knobs.Number = 0.1

  truncates = True
  # For samplers.hf.
  needs_drawn_logits = True

  def __post_init__(self) -> None:
    knobs.settle(
      self,
      'target',
      float,
      'mirostat target',
      'must be a finite number of bits >= 0; 0 turns it off',
      lambda target: (target >= 0) & (target < float('inf')),
    )
    knobs.settle(
      self,
      'rate',
      float,
      'mirostat rate',
      'must lie in [0, 1]; 0 keeps the threshold where it is',
      lambda rate: (rate >= 0) & (rate <= 1),
    )

  def init(self, prompt: history.Prompt) -> jax.Array:
    target_B = knobs.column(self.target)[:, 0]
    return jnp.broadcast_to(2.0 * target_B, prompt.lengths_B.shape)

  def __call__(self, logits_BV: jax.Array, memory: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    log_p_BV = entropy.law(logits_BV).log_p_BV
    keep_BV = -log_p_BV / np.log(2) <= memory[:, None]
    keep_BV |= logits_BV == jnp.max(logits_BV, axis=1, keepdims=True)
    is_off_B1 = knobs.column(self.target) <= 0
    return jnp.where(is_off_B1 | keep_BV, logits_BV, -jnp.inf)

  def update(self, memory: jax.Array, drawn: history.Drawn) -> jax.Array:
    log_p_BV = entropy.law(drawn.logits_BV).log_p_BV
    token_B1 = drawn.token_B[:, None]
    log_p_B = jnp.take_along_axis(log_p_BV, token_B1, axis=1)[:, 0]
    error_B = -log_p_B / np.log(2) - knobs.column(self.target)[:, 0]
    moved_B = memory - knobs.column(self.rate)[:, 0] * error_B
    return jnp.where(drawn.active_B, moved_B, memory)
