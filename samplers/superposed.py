"""Superposed decoding: k drafts of a text from one forward pass per token.

The model reads the mean of the embeddings of the drafts' last tokens, weighted
by the drafts' probabilities; n-grams of a corpus tell the drafts apart. Shen et
al. 2024 (arXiv 2405.18400). The mean is a good guide for about ten tokens;
after `reset` of them one draft is drawn, read as it is, and all go on from it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samplers import beam
from samplers import loop
from samplers import ngram_tables

# Log score of a draft that the store knows nothing of.
_UNKNOWN = -200.0


class Mixer(NamedTuple):
  """A model that reads a weighted mean of embeddings.

  context: ids before a token that its embedding depends on; mix: (params,
  recent_BMC, ids_BM, weights_BM, cache) -> (logits_BV, cache), where recent_BMC
  are so many ids before ids_BM, or all, oldest first and 0 where there is none.
  """

  context: int
  mix: Callable[..., tuple[jax.Array, Any]]


@dataclasses.dataclass(frozen=True)
class Superposed:
  """How drafts are scored.

  drafts: k; alpha: share of the n-grams in a score; temperature: of the model;
  candidates: ids looked at per step, None for 3 k; weights: of the orders of
  `ngram_tables`; reset: tokens after which one draft goes on, None for never.
  """

  drafts: int = 3
  alpha: float = 0.54
  temperature: float = 0.06
  candidates: int | None = None
  weights: tuple[float, ...] = (0.01, 0.04, 0.15, 0.18, 0.12)
  reset: int | None = None

  def __post_init__(self) -> None:
    count = self.drafts if self.candidates is None else self.candidates
    if self.drafts < 1 or count < self.drafts:
      raise ValueError(
        f'superposed drafts={self.drafts} must be at least 1, and candidates='
        f'{self.candidates} no fewer; 3 and 9 are usual'
      )
    least = float(jnp.finfo(jnp.float32).tiny)
    if not (0 <= self.alpha < 1 and least <= self.temperature < math.inf):
      raise ValueError(
        f'superposed alpha={self.alpha} must lie in [0, 1) and temperature='
        f'{self.temperature} be above 0 and finite; 0.54 and 0.06 are usual'
      )
    if self.reset is not None and self.reset < 1:
      raise ValueError(
        f'superposed reset={self.reset} must be at least 1; leave it out for'
        ' none'
      )
    if len(self.weights) != len(ngram_tables.ORDERS):
      raise ValueError(
        f'superposed has {len(self.weights)} weights for'
        f' {len(ngram_tables.ORDERS)} orders of n-grams; give one for each'
      )
    if not all(0 <= weight < math.inf for weight in self.weights):
      raise ValueError(
        f'superposed weights={self.weights} must be finite numbers, none below'
        ' 0'
      )


class _State(NamedTuple):
  count: jax.Array
  cache: Any
  logits_BV: jax.Array
  ids_BMN: jax.Array
  log_p_BM: jax.Array
  finished: beam.Hypotheses
  faults: loop.Faults
  start: Any  # the cache at the last reset; None if there is none to come


def search(
  step: loop.Step,
  mixer: Mixer,
  params: Any,
  state: loop.State,
  prompt: tuple[jax.Array, jax.Array],
  store: ngram_tables.Store,
  rule: Superposed,
  *,
  num_tokens: int,
  stop_ids: tuple[int, ...] = (),
) -> beam.Hypotheses:
  """2 k drafts of every row of `loop.prefill`'s state, best first.

  A score is the mean over tokens of the tempered score that a draft was chosen
  by, which is no log-probability. ValueError for logits that are no law.

  Args:
    step: The model's, which reads the draft that goes on after a reset.
    mixer: The same model with mean embeddings.
    params: Of both.
    state: After the prompts, with room for num_tokens more.
    prompt: ids_BT and lengths_B that were read.
    store: n-grams of a corpus.
    rule: How drafts are scored.
    num_tokens: N.
    stop_ids: End a draft.
  """
  found, faults = _search(
    step, mixer, params, state, prompt, store, rule, num_tokens, stop_ids
  )
  loop.check(faults)
  return found


@functools.partial(
  jax.jit, static_argnames=('step', 'mixer', 'rule', 'num_tokens', 'stop_ids')
)
def _search(
  step: loop.Step,
  mixer: Mixer,
  params: Any,
  state: loop.State,
  prompt: tuple[jax.Array, jax.Array],
  store: ngram_tables.Store,
  rule: Superposed,
  num_tokens: int,
  stop_ids: tuple[int, ...],
) -> tuple[beam.Hypotheses, loop.Faults]:

  def advance(_: jax.Array, now: _State) -> _State:
    now = _choose(now, prompt, store, rule, stop_ids)
    now = _read(mixer, params, now, prompt)
    if rule.reset is None:
      return now
    reset = functools.partial(_reset, step, params, state.keys_B, rule.reset)
    is_due = (now.count % rule.reset == 0) & (now.count < num_tokens)
    return jax.lax.cond(is_due, reset, lambda now: now, now)

  begin = _begin(state, rule.drafts, num_tokens)
  if rule.reset is None:
    begin = begin._replace(start=None)
  last = jax.lax.fori_loop(0, num_tokens, advance, begin)
  length_BM = jnp.full(last.log_p_BM.shape, num_tokens)
  alive = beam.Hypotheses(last.ids_BMN, length_BM, last.log_p_BM / num_tokens)
  both = jax.tree.map(
    lambda a, b: jnp.concatenate([a, b], axis=1), alive, last.finished
  )
  return beam.best(both, 2 * rule.drafts), last.faults


def _begin(state: loop.State, drafts: int, num_tokens: int) -> _State:
  """One draft of no token per row."""
  batch_size = len(state.logits_BV)
  shape = (batch_size, drafts)
  empty = beam.Hypotheses(
    jnp.zeros((*shape, num_tokens), jnp.int32),
    jnp.zeros(shape, jnp.int32),
    jnp.full(shape, -jnp.inf),
  )
  return _State(
    jnp.int32(0),
    state.cache,
    state.logits_BV,
    empty.ids_BMN,
    _alone(shape, jnp.zeros(batch_size)),
    empty,
    loop.no_faults(batch_size),
    state.cache,
  )


def _choose(
  now: _State,
  prompt: tuple[jax.Array, jax.Array],
  store: ngram_tables.Store,
  rule: Superposed,
  stop_ids: Sequence[int],
) -> _State:
  """Every draft with every candidate; the best go on, those that end do not."""
  batch_size, drafts = now.log_p_BM.shape
  size = now.logits_BV.shape[1]
  count = min(rule.candidates or 3 * drafts, size)
  now, logits_BV = _judge(now)
  logits_BK, id_BK = jax.lax.top_k(logits_BV / rule.temperature, count)
  log_p_BK = jax.nn.log_softmax(logits_BK)
  recent_BMC = _recent(prompt, now.ids_BMN, now.count, ngram_tables.ORDERS[-1])
  shape = (batch_size, drafts, count)
  found_BMK = ngram_tables.probability(
    store, recent_BMC, jnp.broadcast_to(id_BK[:, None], shape), rule.weights
  )
  plain_BMK = jnp.broadcast_to((1 - rule.alpha) * log_p_BK[:, None], shape)
  score_BMK = plain_BMK
  if rule.alpha:
    is_known_BM1 = jnp.any(found_BMK > 0, axis=2, keepdims=True)
    score_BMK = jnp.where(
      is_known_BM1,
      plain_BMK + rule.alpha * jnp.log(found_BMK),
      plain_BMK + _UNKNOWN,
    )
  total_BMK = now.log_p_BM[:, :, None] + score_BMK
  # So many that k do not end, whatever the stop ids are.
  most = min(drafts * (1 + len(stop_ids)), drafts * count)
  total_BK, place_BK = jax.lax.top_k(total_BMK.reshape(batch_size, -1), most)
  parent_BK = place_BK // count
  token_BK = jnp.take_along_axis(id_BK, place_BK % count, axis=1)
  ids_BKN = jnp.take_along_axis(now.ids_BMN, parent_BK[:, :, None], axis=1)
  ids_BKN = ids_BKN.at[:, :, now.count].set(token_BK)
  now = now._replace(count=now.count + 1)
  if not stop_ids:
    return now._replace(ids_BMN=ids_BKN, log_p_BM=total_BK)
  is_end_BK = jnp.zeros(token_BK.shape, bool)
  for stop_id in stop_ids:
    is_end_BK |= token_BK == stop_id
  length_BK = jnp.full(token_BK.shape, now.count)
  ended = beam.Hypotheses(
    ids_BKN, length_BK, jnp.where(is_end_BK, total_BK / length_BK, -jnp.inf)
  )
  both = jax.tree.map(
    lambda a, b: jnp.concatenate([a, b], axis=1), now.finished, ended
  )
  log_p_BM, best_BM = jax.lax.top_k(
    jnp.where(is_end_BK, -jnp.inf, total_BK), drafts
  )
  return now._replace(
    ids_BMN=jnp.take_along_axis(ids_BKN, best_BM[:, :, None], axis=1),
    log_p_BM=log_p_BM,
    finished=beam.best(both, drafts),
  )


def _judge(now: _State) -> tuple[_State, jax.Array]:
  """Notes which logits are no law; and the logits, 0 in place of these.

  The largest is 0, so that no temperature makes one overflow.
  """
  largest_B = jnp.max(now.logits_BV, axis=1)
  # Drafts that all ended ask the model nothing more.
  asked_B = jnp.max(now.log_p_BM, axis=1) > -jnp.inf
  faults = loop.note(now.faults, largest_B, asked_B, now.count)
  logits_BV = jnp.where(
    jnp.isfinite(largest_B)[:, None],
    now.logits_BV - largest_B[:, None],
    0.0,
  )
  return now._replace(faults=faults), logits_BV


def _read(
  mixer: Mixer, params: Any, now: _State, prompt: tuple[jax.Array, jax.Array]
) -> _State:
  """Feeds the mean of the drafts' last tokens."""
  whole = prompt[0].shape[1] + now.ids_BMN.shape[2]
  recent_BMC = _recent(
    prompt, now.ids_BMN, now.count, min(mixer.context + 1, whole)
  )
  # A row of drafts that all ended has nothing left to weigh.
  log_p_BM = jnp.where(
    jnp.isfinite(jnp.max(now.log_p_BM, axis=1, keepdims=True)),
    now.log_p_BM,
    0.0,
  )
  logits_BV, cache = mixer.mix(
    params,
    recent_BMC[..., :-1],
    recent_BMC[..., -1],
    jax.nn.softmax(log_p_BM, axis=1),
    now.cache,
  )
  return now._replace(cache=cache, logits_BV=logits_BV.astype(jnp.float32))


