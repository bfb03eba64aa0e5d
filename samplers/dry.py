"""DRY, Don't Repeat Yourself: a penalty that grows with a repeated passage.

As in llama.cpp (p-e-w 2024). The match lengths of all places are kept from step
to step, so that a step costs O(L), not O(L^2).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import history
from samplers import knobs

# Growth goes no further than float32 does: times 0 it is 0.
_MOST = float(np.finfo(np.float32).max)


class Memory(NamedTuple):
  """The ids so far and how much of their end each place repeats."""

  past: history.History
  match_BL: jax.Array  # ids up to and with this place that equal the last ones


@knobs.register
@dataclasses.dataclass(frozen=True)
class Dry:
  """Subtracts multiplier * base^(n - allowed) from what would prolong a repeat.

  n is the longest passage, of at least `allowed` tokens, that ends the row and
  was followed by the token before. A breaker ends every passage and is never
  penalised. Multiplier 0 changes nothing.

  window: only the last so many tokens are searched; 0 = all.
  breakers: ids, as those of a newline, a colon, a quote and an asterisk.
  """

  multiplier: knobs.Number = 0.0
  base: knobs.Number = 1.75
  allowed: knobs.Number = 2
  window: knobs.Number = 0
  breakers: knobs.Ids = ()

  def __post_init__(self) -> None:
    knobs.settle(
      self,
      'multiplier',
      float,
      'dry multiplier',
      'must be a finite number >= 0; 0 turns it off',
      lambda multiplier: (multiplier >= 0) & (multiplier < float('inf')),
    )
    knobs.settle(
      self,
      'base',
      float,
      'dry base',
      'must be a finite number >= 1; 1.75 is usual',
      lambda base: (base >= 1) & (base < float('inf')),
    )
    knobs.settle(
      self,
      'allowed',
      int,
      'dry allowed',
      'must be a whole number >= 1, the tokens that may repeat freely',
      lambda allowed: allowed >= 1,
    )
    knobs.settle(
      self,
      'window',
      int,
      'dry window',
      'must be a whole number >= 0; 0 searches all tokens',
      lambda window: window >= 0,
    )
    knobs.settle_ids(self, 'breakers', 'dry breakers')

  def init(self, prompt: history.Prompt) -> Memory:
    past = history.begin(prompt)
    empty = history.History(
      jnp.zeros_like(past.ids_BL), jnp.zeros_like(past.length_B), past.prompt_B
    )
    memory = Memory(empty, jnp.zeros_like(past.ids_BL))

    def read(
      memory: Memory, step: tuple[jax.Array, jax.Array]
    ) -> tuple[Memory, None]:
      place, token_B = step
      active_B = place < past.prompt_B
      return self._read(memory, token_B, active_B), None

    tokens_TB = past.ids_BL[:, : prompt.ids_BT.shape[1]].T
    places_T = jnp.arange(len(tokens_TB))
    return jax.lax.scan(read, memory, (places_T, tokens_TB))[0]

  def __call__(self, logits_BV: jax.Array, memory: Memory) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    ids_BL, length_B, _ = memory.past
    place_1L = jnp.arange(ids_BL.shape[1])[None]
    window_B1 = knobs.column(self.window, jnp.int32)
    first_B1 = jnp.where(window_B1 > 0, length_B[:, None] - window_B1, 0)
    match_BL = jnp.minimum(memory.match_BL, place_1L - first_B1 + 1)
    # What came after a place; nothing yet after the last one.
    next_BL = jnp.roll(ids_BL, -1, axis=1)
    excess_BL = match_BL - knobs.column(self.allowed, jnp.int32)
    counts_BL = (place_1L < length_B[:, None] - 1) & (excess_BL >= 0)
    counts_BL &= ~knobs.is_among(next_BL, self.breakers)
    growth_BL = knobs.column(self.base) ** excess_BL.astype(jnp.float32)
    penalty_BL = knobs.column(self.multiplier) * jnp.minimum(growth_BL, _MOST)
    # The longest passage has the largest penalty.
    rows_B1 = jnp.arange(len(ids_BL))[:, None]
    penalty_BV = jnp.zeros(logits_BV.shape, jnp.float32)
    penalty_BV = penalty_BV.at[
      rows_B1, jnp.where(counts_BL, next_BL, logits_BV.shape[1])
    ].max(penalty_BL, mode='drop')
    return history.within_float32(logits_BV - penalty_BV, logits_BV)

  def update(self, memory: Memory, drawn: history.Drawn) -> Memory:
    return self._read(memory, drawn.token_B, drawn.active_B)

  def _read(
    self, memory: Memory, token_B: jax.Array, active_B: jax.Array
  ) -> Memory:
    """Appends a token: a match goes on where the same token came."""
    past, match_BL = memory
    before_BL = jnp.pad(match_BL[:, :-1], ((0, 0), (1, 0)))
    is_same_BL = past.ids_BL == token_B[:, None]
    is_same_BL &= jnp.arange(match_BL.shape[1])[None] < past.length_B[:, None]
    is_same_BL &= ~knobs.is_among(token_B[:, None], self.breakers)
    grown_BL = jnp.where(is_same_BL, before_BL + 1, 0)
    match_BL = jnp.where(active_B[:, None], grown_BL, match_BL)
    return Memory(history.append(past, token_B, active_B), match_BL)
