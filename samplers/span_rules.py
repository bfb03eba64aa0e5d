"""What a sampler says of tokens that are copied in spans, not drawn.

They are judged by the law as the rules that remember change it, and by the ids
that bias, allow and deny leave; temperatures and truncations are about drawing.
What a rule remembers has them as tokens drawn from that law.
"""

from typing import Any

import jax
import jax.numpy as jnp

from samplers import chain
from samplers import constraints
from samplers import history
from samplers import mirostat
from samplers import nearest
from samplers import passages

_LIMITS = constraints.Bias, constraints.Allow, constraints.Deny


def check(sampler: chain.Chain) -> None:
  """ValueError for a rule that speaks of the model alone."""
  for rule in sampler.rules:
    if getattr(rule, 'needs_raw_logits', False) and rule.is_active:
      raise ValueError(
        f'{type(rule).__name__} speaks of the law of the model, not of its'
        ' mixture with a corpus; drop it, or sample without a key store'
      )


def law(
  sampler: chain.Chain, logits_BV: jax.Array, memory: tuple[Any, ...]
) -> jax.Array:
  """The logits that copied tokens are judged by."""
  parts = iter(memory)
  for rule in sampler.rules:
    if hasattr(rule, 'init'):
      part = next(parts)
      if not isinstance(rule, mirostat.Mirostat):  # It truncates.
        logits_BV = rule(logits_BV, part)
  return logits_BV


def judge(
  sampler: chain.Chain,
  logits_BV: jax.Array,
  token_B: jax.Array,
  gamma: float | jax.Array,
) -> jax.Array:
  """[B]: may a span have these tokens by this law?"""
  is_good_B = nearest.accepts(logits_BV, token_B, gamma)
  for rule in sampler.rules:
    if isinstance(rule, _LIMITS):
      is_good_B &= passages.pick(rule(logits_BV), token_B) > -jnp.inf
  return is_good_B


def follow(
  sampler: chain.Chain,
  memory: tuple[Any, ...],
  token_GB: jax.Array,
  logits_GBV: jax.Array,
  active_B: jax.Array,
) -> tuple[Any, jax.Array]:
  """The memory before each copied token and after all, and their laws.

  memory: before the first. token_GB, logits_GBV: one after the other.
  """

  def read(memory: Any, given: tuple[jax.Array, ...]) -> tuple[Any, Any]:
    token_B, logits_BV = given
    law_BV = law(sampler, logits_BV, memory)
    copied = history.Drawn(token_B, active_B, law_BV)
    return sampler.remember(memory, copied), (memory, law_BV)

  if not memory:
    return memory, logits_GBV
  last, (memory_G, law_GBV) = jax.lax.scan(read, memory, (token_GB, logits_GBV))
  memory_G = jax.tree.map(
    lambda x_G, x: jnp.concatenate([x_G, x[None]]), memory_G, last
  )
  return memory_G, law_GBV