def _reset(
  step: loop.Step,
  params: Any,
  keys_B: jax.Array,
  size: int,
  now: _State,
) -> _State:
  """Draws one draft per row and reads it from where the last reset was."""
  batch_size = len(keys_B)
  keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, now.count)
  chosen_B = jax.vmap(jax.random.categorical)(keys_B, now.log_p_BM)
  rows_B = jnp.arange(batch_size)
  ids_BN = now.ids_BMN[rows_B, chosen_B]
  made_BT = jax.lax.dynamic_slice_in_dim(ids_BN, now.count - size, size, 1)
  logits_BTV, cache = step(params, made_BT, jnp.ones_like(made_BT), now.start)
  return now._replace(
    cache=cache,
    start=cache,
    logits_BV=logits_BTV[:, -1].astype(jnp.float32),
    ids_BMN=jnp.broadcast_to(ids_BN[:, None], now.ids_BMN.shape),
    log_p_BM=_alone(now.log_p_BM.shape, now.log_p_BM[rows_B, chosen_B]),
  )


def _alone(shape: tuple[int, int], log_p_B: jax.Array) -> jax.Array:
  """[B, M] with one draft that there is."""
  return jnp.full(shape, -jnp.inf).at[:, 0].set(log_p_B)


def _recent(
  prompt: tuple[jax.Array, jax.Array],
  ids_BMN: jax.Array,
  count: jax.Array,
  size: int,
) -> jax.Array:
  """[B, M, size]: the last ids of every draft, 0 before the prompt."""
  ids_BT, lengths_B = prompt
  place_BC = lengths_B[:, None] + count - size + jnp.arange(size)[None]
  in_prompt_BC = place_BC < lengths_B[:, None]
  old_BC = jnp.take_along_axis(
    ids_BT, jnp.clip(place_BC, 0, ids_BT.shape[1] - 1), axis=1
  )
  old_BC = jnp.where(place_BC >= 0, old_BC, 0)
  new_BC = jnp.clip(place_BC - lengths_B[:, None], 0, ids_BMN.shape[2] - 1)
  new_BMC = jnp.take_along_axis(ids_BMN, new_BC[:, None], axis=2)
  return jnp.where(in_prompt_BC[:, None], old_BC[:, None], new_BMC)
