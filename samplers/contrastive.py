"""Contrastive search: probable tokens whose state is like none before.

Of the k most probable tokens the one with the largest (1 - alpha) p(v) - alpha
max_j cos(h_v, h_j), where h_v is the hidden state after it and h_j those of
all tokens so far, the prompt included. Su et al. 2022, A Contrastive Framework
for Neural Text Generation (arXiv 2202.06417).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samplers import rows

# As samplers.loop.Step, but it gives (logits_BTV, hidden_BTD) for logits_BTV.
HiddenStep = Callable[..., tuple[tuple[jax.Array, jax.Array], Any]]


class State(NamedTuple):
  """Where every row stands; L is the room for the prompt and what is made."""

  cache: Any
  ids_BN: jax.Array  # generated so far; stop ids are included
  length_B: jax.Array
  logits_BV: jax.Array
  done_B: jax.Array
  prompt_B: jax.Array
  unit_BLD: jax.Array  # hidden states of all tokens, of length one
  failed_B: jax.Array  # as in samplers.loop.State, for its `check`


@functools.partial(
  jax.jit, static_argnames=('step', 'capacity'), donate_argnames=('cache',)
)
def prefill(
  step: HiddenStep,
  params: Any,
  cache: Any,
  ids_BT: jax.Array,
  lengths_B: jax.Array,
  *,
  capacity: int,
) -> State:
  """Reads prompts, as samplers.loop.prefill does."""
  batch_size, length = ids_BT.shape
  real_BT = (jnp.arange(length)[None] < lengths_B[:, None]).astype(jnp.int32)
  (logits_BTV, hidden_BTD), cache = step(params, ids_BT, real_BT, cache)
  last_B11 = (lengths_B - 1)[:, None, None]
  logits_BV = jnp.take_along_axis(logits_BTV, last_B11, axis=1)[:, 0]
  return State(
    cache,
    jnp.zeros((batch_size, capacity), jnp.int32),
    jnp.zeros(batch_size, jnp.int32),
    logits_BV.astype(jnp.float32),
    jnp.full(batch_size, capacity == 0),
    lengths_B.astype(jnp.int32),
    jnp.pad(_unit(hidden_BTD), ((0, 0), (0, capacity), (0, 0))),
    jnp.zeros(batch_size, bool),
  )


@functools.partial(
  jax.jit,
  static_argnames=('step', 'axes', 'candidates'),
  donate_argnames=('state',),
)
def decode(
  step: HiddenStep,
  params: Any,
  state: State,
  alpha: float | jax.Array,
  *,
  axes: rows.Axes,
  candidates: int,
  num_steps: int | jax.Array,
  stop_ids: Sequence[int] = (),
) -> State:
  """Up to num_steps more tokens per row; donates the state.

  Args:
    step, params: With hidden states.
    state: From `prefill` or here.
    alpha: In [0, 1]; 0 is greedy.
    axes: samplers.rows.cache_axes of the model.
    candidates: k, or V where that is less; each is read in every step.
    num_steps, stop_ids: As for samplers.loop.decode.
  """

  def unfinished(carry: tuple[jax.Array, State]) -> jax.Array:
    return (carry[0] < num_steps) & ~jnp.all(carry[1].done_B)

  def advance(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
    read = functools.partial(_read, step, params, axes)
    state = _advance(read, axes, carry[1], alpha, candidates, stop_ids)
    return carry[0] + 1, state

  return jax.lax.while_loop(unfinished, advance, (jnp.int32(0), state))[1]


def check(alpha: float, candidates: int) -> None:
  """ValueError for what `decode` is not defined for."""
  if not 0 <= alpha <= 1:
    raise ValueError(
      f'contrastive alpha={alpha} must lie in [0, 1]; 0.6 is usual, 0 is greedy'
    )
  if candidates < 1:
    raise ValueError(
      f'contrastive candidates={candidates} must be at least 1; 5 is usual'
    )


def _read(
  step: HiddenStep,
  params: Any,
  axes: rows.Axes,
  state: State,
  token_BM: jax.Array,
) -> tuple[jax.Array, jax.Array, Any]:
  """Every candidate of every row read: logits, unit states, caches."""
  batch_size, candidates = token_BM.shape
  index_N = jnp.repeat(jnp.arange(batch_size), candidates)
  real_N1 = jnp.repeat(~state.done_B, candidates)[:, None].astype(jnp.int32)
  (logits_N1V, hidden_N1D), cache = step(
    params,
    token_BM.reshape(-1, 1),
    real_N1,
    rows.take(state.cache, axes, index_N),
  )
  shape = (batch_size, candidates, -1)
  return (
    logits_N1V.astype(jnp.float32).reshape(shape),
    _unit(hidden_N1D).reshape(shape),
    cache,
  )


def _advance(
  read: Callable[..., tuple[jax.Array, jax.Array, Any]],
  axes: rows.Axes,
  state: State,
  alpha: float | jax.Array,
  candidates: int,
  stop_ids: Sequence[int],
) -> State:
  rows_B = jnp.arange(len(state.length_B))
  candidates = min(candidates, state.logits_BV.shape[1])
  log_p_BV = jax.nn.log_softmax(state.logits_BV)
  log_p_BM, token_BM = jax.lax.top_k(log_p_BV, candidates)
  token_BM = token_BM.astype(jnp.int32)
  logits_BMV, unit_BMD, cache = read(state, token_BM)
  near_BML = jnp.einsum(
    'BMD,BLD->BML', unit_BMD, state.unit_BLD, precision='highest'
  )
  place_B = state.prompt_B + state.length_B
  is_past_BL = jnp.arange(near_BML.shape[2])[None] < place_B[:, None]
  nearest_BM = jnp.max(jnp.where(is_past_BL[:, None], near_BML, -1.0), axis=2)
  score_BM = (1 - alpha) * jnp.exp(log_p_BM) - alpha * nearest_BM
  # There may be fewer possible tokens than candidates.
  best_B = jnp.argmax(
    jnp.where(log_p_BM > -jnp.inf, score_BM, -jnp.inf), axis=1
  )
  is_law_B = jnp.isfinite(jnp.max(state.logits_BV, axis=1))
  failed_B = state.failed_B | (~state.done_B & ~is_law_B)
  active_B = ~state.done_B & is_law_B
  token_B = jnp.where(active_B, token_BM[rows_B, best_B], 0)
  ids_BN = state.ids_BN.at[rows_B, state.length_B].set(token_B, mode='drop')
  length_B = state.length_B + active_B
  stopped_B = length_B >= ids_BN.shape[1]
  for stop_id in stop_ids:
    stopped_B |= token_B == stop_id
  room = state.unit_BLD.shape[1]
  unit_BLD = state.unit_BLD.at[rows_B, jnp.where(active_B, place_B, room)].set(
    unit_BMD[rows_B, best_B], mode='drop'
  )
  logits_BV = jnp.where(
    active_B[:, None], logits_BMV[rows_B, best_B], state.logits_BV
  )
  return State(
    rows.take(cache, axes, rows_B * candidates + best_B),
    ids_BN,
    length_B,
    logits_BV,
    state.done_B | failed_B | (active_B & stopped_B),
    state.prompt_B,
    unit_BLD,
    failed_B,
  )


def _unit(x: jax.Array) -> jax.Array:
  x = x.astype(jnp.float32)
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
