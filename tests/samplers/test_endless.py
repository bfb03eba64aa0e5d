"""Every way to decode over a ring of keys, against no cache at all."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import forward
from models import lm
from models import masks
from models import superposition
from samplers import chain
from samplers import engines
from samplers import ngram_tables
from samplers import superposed
from tests.models import small_lm
from tests.samplers import test_loop as toy

MODEL = lm.ByteLM(
  **(small_lm.SIZES | {'layers': 1}),
  masks=(masks.Lambda(n_global=2, n_local=5),),
)
DRAFT = lm.ByteLM(
  **(small_lm.SIZES | {'layers': 1}), masks=(masks.Causal(window=1),)
)
PROMPTS = [[1, 80, 90, 100, 7, 8, 9, 10, 11], [1, 200]]
MADE = 14


class Whole(NamedTuple):
  """All ids of every row, and how many they are."""

  ids_BN: jax.Array
  length_B: jax.Array


def init_whole(count, length):
  return Whole(
    jnp.zeros((count, length), jnp.int32), jnp.zeros(count, jnp.int32)
  )


@functools.cache
def step_whole(model, has_hidden):
  """A step that reads every row again from its start."""

  def step(params, ids_BT, documents_BT, cache):
    count, size = cache.ids_BN.shape
    place_BT = cache.length_B[:, None] + jnp.arange(ids_BT.shape[1])[None]
    slot_BT = jnp.where(documents_BT > 0, place_BT, size)
    ids_BN = cache.ids_BN.at[jnp.arange(count)[:, None], slot_BT].set(
      ids_BT, mode='drop'
    )
    length_B = cache.length_B + (documents_BT > 0).sum(axis=1)
    real_BN = (jnp.arange(size)[None] < length_B[:, None]).astype(jnp.int32)
    run = forward.hidden_step if has_hidden else forward.step
    found, _ = run(model)(params, ids_BN, real_BN, None)
    index_BT1 = jnp.clip(place_BT, 0, size - 1)[:, :, None]
    found = jax.tree.map(
      lambda x: jnp.take_along_axis(x, index_BT1, axis=1), found
    )
    return found, Whole(ids_BN, length_B)

  return step


def sources(model, has_hidden=False):
  """The model with its ring, and without."""
  params = small_lm.draw(model)
  ring = (forward.hidden_step if has_hidden else forward.step)(model)
  return (
    engines.Source(ring, params, model.init_cache),
    engines.Source(step_whole(model, has_hidden), params, init_whole),
  )


def made(engine):
  state, seen = engine.state, engine.see(engine.state)
  while not np.all(seen.done_B):
    state = engine.go_on(state)
    seen = engine.see(state)
  lengths = np.asarray(seen.length_B)
  rows = zip(np.asarray(seen.ids_BN), lengths, strict=True)
  return [row[:length].tolist() for row, length in rows]


def plan():
  keys_B = jax.random.split(jax.random.key(3), 2)
  return engines.Plan((*toy.padded(PROMPTS), keys_B), MADE, 4)


WAYS = {
  'draws': lambda source: engines.draws(
    source, plan(), chain.parse('temperature(0.8)|top_p(0.9)')
  ),
  'repetition': lambda source: engines.draws(
    source, plan(), chain.parse('temperature(0.8)|repetition(1.3)')
  ),
  'drafts': lambda source: engines.drafts(
    source, sources(DRAFT)[0], plan(), chain.parse('temperature(0.9)'),
    draft_tokens=3,
  ),
  'beams': lambda source: engines.beams(
    source, plan(), count=3, shown=2, length_power=1.0
  ),
  'contrasts': lambda source: engines.contrasts(
    source, plan(), alpha=0.4, candidates=3
  ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('way', WAYS)
def test_the_same_ids_as_without_a_cache(way):
  ring, whole = sources(MODEL, has_hidden=way == 'contrasts')
  found = made(WAYS[way](ring))
  assert found == made(WAYS[way](whole))
  assert all(len(row) == MADE for row in found)
  assert len({i for row in found for i in row}) > 8


@pytest.mark.slow
def test_one_superposed_draft_is_greedy_without_a_cache():
  ring, whole = sources(MODEL)
  engine = engines.superposes(
    ring,
    superposed.Mixer(*superposition.mixing(MODEL)),
    plan(),
    ngram_tables.build([np.array([99, 98])]),
    superposed.Superposed(drafts=1, alpha=0.0, temperature=1.0, reset=None),
    shown=1,
  )
  greedy = engines.draws(whole, plan(), chain.parse('greedy'))
  assert made(engine) == made(greedy)
