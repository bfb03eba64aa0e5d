"""Speculative sampling: a small model drafts, the law stays that of the large.

Of the drafted tokens x_1 x_2 ... each is accepted with probability min(1, p(x)
/ q(x)); in place of the first that is not, one is drawn in proportion to
max(p - q, 0), and after all of them one more from p. Leviathan et al. 2023
(arXiv 2211.17192), Chen et al. 2023 (arXiv 2302.01318). p and q are what the
sampler makes of the logits of either model. What it remembers is kept for every
place of a draft, and that of the last token goes on.

Both models are used through their steps alone, so that no cache has to forget:
rejected tokens are read into a copy, and the accepted ones once more. A draft
without a cache of its own is a cheaper step over that of the target, as
models.patched.ahead, and forgets its drafts every round.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samplers import chain
from samplers import draw
from samplers import entropy
from samplers import history
from samplers import loop

# Streams of the key of a token; rules that toss use the numbers from 1 on.
_DRAFT, _ACCEPT, _REPLACE = 1 << 20, (1 << 20) + 1, (1 << 20) + 2


class Model(NamedTuple):
  """A step, as samplers.loop has it, hashable, and its parameters."""

  step: loop.Step
  params: Any


class State(NamedTuple):
  """Where every row stands; `decode` consumes one and returns the next."""

  target: loop.State  # `ids_BN` and `length_B` are the result
  draft_cache: Any  # None if it reads that of the target
  draft_logits_BV: jax.Array | None
  drafted_B: jax.Array  # tokens that were proposed
  accepted_B: jax.Array


class _Verified(NamedTuple):
  """Tokens of the round, how many there are, and how many of them are drafts.

  memory: the sampler's, after them. is_bad_B: was there no law to go on with?
  """

  token_BN: jax.Array
  count_B: jax.Array
  accepted_B: jax.Array
  memory: Any
  is_bad_B: jax.Array


class _Round(NamedTuple):
  """Drafts of one round; G is their number."""

  token_BG: jax.Array
  q_GBV: jax.Array
  cache: Any  # of the draft model, after all of them
  logits_BV: jax.Array


def prefill(
  target: Model,
  draft: Model,
  caches: tuple[Any, Any],
  rows: tuple[jax.Array, jax.Array, jax.Array],
  *,
  capacity: int,
  draft_tokens: int,
  sampler: chain.Chain | None = None,
) -> State:
  """Reads prompts into both models.

  Args:
    target: The model whose law it is.
    draft: One of the same vocabulary.
    caches: Donated, of the target and of the draft, or None for one that reads
      the target's; they need room for the prompt, the capacity and the tokens
      of a draft and one more.
    rows: ids_BT, lengths_B and keys_B of samplers.loop.prefill.
    capacity: Tokens that can be generated per row, N.
    draft_tokens: As for `decode`.
    sampler: The one to decode with, needed if it remembers its rows.
  """
  if draft_tokens < 1:
    raise ValueError(
      f'draft_tokens={draft_tokens} must be at least 1; 4 is usual'
    )
  # Two arrays, for both are donated.
  counts = [jnp.zeros_like(rows[1]) for _ in range(2)]
  state, other = (
    None
    if cache is None
    else loop.prefill(
      model.step, model.params, cache, *rows, capacity=capacity, sampler=rule
    )
    for model, cache, rule in zip(
      (target, draft), caches, (sampler, None), strict=True
    )
  )
  if other is None:
    return State(state, None, None, *counts)
  sizes = state.logits_BV.shape[1], other.logits_BV.shape[1]
  if sizes[0] != sizes[1]:
    raise ValueError(
      f'the draft model has a vocabulary of {sizes[1]} ids and the model one of'
      f' {sizes[0]}; take a draft model trained on the same ids'
    )
  return State(state, other.cache, other.logits_BV, *counts)


@functools.partial(
  jax.jit,
  static_argnames=('target_step', 'draft_step', 'draft_tokens'),
  donate_argnames=('state',),
)
def _decode(
  target_step: loop.Step,
  draft_step: loop.Step,
  params: tuple[Any, Any],
  state: State,
  sampler: chain.Chain,
  num_rounds: int | jax.Array,
  stop_ids: Sequence[int],
  draft_tokens: int,
) -> State:
  target = Model(target_step, params[0])
  draft = Model(draft_step, params[1])

  def unfinished(carry: tuple[jax.Array, State]) -> jax.Array:
    count, state = carry
    return (count < num_rounds) & ~jnp.all(state.target.done_B)

  def advance(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
    count, state = carry
    return count + 1, _advance(
      target, draft, state, sampler, stop_ids, draft_tokens
    )

  return jax.lax.while_loop(unfinished, advance, (jnp.int32(0), state))[1]


def decode(
  target: Model,
  draft: Model,
  state: State,
  sampler: chain.Chain,
  *,
  num_rounds: int | jax.Array,
  draft_tokens: int = 4,
  stop_ids: Sequence[int] = (),
) -> State:
  """Up to num_rounds rounds of 1 to draft_tokens + 1 tokens; donates the state.

  ValueError for a sampler that remembers and that prefill was not given.
  """
  params = target.params, draft.params
  return _decode(
    target.step, draft.step, params, state, sampler, num_rounds, stop_ids,
    draft_tokens,
  )  # fmt: skip


def accept(
  p_BV: jax.Array, q_BV: jax.Array, token_B: jax.Array, uniform_B: jax.Array
) -> jax.Array:
  """[B]: does a token, drawn from q, stand for one drawn from p?"""
  own = functools.partial(jnp.take_along_axis, indices=token_B[:, None], axis=1)
  return uniform_B * own(q_BV)[:, 0] < own(p_BV)[:, 0]


def residual(p_BV: jax.Array, q_BV: jax.Array) -> jax.Array:
  """Weights of what replaces a token that was not accepted."""
  rest_BV = jnp.maximum(p_BV - q_BV, 0.0)
  # No token is rejected where p = q, but for the digits of their sums.
  is_none_B1 = jnp.max(rest_BV, axis=1, keepdims=True) <= 0
  return jnp.where(is_none_B1, p_BV, rest_BV)


def _advance(
  target: Model,
  draft: Model,
  state: State,
  sampler: chain.Chain,
  stop_ids: Sequence[int],
  draft_tokens: int,
) -> State:
  now = state.target
  is_law_B = jnp.isfinite(jnp.max(now.logits_BV, axis=1))
  failed_B = now.failed_B | (~now.done_B & ~is_law_B)
  active_B = ~now.done_B & is_law_B
  made = _draft(draft, state, sampler, active_B, draft_tokens)
  real_BG = jnp.broadcast_to(active_B[:, None], made.token_BG.shape)
  logits_BGV, read = target.step(
    target.params, made.token_BG, real_BG.astype(jnp.int32), now.cache
  )
  logits_GBV = jnp.concatenate(
    [now.logits_BV[None], jnp.swapaxes(logits_BGV, 0, 1).astype(jnp.float32)]
  )
  found = _verify(now, sampler, made, logits_GBV, active_B)
  token_BN = found.token_BN
  count_B, ended_B = cut(now, token_BN, found.count_B, stop_ids)
  count_B = jnp.where(active_B, count_B, 0)
  target_cache, logits_BV = _commit(
    target, now.cache, read, token_BN, count_B, active_B, now.logits_BV
  )
  own = state.draft_cache, state.draft_logits_BV
  if state.draft_cache is not None:
    own = _commit(
      draft, own[0], made.cache, token_BN, count_B, active_B, own[1]
    )
  place_BN = now.length_B[:, None] + jnp.arange(token_BN.shape[1])[None]
  is_made_BN = jnp.arange(token_BN.shape[1])[None] < count_B[:, None]
  place_BN = jnp.where(is_made_BN, place_BN, now.ids_BN.shape[1])
  ids_BN = now.ids_BN.at[jnp.arange(len(count_B))[:, None], place_BN].set(
    token_BN, mode='drop'
  )
  failed_B |= active_B & found.is_bad_B & ~ended_B
  following = now._replace(
    cache=target_cache,
    ids_BN=ids_BN,
    length_B=now.length_B + count_B,
    logits_BV=logits_BV,
    done_B=now.done_B | failed_B | (active_B & ended_B),
    failed_B=failed_B,
    memory=found.memory,
  )
  return State(
    following,
    *own,
    state.drafted_B + jnp.where(active_B, draft_tokens, 0),
    state.accepted_B + jnp.where(active_B, found.accepted_B, 0),
  )


def _draft(
  draft: Model,
  state: State,
  sampler: chain.Chain,
  active_B: jax.Array,
  draft_tokens: int,
) -> _Round:
  """Draws the drafts one after the other, whatever the target may say."""

  def propose(carry: tuple[Any, ...], place: jax.Array) -> tuple:
    cache, logits_BV, memory = carry
    # Whatever proposes, the law is the target's.
    is_law_B1 = jnp.isfinite(jnp.max(logits_BV, axis=1, keepdims=True))
    logits_BV = jnp.where(is_law_B1, logits_BV, 0.0)
    keys_B = token_keys(state.target, place)
    changed_BV = sampler.transform(keys_B, logits_BV, memory)
    token_B = draw.draw(_stream(keys_B, _DRAFT), changed_BV)
    drawn = history.Drawn(token_B, active_B, changed_BV)
    memory = sampler.remember(memory, drawn)
    logits_B1V, cache = draft.step(
      draft.params, token_B[:, None], active_B[:, None].astype(jnp.int32), cache
    )
    made = token_B, entropy.law(changed_BV).p_BV
    return (cache, logits_B1V[:, 0].astype(jnp.float32), memory), made

  begin = state.draft_cache, state.draft_logits_BV
  if state.draft_cache is None:
    begin = state.target.cache, state.target.logits_BV
  (cache, logits_BV, _), (token_GB, q_GBV) = jax.lax.scan(
    propose, (*begin, state.target.memory), jnp.arange(draft_tokens)
  )
  return _Round(token_GB.T, q_GBV, cache, logits_BV)


def _verify(
  now: loop.State,
  sampler: chain.Chain,
  made: _Round,
  logits_GBV: jax.Array,
  active_B: jax.Array,
) -> _Verified:
  """What remains of the drafts, and a draw behind them."""
  count, (batch_size, size) = len(made.q_GBV), now.logits_BV.shape
  rows_B = jnp.arange(batch_size)

  def judge(memory: Any, given: tuple[jax.Array, ...]) -> tuple[Any, Any]:
    place, logits_BV, token_B = given
    changed_BV = sampler.transform(token_keys(now, place), logits_BV, memory)
    seen = memory, changed_BV
    drawn = history.Drawn(token_B, active_B, changed_BV)
    return sampler.remember(memory, drawn), seen

  # Behind the drafts comes a token that is not known yet, and not looked at.
  token_BN = jnp.pad(made.token_BG, ((0, 0), (0, 1)))
  _, (memory_G, changed_GBV) = jax.lax.scan(
    judge, now.memory, (jnp.arange(count + 1), logits_GBV, token_BN.T)
  )
  p_GBV = jax.lax.map(lambda x_BV: entropy.law(x_BV).p_BV, changed_GBV)
  keys_GB = jax.vmap(functools.partial(token_keys, now))(jnp.arange(count + 1))
  uniform_GB = jax.vmap(jax.vmap(jax.random.uniform))(
    jax.vmap(functools.partial(_stream, number=_ACCEPT))(keys_GB)
  )
  accepted_GB = jax.vmap(accept)(
    p_GBV[:count], made.q_GBV, made.token_BG.T, uniform_GB[:count]
  )
  is_law_GB = jnp.isfinite(jnp.max(logits_GBV, axis=2))
  accepted_GB &= is_law_GB[:count]
  accepted_B = jnp.sum(jnp.cumprod(accepted_GB.astype(jnp.int32), axis=0), 0)
  none_1BV = jnp.zeros((1, batch_size, size))
  q_GBV = jnp.concatenate([made.q_GBV, none_1BV])
  rest_BV = residual(p_GBV[accepted_B, rows_B], q_GBV[accepted_B, rows_B])
  keys_B = _stream(keys_GB[accepted_B, rows_B], _REPLACE)
  last_B = draw.draw(keys_B, jnp.log(rest_BV))
  token_BN = token_BN.at[rows_B, accepted_B].set(last_B)
  is_law_B = is_law_GB[accepted_B, rows_B]
  drawn = history.Drawn(
    last_B, active_B & is_law_B, changed_GBV[accepted_B, rows_B]
  )
  memory = jax.tree.map(lambda x: x[accepted_B, rows_B], memory_G)
  return _Verified(
    token_BN,
    accepted_B + is_law_B.astype(jnp.int32),
    accepted_B,
    sampler.remember(memory, drawn),
    ~is_law_B,
  )


def cut(
  now: loop.State,
  token_BN: jax.Array,
  count_B: jax.Array,
  stop_ids: Sequence[int],
) -> tuple[jax.Array, jax.Array]:
  """How many tokens remain up to a stop id or the end; is that the end?"""
  stops_BN = jnp.zeros(token_BN.shape, bool)
  for stop_id in stop_ids:
    stops_BN |= token_BN == stop_id
  index_1N = jnp.arange(token_BN.shape[1])[None]
  stops_BN &= index_1N < count_B[:, None]
  has_stop_B = jnp.any(stops_BN, axis=1)
  count_B = jnp.where(has_stop_B, jnp.argmax(stops_BN, axis=1) + 1, count_B)
  room_B = now.ids_BN.shape[1] - now.length_B
  return jnp.minimum(count_B, room_B), has_stop_B | (count_B >= room_B)


def _commit(
  model: Model,
  before: Any,
  after: Any,
  token_BN: jax.Array,
  count_B: jax.Array,
  active_B: jax.Array,
  logits_BV: jax.Array,
) -> tuple[Any, jax.Array]:
  """The cache with what was decided, and the logits of what comes next.

  before: without the drafts; after: with all of them.
  """
  size = token_BN.shape[1]

  def read(cache: Any, first: int) -> tuple[Any, jax.Array]:
    index_1N = jnp.arange(first, size)[None]
    real_BN = (index_1N < count_B[:, None]).astype(jnp.int32)
    logits_BNV, cache = model.step(
      model.params, token_BN[:, first:], real_BN, cache
    )
    last_B = jnp.clip(count_B - 1 - first, 0, size - 1 - first)
    last_BV = jnp.take_along_axis(logits_BNV, last_B[:, None, None], axis=1)
    return cache, last_BV[:, 0].astype(jnp.float32)

  cache, last_BV = jax.lax.cond(
    jnp.all((count_B == size) | ~active_B),
    lambda: read(after, size - 1),
    lambda: read(before, 0),
  )
  return cache, jnp.where((count_B > 0)[:, None], last_BV, logits_BV)


def token_keys(state: loop.State, place: int | jax.Array) -> jax.Array:
  """Of the token that is `place` after the next one."""
  return jax.vmap(jax.random.fold_in)(state.keys_B, state.length_B + place)


def _stream(keys_B: jax.Array, number: int) -> jax.Array:
  return jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
