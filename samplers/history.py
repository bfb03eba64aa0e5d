"""What the rules that remember know of a row: its prompt and what it drew.

A rule that remembers has `init(prompt) -> memory`, `__call__(logits_BV, memory)
-> logits_BV` and `update(memory, drawn) -> memory`. A memory is a pytree with
one entry per row; L below is its room, T prompt tokens and the capacity.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from samplers import knobs


class Prompt(NamedTuple):
  """Where the rows begin."""

  ids_BT: jax.Array  # padded on the right
  lengths_B: jax.Array
  capacity: int  # tokens that can be drawn
  num_ids: int  # V


class Drawn(NamedTuple):
  """One step of every row."""

  token_B: jax.Array
  active_B: jax.Array  # False where the row is done: its memory must rest
  logits_BV: jax.Array  # what the token was drawn from


class History(NamedTuple):
  """All ids of a row in their order."""

  ids_BL: jax.Array
  length_B: jax.Array
  prompt_B: jax.Array  # how many of them are the prompt


def begin(prompt: Prompt) -> History:
  ids_BL = jnp.pad(prompt.ids_BT, ((0, 0), (0, prompt.capacity)))
  lengths_B = prompt.lengths_B.astype(jnp.int32)
  return History(ids_BL.astype(jnp.int32), lengths_B, lengths_B)


def append(
  history: History, token_B: jax.Array, active_B: jax.Array
) -> History:
  """The history with the token of every row that is active."""
  room = history.ids_BL.shape[1]
  rows_B = jnp.arange(len(history.length_B))
  at_B = jnp.where(active_B, history.length_B, room)
  ids_BL = history.ids_BL.at[rows_B, at_B].set(token_B, mode='drop')
  length_B = history.length_B + active_B.astype(jnp.int32)
  return history._replace(ids_BL=ids_BL, length_B=length_B)


def counts(
  history: History,
  num_ids: int,
  window: knobs.Number,
  prompt: knobs.Number | bool,
) -> jax.Array:
  """[B, V]: how often each id came.

  Args:
    history: Of the rows.
    num_ids: V.
    window: Only the last so many ids count; 0 = all.
    prompt: Do those of the prompt count?
  """
  ids_BL, length_B, prompt_B = history
  place_1L = jnp.arange(ids_BL.shape[1])[None]
  window_B1 = knobs.column(window, jnp.int32)
  first_B1 = jnp.where(window_B1 > 0, length_B[:, None] - window_B1, 0)
  has_prompt_B1 = knobs.column(prompt, bool)
  first_B1 = jnp.maximum(
    first_B1, jnp.where(has_prompt_B1, 0, prompt_B[:, None])
  )
  counted_BL = (place_1L >= first_B1) & (place_1L < length_B[:, None])
  rows_B1 = jnp.arange(len(ids_BL))[:, None]
  counts_BV = jnp.zeros((len(ids_BL), num_ids), jnp.float32)
  return counts_BV.at[rows_B1, jnp.where(counted_BL, ids_BL, num_ids)].add(
    1.0, mode='drop'
  )


def within_float32(logits_BV: jax.Array, before_BV: jax.Array) -> jax.Array:
  """Changed logits, kept finite where they were so before."""
  limit = float(jnp.finfo(jnp.float32).max)
  return jnp.where(
    before_BV > -jnp.inf, jnp.clip(logits_BV, -limit, limit), -jnp.inf
  )
