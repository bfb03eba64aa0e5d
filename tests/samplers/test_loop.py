"""The decode loop over a toy recurrent step, and over the real model."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from models import lm
from models import masks
from models import ngrams
from samplers import chain
from samplers import loop
from tests.models import small_lm

STATES, VOCABULARY, CAPACITY = 97, 11, 12
TABLE = np.random.default_rng(0).normal(size=(STATES, VOCABULARY)) * 2
TABLE = TABLE.astype(np.float32)


class Cache(NamedTuple):
  """A hash of all real tokens in their order, and two counters."""

  hash_B: jax.Array
  length_B: jax.Array
  calls: jax.Array


def empty(batch_size):
  shapes = (batch_size,), (batch_size,), ()
  # Copies of their own, which the loop is given to write on.
  return Cache(*(jnp.array(np.zeros(shape, np.int32)) for shape in shapes))


def step(table, ids_BT, documents_BT, cache):
  def advance(hash_B, token):
    id_B, document_B = token
    new_B = (hash_B * 31 + id_B + 1) % STATES
    hash_B = jnp.where(document_B > 0, new_B, hash_B)
    return hash_B, jnp.where((document_B > 0)[:, None], table[hash_B], jnp.nan)

  hash_B, logits_TBV = jax.lax.scan(
    advance, cache.hash_B, (ids_BT.T, documents_BT.T)
  )
  length_B = cache.length_B + (documents_BT > 0).sum(axis=1)
  cache = Cache(hash_B, length_B, cache.calls + 1)
  return jnp.swapaxes(logits_TBV, 0, 1), cache


def hash_of(ids):
  return functools.reduce(lambda h, i: (h * 31 + i + 1) % STATES, ids, 0)


def greedy_reference(prompt, count, stop_ids=()):
  ids = list(prompt)
  while count and not (len(ids) > len(prompt) and ids[-1] in stop_ids):
    ids.append(int(np.argmax(TABLE[hash_of(ids)])))
    count -= 1
  return ids[len(prompt) :]


PROMPTS = [[1, 4, 4, 2, 9], [1], [1, 7, 3], [1, 10, 10, 10]]


def padded(prompts):
  length = max(map(len, prompts))
  # The filler is a real id: the loop must mask by length, not by value.
  rows = [p + [5] * (length - len(p)) for p in prompts]
  return np.array(rows, np.int32), np.array([len(p) for p in prompts], np.int32)


def keys_for(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def prefilled(prompts=PROMPTS, keys_B=None, capacity=CAPACITY):
  keys_B = keys_for(len(prompts)) if keys_B is None else keys_B
  return loop.prefill(
    step,
    TABLE,
    empty(len(prompts)),
    *padded(prompts),
    keys_B,
    capacity=capacity,
  )


def rows_of(state):
  pairs = zip(np.asarray(state.ids_BN), np.asarray(state.length_B), strict=True)
  return [row[:length].tolist() for row, length in pairs]


GREEDY = chain.parse('greedy')
WARM = chain.parse('temperature(1.2)|top_p(0.95)')


def test_prefill_takes_the_logits_of_each_last_real_token():
  state = prefilled()
  np.testing.assert_array_equal(
    state.logits_BV, TABLE[[hash_of(p) for p in PROMPTS]]
  )
  np.testing.assert_array_equal(state.cache.length_B, [len(p) for p in PROMPTS])


def test_greedy_equals_a_python_loop_on_ragged_prompts():
  state = loop.decode(step, TABLE, prefilled(), GREEDY, num_steps=CAPACITY)
  assert rows_of(state) == [greedy_reference(p, CAPACITY) for p in PROMPTS]
  assert np.all(state.done_B)


def test_rows_stop_on_their_own_and_then_rest():
  expected = [greedy_reference(p, CAPACITY, (1, 6)) for p in PROMPTS]
  lengths = {len(row) for row in expected}
  assert len(lengths) > 2 and max(lengths) == CAPACITY > min(lengths)
  state = loop.decode(
    step, TABLE, prefilled(), GREEDY, num_steps=99, stop_ids=(1, 6)
  )
  assert rows_of(state) == expected
  state = jax.tree.map(np.asarray, state._replace(keys_B=None))
  assert np.all(state.done_B)
  for row, prompt, ids in zip(range(4), PROMPTS, expected, strict=True):
    assert not np.any(state.ids_BN[row, len(ids) :])
    assert state.cache.length_B[row] == len(prompt) + len(ids)
    assert state.cache.hash_B[row] == hash_of(prompt + ids)
    np.testing.assert_array_equal(
      state.logits_BV[row], TABLE[hash_of(prompt + ids)]
    )


def test_loop_ends_once_all_rows_are_done():
  expected = greedy_reference(PROMPTS[0], CAPACITY, (6,))
  assert 0 < len(expected) < CAPACITY
  state = loop.decode(
    step, TABLE, prefilled(PROMPTS[:1]), GREEDY, num_steps=99, stop_ids=(6,)
  )
  assert int(state.cache.calls) == 1 + len(expected)
  state = loop.decode(step, TABLE, state, GREEDY, num_steps=99, stop_ids=(6,))
  assert state.cache.calls == 1 + len(expected)
  assert rows_of(state) == [expected]


def test_chunks_change_nothing():
  whole = loop.decode(
    step, TABLE, prefilled(), WARM, num_steps=8, stop_ids=(6,)
  )
  state = prefilled()
  for num_steps in (3, 0, 1, 4):
    state = loop.decode(
      step, TABLE, state, WARM, num_steps=num_steps, stop_ids=(6,)
    )
  assert len({len(row) for row in rows_of(whole)}) > 1
  whole, state = (
    s._replace(keys_B=jax.random.key_data(s.keys_B)) for s in (whole, state)
  )
  jax.tree.map(np.testing.assert_array_equal, whole, state)


def test_row_does_not_depend_on_its_neighbours():
  keys_B = keys_for(4, seed=3)
  together = rows_of(
    loop.generate(
      step,
      TABLE,
      empty(4),
      *padded(PROMPTS),
      keys_B,
      WARM,
      num_tokens=CAPACITY,
    )
  )
  for i, prompt in enumerate(PROMPTS):
    # The prompt with the most padding, so that one program reads all.
    longest = prompt + [5] * (5 - len(prompt))
    alone = loop.prefill(
      step, TABLE, empty(1), np.array([longest], np.int32),
      np.array([len(prompt)], np.int32), keys_B[i : i + 1], capacity=CAPACITY,
    )  # fmt: skip
    alone = loop.decode(step, TABLE, alone, WARM, num_steps=CAPACITY)
    assert rows_of(alone) == [together[i]]


def test_same_prompts_with_different_keys_differ():
  state = prefilled([PROMPTS[0]] * 6)
  state = loop.decode(step, TABLE, state, WARM, num_steps=CAPACITY)
  assert len(set(map(tuple, rows_of(state)))) == 6


def test_pairs_follow_the_joint_law():
  count = 30_000
  state = loop.generate(
    step,
    TABLE,
    empty(count),
    *padded([[1, 4]] * count),
    keys_for(count),
    chain.Chain(),
    num_tokens=2,
  )
  law_VV = np.zeros((VOCABULARY, VOCABULARY))
  first_V = np.exp(TABLE[hash_of([1, 4])].astype(np.float64))
  for i in range(VOCABULARY):
    second_V = np.exp(TABLE[hash_of([1, 4, i])].astype(np.float64))
    law_VV[i] = first_V[i] / first_V.sum() * second_V / second_V.sum()
  codes_B = np.asarray(state.ids_BN) @ [VOCABULARY, 1]
  counts = np.bincount(codes_B, minlength=law_VV.size)
  rare = law_VV.ravel() * count < 5
  observed = [*counts[~rare], counts[rare].sum()]
  law = law_VV.ravel()
  expected = count * np.array([*law[~rare], law[rare].sum()])
  assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_one_compilation_for_all_knobs_and_step_counts():
  loop.decode.clear_cache()
  for text in ('temperature(0)|top_p(1)', 'temperature(0.7)|top_p(0.5)'):
    for num_steps in (1, 5):
      loop.decode(
        step, TABLE, prefilled(), chain.parse(text), num_steps=num_steps
      )
  state = prefilled()
  for _ in range(2):
    state = loop.decode(step, TABLE, state, WARM, num_steps=2)
  assert loop.decode._cache_size() == 1


def test_state_is_donated_but_keys_and_params_are_kept():
  keys_B = keys_for(4)
  table = jnp.asarray(TABLE)
  state = loop.prefill(
    step, table, empty(4), *padded(PROMPTS), keys_B, capacity=CAPACITY
  )
  hash_B, ids_BN = state.cache.hash_B, state.ids_BN
  loop.decode(step, table, state, WARM, num_steps=2)
  assert hash_B.is_deleted()
  assert ids_BN.is_deleted()
  assert not keys_B.is_deleted()
  assert not table.is_deleted()


@pytest.mark.parametrize('mask', [masks.Causal(window=6), masks.Lambda(2, 4)])
def test_cached_decoding_equals_the_full_forward(mask):
  module = lm.ByteLM(
    width=32,
    layers=2,
    heads=4,
    key_value_heads=2,
    hidden=48,
    masks=(mask, masks.Causal()),
    ngrams=ngrams.NgramEmbedding(sizes=(2, 3), rows=64),
  )
  params = small_lm.draw(module)

  def model_step(params, ids_BT, documents_BT, cache):
    return module.apply({'params': params}, ids_BT, documents_BT, cache)

  @jax.jit
  def full(params, ids_BT):
    return module.apply({'params': params}, ids_BT)[0]

  prompts = [[1, 80, 90, 100, 7], [1], [1, 200, 201]]
  num_tokens = 10
  state = loop.generate(
    model_step,
    params,
    module.init_cache(3, 5 + num_tokens),
    *padded(prompts),
    keys_for(3),
    GREEDY,
    num_tokens=num_tokens,
  )
  assert len({i for row in rows_of(state) for i in row}) > 8
  made = rows_of(state)
  ids_BT, lengths_B = padded(
    [p + m for p, m in zip(prompts, made, strict=True)]
  )
  predicted_BT = np.argmax(np.asarray(full(params, ids_BT)), axis=-1)
  for row, prompt in enumerate(prompts):
    span = slice(len(prompt) - 1, lengths_B[row] - 1)
    assert made[row] == predicted_BT[row, span].tolist()


class Held(NamedTuple):
  """The toy's cache, and rows whose logits come with a later step."""

  inner: Cache
  waiting_B: jax.Array


def test_a_row_that_waits_is_not_stopped_by_the_id_of_padding():
  """Every other token of a row is answered one step later."""

  def late(table, ids_BT, documents_BT, cache):
    logits_BTV, inner = step(table, ids_BT, documents_BT, cache.inner)
    real_B = documents_BT[:, -1] > 0
    logits_BTV = jnp.where(
      cache.waiting_B[:, None, None],
      table[inner.hash_B][:, None],
      logits_BTV,
    )
    waiting_B = real_B & (inner.length_B % 2 == 0)
    return logits_BTV, Held(inner, waiting_B)

  made = {}
  for stop_ids in ((), (0,)):
    state = loop.prefill(
      step, TABLE, empty(4), *padded(PROMPTS), keys_for(4), capacity=CAPACITY
    )
    state = state._replace(cache=Held(state.cache, jnp.zeros(4, bool)))
    state = loop.decode(
      late, TABLE, state, GREEDY, num_steps=CAPACITY, stop_ids=stop_ids
    )
    made[stop_ids] = rows_of(state)
  whole = [
    ids[: ids.index(0) + 1] if 0 in ids else ids for ids in made[()]
  ]
  assert max(map(len, whole)) > 2
  assert made[(0,)] == whole
