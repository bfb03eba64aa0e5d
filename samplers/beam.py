"""Beam search: the most probable texts that a few hypotheses lead to.

Every step goes on with the best continuations of all hypotheses; those that
end are set aside. A finished text of n tokens scores log p / n^power (Wu et
al. 2016, arXiv 1609.08144, with the length alone).
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samplers import loop
from samplers import rows


class Hypotheses(NamedTuple):
  """The best texts of each of B rows, best first; M of them, up to N ids."""

  ids_BMN: jax.Array  # 0 beyond the length; a stop id is included
  length_BM: jax.Array
  score_BM: jax.Array  # -inf where there is none


class _Beams(NamedTuple):
  count: jax.Array  # tokens made
  cache: Any  # of B * M rows
  logits_BMV: jax.Array
  ids_BMN: jax.Array
  log_p_BM: jax.Array
  finished: Hypotheses
  faults: loop.Faults


def search(
  step: loop.Step,
  params: Any,
  state: loop.State,
  axes: rows.Axes,
  *,
  beams: int,
  length_power: float = 1.0,
  stop_ids: Sequence[int] = (),
) -> Hypotheses:
  """The `beams` best finished texts of every row of `loop.prefill`'s state.

  A row is done when nothing alive can become better than what is finished.
  What has no stop id ends when the state's capacity is full. ValueError for
  fewer beams than one, and for logits that are no law.

  Args:
    step, params: As for samplers.loop.
    state: After the prompts.
    axes: samplers.rows.cache_axes of the model.
    beams: M.
    length_power: 0 scores by log p, 1 by its mean over tokens.
    stop_ids: End a text.
  """
  check(beams, length_power)
  found, faults = _search(
    step,
    params,
    state,
    jnp.float32(length_power),
    jnp.asarray(tuple(stop_ids), jnp.int32),
    beams,
    axes,
  )
  loop.check(faults)
  return found


def check(beams: int, length_power: float) -> None:
  """ValueError for what `search` is not defined for."""
  if beams < 1:
    raise ValueError(f'beams={beams} must be at least 1; 4 is usual')
  if not math.isfinite(length_power):
    raise ValueError(
      f'length_power={length_power} of beams must be a finite number; 1 is'
      ' usual, 0 takes no account of lengths'
    )


@functools.partial(jax.jit, static_argnames=('step', 'beams', 'axes'))
def _search(
  step: loop.Step,
  params: Any,
  state: loop.State,
  power: jax.Array,
  stop_ids_S: jax.Array,
  beams: int,
  axes: rows.Axes,
) -> tuple[Hypotheses, loop.Faults]:
  batch_size, capacity = state.ids_BN.shape
  index_N = jnp.repeat(jnp.arange(batch_size), beams)
  shape = (batch_size, beams)
  empty = Hypotheses(
    jnp.zeros((*shape, capacity), jnp.int32),
    jnp.zeros(shape, jnp.int32),
    jnp.full(shape, -jnp.inf),
  )
  start = _Beams(
    jnp.int32(0),
    rows.take(state.cache, axes, index_N),
    state.logits_BV[index_N].reshape(*shape, -1),
    empty.ids_BMN,
    # They are all the same before the first token.
    jnp.full(shape, -jnp.inf).at[:, 0].set(0.0),
    empty,
    loop.no_faults(batch_size),
  )
  advance = functools.partial(_advance, step, params, power, stop_ids_S, axes)
  is_open = functools.partial(_is_open, power)
  last = jax.lax.while_loop(is_open, advance, start)
  # Of a text that did not end there is no more to come.
  length_BM = jnp.full(shape, last.count)
  score_BM = _score(last.log_p_BM, length_BM, power)
  open_B1 = jnp.full((batch_size, 1), last.count >= capacity)
  score_BM = jnp.where(open_B1, score_BM, -jnp.inf)
  unended = Hypotheses(last.ids_BMN, length_BM, score_BM)
  return _merge(last.finished, unended), last.faults


def _is_open(power: jax.Array, now: _Beams) -> jax.Array:
  """Is there room, a row that could still become better, and none at fault?"""
  has_room = now.count < now.ids_BMN.shape[2]
  goes_on = jnp.any(_open(power, now)) & ~jnp.any(now.faults.failed_B)
  return has_room & goes_on


def _open(power: jax.Array, now: _Beams) -> jax.Array:
  """[B]: could the row still become better?"""
  capacity = now.ids_BMN.shape[2]
  # log p falls with every token; the divisor may grow up to the capacity.
  longest = jnp.where(power > 0, capacity, now.count + 1)
  bound_B = _score(jnp.max(now.log_p_BM, axis=1), longest, power)
  worst_B = jnp.min(now.finished.score_BM, axis=1)
  return bound_B > worst_B


def _advance(
  step: loop.Step,
  params: Any,
  power: jax.Array,
  stop_ids_S: jax.Array,
  axes: rows.Axes,
  now: _Beams,
) -> _Beams:
  batch_size, beams, size = now.logits_BMV.shape
  largest_BM = jnp.max(now.logits_BMV.astype(jnp.float32), axis=2)
  is_bad_BM = ~jnp.isfinite(largest_BM) & (now.log_p_BM > -jnp.inf)
  worst_B1 = jnp.argmax(is_bad_BM, axis=1, keepdims=True)
  worst_B = jnp.take_along_axis(largest_BM, worst_B1, axis=1)[:, 0]
  asked_B = _open(power, now) & jnp.any(is_bad_BM, axis=1)
  faults = loop.note(now.faults, worst_B, asked_B, now.count)
  # What is dead, or of a row that is done, must not disturb the others.
  log_p_BMV = jax.nn.log_softmax(
    jnp.where(
      jnp.isfinite(largest_BM)[:, :, None],
      now.logits_BMV.astype(jnp.float32),
      0.0,
    )
  )
  log_p_BMV += now.log_p_BM[:, :, None]
  # So many that M do not end, even if all stop ids of all beams are best.
  count = min(beams * (1 + len(stop_ids_S)), beams * size)
  log_p_BK, index_BK = jax.lax.top_k(log_p_BMV.reshape(batch_size, -1), count)
  parent_BK, token_BK = index_BK // size, index_BK % size
  ids_BKN = jnp.take_along_axis(now.ids_BMN, parent_BK[:, :, None], axis=1)
  ids_BKN = ids_BKN.at[:, :, now.count].set(token_BK)
  is_end_BK = jnp.any(token_BK[:, :, None] == stop_ids_S[None, None], axis=2)
  length_BK = jnp.full(log_p_BK.shape, now.count + 1)
  score_BK = _score(log_p_BK, length_BK, power)
  ended = Hypotheses(
    ids_BKN, length_BK, jnp.where(is_end_BK, score_BK, -jnp.inf)
  )
  log_p_BM, place_BM = jax.lax.top_k(
    jnp.where(is_end_BK, -jnp.inf, log_p_BK), beams
  )
  parent_BM, token_BM = (
    jnp.take_along_axis(x_BK, place_BM, axis=1)
    for x_BK in (parent_BK, token_BK)
  )
  parent_BM += beams * jnp.arange(batch_size)[:, None]
  logits_N1V, cache = step(
    params,
    token_BM.reshape(-1, 1).astype(jnp.int32),
    jnp.ones((batch_size * beams, 1), jnp.int32),
    rows.take(now.cache, axes, parent_BM.reshape(-1)),
  )
  return _Beams(
    now.count + 1,
    cache,
    logits_N1V[:, 0].reshape(batch_size, beams, size),
    jnp.take_along_axis(ids_BKN, place_BM[:, :, None], axis=1),
    log_p_BM,
    _merge(now.finished, ended),
    faults,
  )


def _score(log_p: jax.Array, length: jax.Array, power: jax.Array) -> jax.Array:
  return log_p / length.astype(jnp.float32) ** power


def _merge(first: Hypotheses, second: Hypotheses) -> Hypotheses:
  """The best of both, as many as the first has."""
  together = jax.tree.map(
    lambda a, b: jnp.concatenate([a, b], axis=1), first, second
  )
  return best(together, first.score_BM.shape[1])


def best(found: Hypotheses, count: int) -> Hypotheses:
  """The `count` of them with the largest scores, from the largest down."""
  score_BM, place_BM = jax.lax.top_k(found.score_BM, count)
  return Hypotheses(
    jnp.take_along_axis(found.ids_BMN, place_BM[:, :, None], axis=1),
    jnp.take_along_axis(found.length_BM, place_BM, axis=1),
    score_BM,
  )
