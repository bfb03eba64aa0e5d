"""Ids that stand for nothing, in every way to decode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import codec
from samplers import barring
from samplers import chain
from samplers import engines
from samplers import ngram_tables
from samplers import superposed
from tests.samplers import nest_reference
from tests.samplers import test_loop as toy

# Of the eleven ids; the model knows more of them than the tokenizer.
BARRED = bytes([1, 0, 0, 1, 0, 0, 0, 1, 0])
LEFT = {1, 2, 4, 5, 6, 8}
PROMPTS = [[1, 4, 4, 2], [5]]


def test_silent_ids_are_those_of_no_byte_that_end_nothing():
  spelling = codec.Bytes()
  found = barring.silent(spelling.lengths_V, spelling.stops)
  assert len(found) == 260
  assert [i for i, is_silent in enumerate(found) if is_silent] == [0, 1, 3]


def test_logits_are_barred_alone_and_beside_others():
  def call(number):
    return number * jnp.ones((2, 3, 11)), 'cache'

  def pair(number):
    return (number * jnp.ones((2, 11)), 'hidden'), 'cache'

  logits, cache = barring.over(call, BARRED)(2.0)
  assert cache == 'cache'
  is_barred = np.asarray(logits) == -np.inf
  assert set(np.flatnonzero(~is_barred.any(axis=(0, 1)))) == LEFT
  assert np.all(is_barred == is_barred[0, 0])
  (logits, hidden), _ = barring.over(pair, BARRED)(2.0)
  assert hidden == 'hidden' and np.isneginf(logits[:, 10]).all()
  assert barring.over(call, b'') is call
  again = barring.over(call, BARRED)
  assert again == barring.over(call, BARRED) and hash(again)


def step(table, ids_BT, documents_BT, cache):
  """The toy's, which likes what is barred."""
  logits_BTV, cache = toy.step(table, ids_BT, documents_BT, cache)
  return logits_BTV.at[..., jnp.array([0, 3, 7, 9, 10])].add(6.0), cache


def hidden_step(table, ids_BT, documents_BT, cache):
  logits_BTV, cache = step(table, ids_BT, documents_BT, cache)
  return (logits_BTV, logits_BTV), cache


def mix(table, recent_BMC, ids_BM, weights_BM, cache):
  del recent_BMC, weights_BM
  ids_B1 = ids_BM[:, :1]
  logits_B1V, cache = step(table, ids_B1, jnp.ones_like(ids_B1), cache)
  return logits_B1V[:, 0], cache


def source(call=step):
  return engines.Source(call, toy.TABLE, lambda rows, _: toy.empty(rows))


MIXER = superposed.Mixer(0, mix)
STORE = ngram_tables.build([np.arange(11), np.arange(11)[::-1]])
RULE = superposed.Superposed(drafts=3, temperature=1.0)
DRAWN = chain.parse('temperature(1.5)')
WAYS = {
  'draws': lambda plan: engines.draws(source(), plan, DRAWN),
  'drafts': lambda plan: engines.drafts(
    source(), source(), plan, DRAWN, draft_tokens=2
  ),
  'beams': lambda plan: engines.beams(
    source(), plan, count=3, shown=3, length_power=1.0
  ),
  'contrasts': lambda plan: engines.contrasts(
    source(hidden_step), plan, alpha=0.5, candidates=3
  ),
  'superposes': lambda plan: engines.superposes(
    source(), MIXER, plan, STORE, RULE, shown=3
  ),
}


@pytest.mark.parametrize('way', WAYS)
def test_barred_ids_are_never_made(way):
  made = {}
  for barred in (b'', BARRED):
    keys_B = jax.random.split(jax.random.key(3), 2)
    rows = (*toy.padded(PROMPTS), keys_B)
    engine = WAYS[way](engines.Plan(rows, 12, 4, barred=barred))
    state, seen = engine.state, engine.see(engine.state)
    while not np.all(seen.done_B):
      state = engine.go_on(state)
      seen = engine.see(state)
    made[barred] = set(np.asarray(seen.ids_BN).ravel().tolist())
  assert made[BARRED] <= LEFT
  assert not made[b''] <= LEFT


@pytest.mark.parametrize('barred', [b'', bytes([1] + [0] * 8)])
def test_what_is_barred_is_not_drawn_between_spans(barred):
  """Of a corpus, which has no such id, only other ids come."""

  def likes_0(*arguments):
    (logits_BTV, query_BTD), cache = nest_reference.step(*arguments)
    return (logits_BTV.at[..., 0].add(6.0), query_BTD), cache

  keys_B = jax.random.split(jax.random.key(3), 2)
  plan = engines.Plan(
    (*toy.padded([[1, 4, 4, 2], [3]]), keys_B), 24, 24, barred=barred
  )
  engine = engines.nests(
    engines.Source(
      likes_0,
      nest_reference.PARAMS,
      lambda rows, _: nest_reference.Cache(jnp.zeros((rows, 5))),
    ),
    plan,
    DRAWN,
    lambda _: nest_reference.load(nest_reference.CHOSEN[:2]),
    nest_reference.RULE,
    recent=2,
  )
  seen = engine.see(engine.go_on(engine.state))
  assert np.all(seen.done_B)
  assert (0 in np.asarray(seen.ids_BN)) == (not barred)


def test_drafts_have_the_law_of_draws():
  """Both models are barred alike, so that all that is drafted is accepted."""
  keys_B = jax.random.split(jax.random.key(3), 2)
  plan = engines.Plan((*toy.padded(PROMPTS), keys_B), 12, 12, barred=BARRED)
  engine = WAYS['drafts'](plan)
  state = engine.go_on(engine.state)
  assert np.all(np.asarray(state.accepted_B) == np.asarray(state.drafted_B))
