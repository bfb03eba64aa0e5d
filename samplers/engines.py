"""Every way to decode behind one face, for what shows text as it is made."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import barring
from samplers import beam
from samplers import chain
from samplers import contrastive
from samplers import loop
from samplers import nearest
from samplers import nest
from samplers import ngram_tables
from samplers import parallel
from samplers import passages
from samplers import rows as cache_rows
from samplers import span_rules
from samplers import speculative
from samplers import superposed


class Source(NamedTuple):
  """A model.

  step: as samplers.loop has it, or samplers.contrastive; init_cache: an empty
  cache for so many rows and tokens. Only `draws` takes one whose rows wait.
  """

  step: Callable[..., Any]
  params: Any
  init_cache: Callable[[int, int], Any]


class Plan(NamedTuple):
  """What to continue, and how far.

  rows: ids_BT, lengths_B and keys_B of samplers.loop.prefill; capacity: tokens
  per row; chunk: tokens between two looks; stop_ids: end a row; barred: ids
  that no row may have, as samplers.barring has it.
  """

  rows: parallel.Rows
  capacity: int
  chunk: int
  stop_ids: Sequence[int] = ()
  barred: bytes = b''

  @property
  def length(self) -> int:
    """Tokens that a cache must hold."""
    return int(np.max(self.rows[1])) + self.capacity


class Seen(NamedTuple):
  """What there is of every text, as in samplers.loop.State.

  missing_B: of a search, where there is no text; None if all rows have one.
  """

  ids_BN: jax.Array
  length_B: jax.Array
  done_B: jax.Array
  missing_B: jax.Array | None = None


class Engine(NamedTuple):
  """Goes from state to state, of which the first has no token yet.

  go_on: consumes a state, gives the next; see: what is in one, once it is
  known to be sound; stop: the state in which some more rows are done.
  """

  state: Any
  go_on: Callable[[Any], Any]
  see: Callable[[Any], Seen]
  stop: Callable[[Any, np.ndarray], Any]


def draws(source: Source, plan: Plan, sampler: chain.Chain) -> Engine:
  """Draws by samplers.loop, on all devices."""
  source = _barred(source, plan)
  length = plan.length  # Not to be found while it is traced.
  decoder = parallel.build(
    source.step,
    source.params,
    lambda count: source.init_cache(count, length),
    plan.rows,
    sampler,
    capacity=plan.capacity,
    num_steps=plan.chunk,
    stop_ids=plan.stop_ids,
  )
  return Engine(decoder.start(plan.rows), decoder.go_on, _see, _stop)


def drafts(
  source: Source,
  draft: Source,
  plan: Plan,
  sampler: chain.Chain,
  *,
  draft_tokens: int,
) -> Engine:
  """Draws by samplers.speculative; a draft without cache reads the source's."""
  sources = _barred(source, plan), _barred(draft, plan)
  count, length = len(plan.rows[0]), plan.length + draft_tokens + 1
  models = tuple(speculative.Model(s.step, s.params) for s in sources)
  state = speculative.prefill(
    *models,
    tuple(_answering(s.init_cache(count, length)) for s in sources),
    plan.rows,
    capacity=plan.capacity,
    draft_tokens=draft_tokens,
    sampler=sampler,
  )
  return Engine(
    state,
    lambda state: speculative.decode(
      *models,
      state,
      sampler,
      num_rounds=-(-plan.chunk // (draft_tokens + 1)),
      draft_tokens=draft_tokens,
      stop_ids=plan.stop_ids,
    ),
    lambda state: _see(state.target),
    lambda state, done_B: state._replace(target=_stop(state.target, done_B)),
  )


def nests(
  source: Source,
  plan: Plan,
  sampler: chain.Chain,
  find: Callable[[np.ndarray], passages.Loaded],
  rule: nearest.Nest,
  *,
  recent: int,
) -> Engine:
  """Draws and copies by samplers.nest; the step gives what keys are.

  find: from the mean [B, D] of the states of the last `recent` ids of every
  prompt to the passages that it calls for.
  """
  span_rules.check(sampler)
  source = _barred(source, plan)
  cache = _answering(source.init_cache(len(plan.rows[0]), plan.length))
  state, query_BD, mean_BD = nest.prefill(
    source.step,
    source.params,
    cache,
    *plan.rows,
    capacity=plan.capacity,
    recent=recent,
    sampler=sampler,
  )
  loaded = find(np.asarray(mean_BD))
  return Engine(
    nest.begin(state, query_BD, loaded),
    lambda state: nest.decode(
      source.step,
      source.params,
      state,
      loaded,
      sampler,
      rule,
      num_rounds=plan.chunk,
      stop_ids=plan.stop_ids,
    ),
    lambda state: _see(state.target),
    lambda state, done_B: state._replace(target=_stop(state.target, done_B)),
  )


def contrasts(
  source: Source, plan: Plan, *, alpha: float, candidates: int
) -> Engine:
  """samplers.contrastive; the step gives hidden states."""
  contrastive.check(alpha, candidates)
  source = _barred(source, plan)
  cache = _answering(source.init_cache(len(plan.rows[0]), plan.length))
  state = contrastive.prefill(
    source.step, source.params, cache, *plan.rows[:2], capacity=plan.capacity
  )
  candidates = min(candidates, state.logits_BV.shape[1])
  axes = _axes(source, plan)
  return Engine(
    state,
    lambda state: contrastive.decode(
      source.step,
      source.params,
      state,
      alpha,
      axes=axes,
      candidates=candidates,
      num_steps=plan.chunk,
      stop_ids=plan.stop_ids,
    ),
    _see,
    _stop,
  )


def beams(
  source: Source,
  plan: Plan,
  *,
  count: int,
  shown: int,
  length_power: float,
) -> Engine:
  """samplers.beam; all `shown` best texts of every row come at once."""
  source = _barred(source, plan)

  def search(state: loop.State) -> beam.Hypotheses:
    return beam.search(
      source.step,
      source.params,
      state,
      _axes(source, plan),
      beams=count,
      length_power=length_power,
      stop_ids=plan.stop_ids,
    )

  return _at_once(source, plan, shown, search)


def superposes(
  source: Source,
  mixer: superposed.Mixer,
  plan: Plan,
  store: ngram_tables.Store,
  rule: superposed.Superposed,
  *,
  shown: int,
) -> Engine:
  """samplers.superposed; all `shown` best drafts come at once."""
  source = _barred(source, plan)
  mixer = mixer._replace(mix=barring.over(mixer.mix, plan.barred))

  def search(state: loop.State) -> beam.Hypotheses:
    return superposed.search(
      source.step,
      mixer,
      source.params,
      state,
      plan.rows[:2],
      store,
      rule,
      num_tokens=plan.capacity,
      stop_ids=tuple(plan.stop_ids),
    )

  return _at_once(source, plan, shown, search)


def _at_once(
  source: Source,
  plan: Plan,
  shown: int,
  search: Callable[[loop.State], beam.Hypotheses],
) -> Engine:
  """Reads the prompts; one step later the search is done."""
  cache = _answering(source.init_cache(len(plan.rows[0]), plan.length))
  state = loop.prefill(
    source.step, source.params, cache, *plan.rows, capacity=plan.capacity
  )
  zeros_B = np.zeros(len(plan.rows[0]) * shown, np.int32)
  nothing = Seen(zeros_B[:, None], zeros_B, zeros_B > 0)

  def go_on(_: Seen) -> Seen:
    found = search(state)
    ids_BN = found.ids_BMN[:, :shown].reshape(-1, plan.capacity)
    missing_B = found.score_BM[:, :shown].reshape(-1) == -jnp.inf
    length_B = found.length_BM[:, :shown].reshape(-1)
    length_B = jnp.where(missing_B, 0, length_B)
    return Seen(ids_BN, length_B, jnp.ones_like(missing_B), missing_B)

  return Engine(nothing, go_on, lambda seen: seen, _stop)


def _barred(source: Source, plan: Plan) -> Source:
  return source._replace(step=barring.over(source.step, plan.barred))


def _answering(cache: Any) -> Any:
  """The cache; ValueError where logits may come with a later step."""
  if getattr(cache, 'waiting_B', None) is not None:
    raise ValueError(
      'this way to decode needs the logits of every step at once; set wait=1 of'
      ' the model'
    )
  return cache


def _axes(source: Source, plan: Plan) -> cache_rows.Axes:
  length = plan.length
  return cache_rows.cache_axes(lambda count: source.init_cache(count, length))


def _see(state: Any) -> Seen:
  loop.check(state)
  return Seen(state.ids_BN, state.length_B, state.done_B)


def _stop(state: Any, done_B: np.ndarray) -> Any:
  return state._replace(done_B=state.done_B | done_B)
