"""Nearest-neighbour speculative decoding: spans of a corpus, attributed.

A token is drawn from `samplers.nearest`, a mixture of the model's law and of
what a corpus says. Where the corpus is sure, it goes on from the drawn token as
a draft, which is taken up to the first token that the mixture finds too
improbable; in its place one is drawn. A draft taken whole goes on in the next
round. Li et al. 2024 (arXiv 2405.19325).

Every row advances by its own number of tokens, in one jitted loop. As in
samplers.speculative a model is used through its step alone: drafts are read
into a copy of the cache and, where some were rejected, what remains once more.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samplers import chain
from samplers import contrastive
from samplers import draw
from samplers import history
from samplers import loop
from samplers import nearest
from samplers import passages
from samplers import span_rules
from samplers import speculative


class State(NamedTuple):
  """Where every row stands; `decode` consumes one and returns the next.

  target: `ids_BN` and `length_B` are the result. document_BN, offset_BN: where
  in the corpus a token was taken from, -1 where it was drawn.
  """

  target: loop.State
  query_BD: jax.Array  # the state that the next token is predicted from
  next_B: jax.Array  # place in the passages where a span goes on, -1 for none
  used_BC: jax.Array  # keys whose id was taken
  document_BN: jax.Array
  offset_BN: jax.Array
  drafted_B: jax.Array
  accepted_B: jax.Array  # of the drafted tokens
  spans_B: jax.Array  # however many rounds they took
  rounds_B: jax.Array


class _Draft(NamedTuple):
  """Tokens of a round, as proposed and then as made; G is the most there are.

  start_B: place in the passages of the first, -1 for a drawn token. taken_B:
  how many are from a passage. is_whole_B: was none rejected? memory: the
  sampler's, after the first token as proposed and after all as made.
  """

  token_BG: jax.Array
  count_B: jax.Array
  start_B: jax.Array
  taken_B: jax.Array
  is_whole_B: jax.Array
  memory: Any


class _Read(NamedTuple):
  """What comes after tokens, each of them or only the last."""

  cache: Any
  logits_BGV: jax.Array
  query_BGD: jax.Array


class _Job(NamedTuple):
  """What stays the same from round to round.

  read: from a cache, tokens and how many there are. span: static.
  """

  read: Callable[..., _Read]
  loaded: passages.Loaded
  sampler: chain.Chain
  knobs: nearest.Knobs
  stop_ids: Sequence[int]
  span: int


@functools.partial(
  jax.jit, static_argnames=('step', 'capacity'), donate_argnames=('cache',)
)
def prefill(
  step: contrastive.HiddenStep,
  params: Any,
  cache: Any,
  ids_BT: jax.Array,
  lengths_B: jax.Array,
  keys_B: jax.Array,
  *,
  capacity: int,
  recent: int | jax.Array,
  sampler: chain.Chain | None = None,
) -> tuple[loop.State, jax.Array, jax.Array]:
  """Reads prompts; gives the queries [B, D], and means of the last `recent`.

  step: as models.key_states.step. All else is as for samplers.loop.prefill.
  """
  place_1T = jnp.arange(ids_BT.shape[1])[None]
  real_BT = place_1T < lengths_B[:, None]
  (logits_BTV, query_BTD), cache = step(
    params, ids_BT, real_BT.astype(jnp.int32), cache
  )
  last_B11 = (lengths_B - 1)[:, None, None]
  logits_BV = jnp.take_along_axis(logits_BTV, last_B11, axis=1)[:, 0]
  query_BTD = query_BTD.astype(jnp.float32)
  query_BD = jnp.take_along_axis(query_BTD, last_B11, axis=1)[:, 0]
  is_recent_BT = real_BT & (place_1T >= lengths_B[:, None] - recent)
  weight_BT = is_recent_BT / jnp.sum(is_recent_BT, axis=1, keepdims=True)
  mean_BD = jnp.einsum('BT,BTD->BD', weight_BT, query_BTD, precision='highest')
  state = loop.begin(
    cache,
    logits_BV,
    (ids_BT, lengths_B, keys_B),
    capacity=capacity,
    sampler=sampler,
  )
  return state, query_BD, mean_BD


def begin(
  state: loop.State, query_BD: jax.Array, loaded: passages.Loaded
) -> State:
  """The first state, from what `prefill` gave and the passages to search."""
  sizes = query_BD.shape[1], loaded.key_BCD.shape[2]
  if sizes[0] != sizes[1]:
    raise ValueError(
      f'the keys of the store have {sizes[1]} numbers and the states of the'
      f' model {sizes[0]}; build the store with this model'
    )
  # Arrays of their own, for all are donated.
  zeros = [jnp.zeros_like(state.length_B) for _ in range(5)]
  nowhere = [jnp.full_like(state.ids_BN, -1) for _ in range(2)]
  used_BC = jnp.zeros(loaded.real_BC.shape, bool)
  return State(state, query_BD, zeros[0] - 1, used_BC, *nowhere, *zeros[1:])


def decode(
  step: contrastive.HiddenStep,
  params: Any,
  state: State,
  loaded: passages.Loaded,
  sampler: chain.Chain,
  rule: nearest.Nest,
  *,
  num_rounds: int | jax.Array,
  stop_ids: Sequence[int] = (),
) -> State:
  """Up to num_rounds rounds of 1 to rule.span tokens; donates the state.

  Tokens that are no part of a span are drawn by the sampler from the mixture,
  token n of a row with the key that samplers.loop has for it. What it says of
  spans is in samplers.span_rules. Which tokens a row gets does not depend on
  the others, but for rounding.

  ValueError for a sampler with a rule that speaks of the model alone, or that
  remembers and that prefill was not given.
  """
  span_rules.check(sampler)
  return _decode(
    step, params, state, loaded, sampler, nearest.knobs(rule), num_rounds,
    stop_ids, span=rule.span,
  )  # fmt: skip


@functools.partial(
  jax.jit, static_argnames=('step', 'span'), donate_argnames=('state',)
)
def _decode(
  step: contrastive.HiddenStep,
  params: Any,
  state: State,
  loaded: passages.Loaded,
  sampler: chain.Chain,
  knobs: nearest.Knobs,
  num_rounds: int | jax.Array,
  stop_ids: Sequence[int],
  *,
  span: int,
) -> State:

  def read(cache: Any, token_BG: jax.Array, count_B: jax.Array) -> _Read:
    real_BG = jnp.arange(token_BG.shape[1])[None] < count_B[:, None]
    (logits_BGV, query_BGD), cache = step(
      params, token_BG, real_BG.astype(jnp.int32), cache
    )
    return _Read(
      cache, logits_BGV.astype(jnp.float32), query_BGD.astype(jnp.float32)
    )

  job = _Job(read, loaded, sampler, knobs, stop_ids, span)

  def unfinished(carry: tuple[jax.Array, State]) -> jax.Array:
    return (carry[0] < num_rounds) & ~jnp.all(carry[1].target.done_B)

  def advance(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
    return carry[0] + 1, _advance(job, carry[1])

  return jax.lax.while_loop(unfinished, advance, (jnp.int32(0), state))[1]


def _advance(job: _Job, state: State) -> State:
  now = state.target
  is_law_B = jnp.isfinite(jnp.max(now.logits_BV, axis=1))
  failed_B = now.failed_B | (~now.done_B & ~is_law_B)
  active_B = ~now.done_B & is_law_B
  state = state._replace(
    target=now._replace(failed_B=failed_B, done_B=now.done_B | failed_B)
  )
  draft = _propose(job, state, active_B)
  if job.span == 1:
    return _record(job, state, draft, draft, _read_first(job, state, draft))
  made, following = jax.lax.cond(
    jnp.any(draft.count_B > 1),
    lambda: _verify(job, state, draft),
    lambda: (draft, _read_first(job, state, draft)),
  )
  return _record(job, state, draft, made, following)


def _propose(job: _Job, state: State, active_B: jax.Array) -> _Draft:
  """The next span of every row, or else a token drawn from the mixture."""
  now, id_BML = state.target, job.loaded.id_BML
  log_p_BV, share_B, weight_BC = _mix(
    job, state, now.logits_BV[:, None], state.query_BD[:, None]
  )
  drawn_B, law_BV = _draw(job, now, 0, log_p_BV, now.memory)
  id_BX = id_BML.reshape(len(id_BML), -1)
  goes_on_B = state.next_B >= 0
  next_B = passages.pick(id_BX, jnp.maximum(state.next_B, 0))
  copied_BV = span_rules.law(job.sampler, log_p_BV, now.memory)
  is_kept_B = goes_on_B & span_rules.judge(
    job.sampler, copied_BV, next_B, job.knobs.gamma
  )
  key_id_BC = passages.key_ids(job.loaded)
  weight_BC = jnp.where(key_id_BC == drawn_B[:, None], weight_BC, 0.0)
  best_B = jnp.argmax(weight_BC, axis=1)
  begins_B = ~goes_on_B & (jnp.max(weight_BC, axis=1) > 0)
  begins_B &= share_B <= job.knobs.delta
  start_B = jnp.where(begins_B, passages.place(job.loaded, best_B), -1)
  start_B = jnp.where(is_kept_B, state.next_B, start_B).astype(jnp.int32)
  token_BG, count_B = passages.follow(id_BML, start_B, job.span)
  is_span_B = start_B >= 0
  first_BG = jnp.zeros_like(token_BG).at[:, 0].set(drawn_B)
  token_BG = jnp.where(is_span_B[:, None], token_BG, first_BG)
  room_B = now.ids_BN.shape[1] - now.length_B
  count_B = jnp.minimum(jnp.where(is_span_B, count_B, 1), room_B)
  count_B = jnp.where(active_B, count_B, 0)
  taken_B = jnp.where(is_span_B, count_B, 0)
  law_BV = jnp.where(is_kept_B[:, None], copied_BV, law_BV)
  first = history.Drawn(token_BG[:, 0], active_B, law_BV)
  memory = job.sampler.remember(now.memory, first)
  return _Draft(token_BG, count_B, start_B, taken_B, is_span_B, memory)


def _verify(job: _Job, state: State, draft: _Draft) -> tuple[_Draft, _Read]:
  """What the mixture leaves of the drafts, and a draw behind them."""
  now, (batch_size, size) = state.target, draft.token_BG.shape
  index_1G, rows_B = jnp.arange(size)[None], jnp.arange(batch_size)
  real_BG = index_1G < draft.count_B[:, None]
  read = job.read(now.cache, draft.token_BG, draft.count_B)
  # A token is judged by what comes after those before it.
  log_p_BV, *_ = _mix(
    job, state, read.logits_BGV[:, :-1], read.query_BGD[:, :-1]
  )
  log_p_GBV = jnp.swapaxes(log_p_BV.reshape(batch_size, size - 1, -1), 0, 1)
  others = draft.token_BG[:, 1:].T, log_p_GBV
  memory_G, law_GBV = span_rules.follow(
    job.sampler, draft.memory, *others, draft.count_B > 0
  )
  is_good_GB = jax.vmap(span_rules.judge, (None, 0, 0, None))(
    job.sampler, law_GBV, others[0], job.knobs.gamma
  )
  is_good_BG = jnp.pad(is_good_GB.T, ((0, 0), (1, 0)), constant_values=True)
  is_good_BG = jnp.cumprod(is_good_BG & real_BG, axis=1)
  good_B = jnp.sum(is_good_BG, axis=1)
  is_cut_B = good_B < draft.count_B
  last_B = jnp.maximum(good_B - 1, 0)
  log_p_BV = log_p_GBV[jnp.minimum(last_B, size - 2), rows_B]
  memory = jax.tree.map(lambda x_G: x_G[last_B, rows_B], memory_G)
  drawn_B, law_BV = _draw(job, now, good_B, log_p_BV, memory)
  # Without a law nothing is drawn; the next round finds the row at fault.
  is_drawn_B = is_cut_B & jnp.isfinite(jnp.max(log_p_BV, axis=1))
  drawn = history.Drawn(drawn_B, is_drawn_B, law_BV)
  token_BG = draft.token_BG.at[rows_B, jnp.where(is_drawn_B, good_B, size)].set(
    drawn_B, mode='drop'
  )
  count_B = good_B + is_drawn_B
  read = jax.lax.cond(
    jnp.any(is_cut_B),
    lambda: job.read(now.cache, token_BG, count_B),
    lambda: read,
  )
  made = _Draft(
    token_BG,
    count_B,
    draft.start_B,
    jnp.minimum(good_B, draft.taken_B),
    draft.is_whole_B & ~is_cut_B,
    job.sampler.remember(memory, drawn),
  )
  return made, _last(read, count_B)


def _read_first(job: _Job, state: State, draft: _Draft) -> _Read:
  """After the first token of every row, which is all that it has."""
  token_B1 = draft.token_BG[:, :1]
  return _last(job.read(state.target.cache, token_B1, draft.count_B), 1)


def _last(read: _Read, count_B: jax.Array | int) -> _Read:
  """What comes after so many tokens, as logits [B, V] and queries [B, D]."""
  rows_B = jnp.arange(len(read.logits_BGV))
  last_B = jnp.maximum(count_B - 1, 0)
  return _Read(
    read.cache, read.logits_BGV[rows_B, last_B], read.query_BGD[rows_B, last_B]
  )


def _record(
  job: _Job, state: State, draft: _Draft, made: _Draft, following: _Read
) -> State:
  """The state after what was made, cut at a stop id or the end."""
  now, (_, size) = state.target, made.token_BG.shape
  active_B = draft.count_B > 0
  count_B, ended_B = speculative.cut(
    now, made.token_BG, made.count_B, job.stop_ids
  )
  taken_B = jnp.minimum(made.taken_B, count_B)
  document_B, offset_B, next_B = passages.locate(
    job.loaded, made.start_B, taken_B
  )
  index_1G = jnp.arange(size)[None]
  place_BG = now.length_B[:, None] + index_1G
  rows_B1 = jnp.arange(len(count_B))[:, None]

  def write(old_BN: jax.Array, new_BG: jax.Array, size_B: jax.Array) -> Any:
    kept_BG = jnp.where(index_1G < size_B[:, None], place_BG, old_BN.shape[1])
    return old_BN.at[rows_B1, kept_BG].set(new_BG, mode='drop')

  source_BG = jnp.broadcast_to(document_B[:, None], place_BG.shape)
  used_BC = state.used_BC | passages.are_used(
    job.loaded, document_B, offset_B, taken_B
  )
  goes_on_B = active_B & made.is_whole_B & ~ended_B
  active_B1 = active_B[:, None]
  target = now._replace(
    cache=following.cache,
    ids_BN=write(now.ids_BN, made.token_BG, count_B),
    length_B=now.length_B + count_B,
    logits_BV=jnp.where(active_B1, following.logits_BGV, now.logits_BV),
    done_B=now.done_B | (active_B & ended_B),
    memory=made.memory,
  )
  is_new_B = (taken_B > 0) & (state.next_B < 0)
  return State(
    target,
    jnp.where(active_B1, following.query_BGD, state.query_BD),
    jnp.where(goes_on_B, next_B, -1),
    used_BC,
    write(state.document_BN, source_BG, taken_B),
    write(state.offset_BN, offset_B[:, None] + index_1G, taken_B),
    state.drafted_B + draft.taken_B,
    state.accepted_B + taken_B,
    state.spans_B + is_new_B.astype(jnp.int32),
    state.rounds_B + active_B.astype(jnp.int32),
  )


def _mix(
  job: _Job, state: State, logits_BTV: jax.Array, query_BTD: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """log p [B T, V], the share [B T] of the model and weights [B T, C]."""
  size = logits_BTV.shape[2]
  found = nearest.find(query_BTD, job.loaded, state.used_BC, size, job.knobs)
  mixed = nearest.mix(logits_BTV.reshape(-1, size), found, job.knobs)
  return *mixed, found.weight_BC


def _draw(
  job: _Job,
  now: loop.State,
  place: int | jax.Array,
  log_p_BV: jax.Array,
  memory: Any,
) -> tuple[jax.Array, jax.Array]:
  """The token so many after the next one, and the law [B, V] it is from."""
  keys_B = speculative.token_keys(now, place)
  law_BV = job.sampler.transform(keys_B, log_p_BV, memory)
  return draw.draw(keys_B, law_BV), law_BV
