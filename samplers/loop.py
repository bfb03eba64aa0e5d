"""The jitted decode loop, over any step function and any sampler.

A step is a hashable `step(params, ids_BT, documents_BT, cache)` that appends
the new tokens to the cache and returns `(logits_BTV, cache)`. Tokens whose
document is 0 are padding: it must not store them, and their logits are unused.
A cache may have `waiting_B`: the logits of these rows come with a later step,
to which they are given padding.
A sampler is a pytree with `sampler(keys_B, logits_BV) -> token_B`. One that
remembers its rows has, instead, `init(prompt) -> memory`, for prefill to call,
and `step(keys_B, logits_BV, memory, active_B) -> (token_B, memory)`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import history

Step = Callable[[Any, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
# See the module.
Sampler = Any


class State(NamedTuple):
  """Where every row stands; decode consumes one and returns the next."""

  cache: Any
  ids_BN: jax.Array  # generated so far, 0 beyond length_B; stop ids included
  length_B: jax.Array
  logits_BV: jax.Array  # float32, of the token to draw next
  done_B: jax.Array  # True after a stop id or when ids_BN is full
  keys_B: jax.Array
  failed_B: jax.Array  # True where the logits were no law: the row is done
  memory: Any = ()  # the sampler's


class Faults(NamedTuple):
  """Rows of a search whose logits were no law, for `check`."""

  failed_B: jax.Array
  length_B: jax.Array  # tokens before them
  logits_BV: jax.Array  # the largest of them alone, [B, 1]


@functools.partial(
  jax.jit,
  static_argnames=('step', 'capacity'),
  donate_argnames=('cache',),
)
def prefill(
  step: Step,
  params: Any,
  cache: Any,
  ids_BT: jax.Array,
  lengths_B: jax.Array,
  keys_B: jax.Array,
  *,
  capacity: int,
  sampler: Sampler = None,
) -> State:
  """Reads prompts, padded on the right to T, of at least one token each.

  Args:
    step: See the module.
    params: The step's parameters.
    cache: Donated; needs room for T + capacity tokens per row.
    ids_BT: Prompts.
    lengths_B: Their lengths, 1 to T.
    keys_B: Typed keys; generated token n of a row uses fold_in(key, n).
    capacity: Tokens that can be generated per row, N.
    sampler: The one to decode with, needed if it remembers its rows.
  """
  real_BT = jnp.arange(ids_BT.shape[1])[None] < lengths_B[:, None]
  logits_BTV, cache = step(params, ids_BT, real_BT.astype(jnp.int32), cache)
  last_B11 = (lengths_B - 1)[:, None, None]
  logits_BV = jnp.take_along_axis(logits_BTV, last_B11, axis=1)[:, 0]
  return begin(
    cache,
    logits_BV,
    (ids_BT, lengths_B, keys_B),
    capacity=capacity,
    sampler=sampler,
  )


def begin(
  cache: Any,
  logits_BV: jax.Array,
  rows: tuple[jax.Array, jax.Array, jax.Array],
  *,
  capacity: int,
  sampler: Sampler,
) -> State:
  """The state of rows, ids_BT, lengths_B and keys_B, that a cache has read."""
  ids_BT, lengths_B, keys_B = rows
  batch_size, num_ids = logits_BV.shape
  memory = ()
  if hasattr(sampler, 'init'):
    memory = sampler.init(history.Prompt(ids_BT, lengths_B, capacity, num_ids))
  return State(
    cache=cache,
    ids_BN=jnp.zeros((batch_size, capacity), jnp.int32),
    length_B=jnp.zeros(batch_size, jnp.int32),
    logits_BV=logits_BV.astype(jnp.float32),
    done_B=jnp.full(batch_size, capacity == 0),
    keys_B=keys_B,
    failed_B=jnp.zeros(batch_size, bool),
    memory=memory,
  )


@functools.partial(
  jax.jit, static_argnames=('step',), donate_argnames=('state',)
)
def decode(
  step: Step,
  params: Any,
  state: State,
  sampler: Sampler,
  *,
  num_steps: int | jax.Array,
  stop_ids: Sequence[int] = (),
) -> State:
  """Generates up to num_steps more tokens per row; donates the state.

  Ends early once every row is done. Done rows are left as they are. Splitting
  the steps over several calls gives the same tokens. A row whose logits are
  NaN, +inf or all -inf is done without a token; `check` says which.
  """

  last_B = state.length_B + num_steps

  def unfinished(state: State) -> jax.Array:
    return ~jnp.all(state.done_B | (state.length_B >= last_B))

  def advance(state: State) -> State:
    return _advance(step, params, state, sampler, stop_ids, last_B)

  return jax.lax.while_loop(unfinished, advance, state)


def generate(
  step: Step,
  params: Any,
  cache: Any,
  ids_BT: jax.Array,
  lengths_B: jax.Array,
  keys_B: jax.Array,
  sampler: Sampler,
  *,
  num_tokens: int,
  stop_ids: Sequence[int] = (),
) -> State:
  """Prefill and decode in one call; `ids_BN` and `length_B` are the result."""
  state = prefill(
    step,
    params,
    cache,
    ids_BT,
    lengths_B,
    keys_B,
    capacity=num_tokens,
    sampler=sampler,
  )
  return decode(
    step, params, state, sampler, num_steps=num_tokens, stop_ids=stop_ids
  )


def check(state: Any) -> None:
  """ValueError that names the first row whose logits gave no law, if any.

  state: a State, or what has such failed_B, length_B and logits_BV.
  """
  failed = np.flatnonzero(np.asarray(state.failed_B))
  if failed.size:
    row = failed[0]
    largest = float(np.max(np.asarray(state.logits_BV[row])))
    what = {np.inf: 'reach inf', -np.inf: 'are all -inf'}.get(
      largest, 'are NaN'
    )
    raise ValueError(
      f'row {row}: the logits after {int(state.length_B[row])} generated '
      f'tokens {what}, which is no distribution; check the checkpoint'
    )


def no_faults(batch_size: int) -> Faults:
  return Faults(
    jnp.zeros(batch_size, bool),
    jnp.zeros(batch_size, jnp.int32),
    jnp.zeros((batch_size, 1)),
  )


def note(
  faults: Faults, largest_B: jax.Array, asked_B: jax.Array, count: jax.Array
) -> Faults:
  """The faults with those of the rows that are asked after `count` tokens.

  largest_B: of their logits; NaN where one is NaN.
  """
  is_new_B = asked_B & ~jnp.isfinite(largest_B) & ~faults.failed_B
  return Faults(
    faults.failed_B | is_new_B,
    jnp.where(is_new_B, count, faults.length_B),
    jnp.where(is_new_B[:, None], largest_B[:, None], faults.logits_BV),
  )


def _advance(
  step: Step,
  params: Any,
  state: State,
  sampler: Sampler,
  stop_ids: Sequence[int],
  last_B: jax.Array,
) -> State:
  """Draws a token for each row that neither waits nor is done, and steps.

  last_B: lengths at which rows pause.
  """
  batch_size, capacity = state.ids_BN.shape
  waits_B = getattr(state.cache, 'waiting_B', None)
  asked_B = ~state.done_B & (state.length_B < last_B)
  if waits_B is not None:
    asked_B &= ~waits_B
  is_law_B = jnp.isfinite(jnp.max(state.logits_BV, axis=1))
  failed_B = state.failed_B | (asked_B & ~is_law_B)
  active_B = asked_B & is_law_B
  draw_keys_B = jax.vmap(jax.random.fold_in)(state.keys_B, state.length_B)
  memory = state.memory
  if hasattr(sampler, 'init'):
    token_B, memory = sampler.step(
      draw_keys_B, state.logits_BV, memory, active_B
    )
  else:
    token_B = sampler(draw_keys_B, state.logits_BV)
  token_B = jnp.where(active_B, token_B, 0).astype(jnp.int32)
  # A done row writes the 0 that is there already, or beyond a full buffer.
  ids_BN = state.ids_BN.at[jnp.arange(batch_size), state.length_B].set(
    token_B, mode='drop'
  )
  length_B = state.length_B + active_B
  stopped_B = length_B >= capacity
  for stop_id in stop_ids:
    stopped_B |= token_B == stop_id
  logits_B1V, cache = step(
    params, token_B[:, None], active_B[:, None].astype(jnp.int32), state.cache
  )
  logits_BV = logits_B1V[:, 0].astype(jnp.float32)
  answered_B = active_B
  if waits_B is not None:
    answered_B = (active_B | waits_B) & ~cache.waiting_B
  return State(
    cache=cache,
    ids_BN=ids_BN,
    length_B=length_B,
    logits_BV=jnp.where(answered_B[:, None], logits_BV, state.logits_BV),
    done_B=state.done_B | (active_B & stopped_B) | failed_B,
    keys_B=state.keys_B,
    failed_B=failed_B,
    memory=memory,
  )
