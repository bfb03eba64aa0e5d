"""Superposed decoding against a plain loop over drafts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from samplers import loop
from samplers import ngram_tables
from samplers import superposed
from tests.samplers import test_loop as toy

V, D = 9, 5
rng = np.random.default_rng(0)
EMBED = rng.normal(size=(V, D)).astype(np.float32)
HEAD = rng.normal(size=(D, V)).astype(np.float32)
PARAMS = jnp.asarray(EMBED), jnp.asarray(HEAD)
CORPUS = [rng.integers(1, V, 400)]
STORE = ngram_tables.build(CORPUS)
EMPTY = ngram_tables.build([np.array([99, 98])])
PROMPTS = [[1, 4, 4, 2], [3]]


class Cache(NamedTuple):
  """A leaky sum of embeddings."""

  sum_BD: jax.Array


def add(params, cache, x_BD):
  sum_BD = 0.5 * cache.sum_BD + x_BD
  return jnp.tanh(sum_BD) @ params[1] * 2, Cache(sum_BD)


def step(params, ids_BT, documents_BT, cache):
  logits = []
  for place in range(ids_BT.shape[1]):
    logits_BV, new = add(params, cache, params[0][ids_BT[:, place]])
    real_B1 = documents_BT[:, place, None] > 0
    cache = Cache(jnp.where(real_B1, new.sum_BD, cache.sum_BD))
    logits.append(logits_BV)
  return jnp.stack(logits, axis=1), cache


def mix(params, recent_BMC, ids_BM, weights_BM, cache):
  assert recent_BMC.shape[2] == 2
  mean_BD = jnp.einsum('BM,BMD->BD', weights_BM, params[0][ids_BM])
  return add(params, cache, mean_BD)


MIXER = superposed.Mixer(2, mix)


def search(
  rule, store=STORE, num_tokens=6, stop_ids=(), step=step, mixer=MIXER
):
  ids_BT, lengths_B = toy.padded(PROMPTS)
  state = loop.prefill(
    step,
    PARAMS,
    Cache(jnp.zeros((2, D))),
    ids_BT,
    lengths_B,
    toy.keys_for(2),
    capacity=num_tokens,
  )
  return superposed.search(
    step,
    mixer,
    PARAMS,
    state,
    (jnp.asarray(ids_BT), jnp.asarray(lengths_B)),
    store,
    rule,
    num_tokens=num_tokens,
    stop_ids=stop_ids,
  )


def texts(found, row):
  rows = zip(found.ids_BMN[row], found.length_BM[row], strict=True)
  return [np.asarray(ids)[:length].tolist() for ids, length in rows]


def read(sum_D, x_D):
  sum_D = 0.5 * sum_D + x_D
  return sum_D, np.tanh(sum_D) @ HEAD * 2


def shares(context, weights):
  """Of the n-grams, for every id, by counting."""
  ids, total_V = CORPUS[0].tolist(), np.zeros(V)
  for order, weight in zip(ngram_tables.ORDERS, weights, strict=True):
    wanted = context[len(context) - order + 1 :]
    after = [
      ids[i + order - 1]
      for i in range(len(ids) - order + 1)
      if ids[i : i + order - 1] == wanted
    ]
    if len(wanted) == order - 1 and after:
      total_V += weight * np.bincount(after, minlength=V) / len(after)
  return total_V


def reference(prompt, rule, num_tokens, stop_ids):
  sum_D = np.zeros(D)
  for token in prompt:
    sum_D, logits_V = read(sum_D, EMBED[token].astype(np.float64))
  alive, finished = [([], 0.0)], []
  for _ in range(num_tokens):
    count = rule.candidates or 3 * rule.drafts
    best = np.argsort(-logits_V)[:count]
    log_p = special.log_softmax(logits_V[best] / rule.temperature)
    options = []
    for ids, total in alive:
      share_V = shares([*prompt, *ids], rule.weights)[best]
      for token, own, share in zip(best, log_p, share_V, strict=True):
        score = (1 - rule.alpha) * own
        if share_V.any():
          score += rule.alpha * np.log(share) if share else -np.inf
        else:
          score -= 200
        options.append(([*ids, int(token)], total + score))
    options.sort(key=lambda option: -option[1])
    options = options[: rule.drafts * (1 + max(len(stop_ids), 1))]
    finished += [
      (total / len(ids), ids) for ids, total in options if ids[-1] in stop_ids
    ]
    finished = sorted(finished, reverse=True)[: rule.drafts]
    alive = [o for o in options if o[0][-1] not in stop_ids][: rule.drafts]
    g = special.softmax([total for _, total in alive])
    mean_D = sum(
      x * EMBED[ids[-1]].astype(np.float64)
      for x, (ids, _) in zip(g, alive, strict=True)
    )
    sum_D, logits_V = read(sum_D, mean_D)
  finished += [(total / num_tokens, ids) for ids, total in alive]
  return sorted(finished, reverse=True)[: 2 * rule.drafts]


@pytest.mark.parametrize('stop_ids', [(), (5,)])
def test_drafts_are_those_of_a_plain_loop(stop_ids):
  rule = superposed.Superposed(drafts=3, alpha=0.4, temperature=0.7)
  found = search(rule, stop_ids=stop_ids)
  for row, prompt in enumerate(PROMPTS):
    expected = reference(prompt, rule, 6, stop_ids)
    expected = [pair for pair in expected if np.isfinite(pair[0])]
    count = len(expected)
    assert count >= 3
    np.testing.assert_allclose(
      found.score_BM[row, :count], [x for x, _ in expected], rtol=1e-4
    )
    assert texts(found, row)[:count] == [ids for _, ids in expected]


@pytest.mark.parametrize('reset', [None, 2])
def test_one_draft_without_n_grams_is_greedy(reset):
  rule = superposed.Superposed(
    drafts=1, alpha=0.0, temperature=1.0, reset=reset
  )
  found = search(rule, store=EMPTY)
  for row, prompt in enumerate(PROMPTS):
    ids, sum_D = list(prompt), np.zeros(D)
    for token in prompt:
      sum_D, logits_V = read(sum_D, EMBED[token])
    for _ in range(6):
      ids.append(int(np.argmax(logits_V)))
      sum_D, logits_V = read(sum_D, EMBED[ids[-1]])
    assert texts(found, row)[0] == ids[len(prompt) :]


def test_after_a_reset_all_drafts_begin_alike():
  fields = {'drafts': 8, 'alpha': 0.0, 'temperature': 20.0}
  reset = search(superposed.Superposed(reset=5, **fields))
  free = search(superposed.Superposed(**fields))
  for row in range(2):
    alive, others = (texts(found, row)[:8] for found in (reset, free))
    assert len({tuple(ids) for ids in alive}) == 8
    assert len({tuple(ids[:5]) for ids in alive}) == 1
    assert len({tuple(ids[:5]) for ids in others}) > 1


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'drafts': 0}, 'drafts=0 must be at least 1'),
    ({'drafts': 3, 'candidates': 2}, 'candidates=2 no fewer'),
    ({'alpha': 1.0}, r'alpha=1.0 must lie in \[0, 1\)'),
    ({'temperature': 0.0}, 'temperature=0.0 be above 0'),
    ({'reset': 0}, 'reset=0 must be at least 1'),
    ({'weights': (0.5,)}, '1 weights for 5 orders'),
    ({'weights': (0.5, 0, 0, 0, np.nan)}, 'weights=.* must be finite numbers'),
    ({'candidates': 0}, 'candidates=0 no fewer'),
    ({'temperature': 1e-39}, 'temperature=1e-39 be above 0'),
    ({'temperature': np.inf}, 'temperature=inf be above 0 and finite'),
  ],
)
def test_bad_input_is_named(fields, words):
  with pytest.raises(ValueError, match=words):
    superposed.Superposed(**fields)


@pytest.mark.parametrize('reset', [None, 2])
@pytest.mark.parametrize('place', [0, 3])
@pytest.mark.parametrize(
  'value, words', [(np.nan, 'are NaN'), (-np.inf, 'are all -inf')]
)
def test_logits_that_are_no_law_are_named(reset, place, value, words):
  """Of row 1, after so many tokens, whichever way they were read."""

  def spoil(logits_BV, seen_B):
    is_bad_B = (jnp.arange(2) == 1) & (seen_B == place)
    return jnp.where(is_bad_B[:, None], value, logits_BV)

  def counting(params, ids_BT, documents_BT, cache):
    inner, seen_B = cache
    logits_BTV, inner = step(params, ids_BT, documents_BT, inner)
    # The prompts are not counted.
    more_B = ids_BT.shape[1] if ids_BT.shape[1] < 4 else 0
    seen_B += more_B
    logits = [spoil(logits_BTV[:, t], seen_B) for t in range(ids_BT.shape[1])]
    return jnp.stack(logits, axis=1), (inner, seen_B)

  def counting_mix(params, recent_BMC, ids_BM, weights_BM, cache):
    inner, seen_B = cache
    logits_BV, inner = mix(params, recent_BMC, ids_BM, weights_BM, inner)
    return spoil(logits_BV, seen_B + 1), (inner, seen_B + 1)

  ids_BT, lengths_B = toy.padded(PROMPTS)
  state = loop.prefill(
    counting, PARAMS, (Cache(jnp.zeros((2, D))), jnp.zeros(2, int)), ids_BT,
    lengths_B, toy.keys_for(2), capacity=6,
  )  # fmt: skip
  with pytest.raises(
    ValueError, match=f'row 1: the logits after {place} .* {words}'
  ):
    superposed.search(
      counting,
      superposed.Mixer(2, counting_mix),
      PARAMS,
      state,
      (jnp.asarray(ids_BT), jnp.asarray(lengths_B)),
      STORE,
      superposed.Superposed(temperature=1.0, reset=reset),
      num_tokens=6,
    )


def test_no_temperature_overflows():
  found = search(superposed.Superposed(temperature=1e-37, alpha=0.0))
  assert np.isfinite(found.score_BM[:, 0]).all()
  assert not np.isnan(found.score_BM).any()


@pytest.mark.parametrize('has_ends', [True, False])
def test_short_documents_make_drafts_end(has_ends):
  """Without the id that ends them known n-grams go on for ever."""
  stop = 7
  corpus = [np.array([1, 4, 4, 2, 5, 6, 5, 6]), np.array([3, 8, 6, 8, 6])]
  if has_ends:
    corpus = [np.append(ids, stop) for ids in corpus]
  rule = superposed.Superposed(drafts=2, temperature=5.0, candidates=V)
  found = search(rule, ngram_tables.build(corpus), 8, stop_ids=(stop,))
  for row in range(2):
    is_text = np.isfinite(found.score_BM[row])
    named = zip(texts(found, row), is_text, strict=True)
    made = [ids for ids, is_one in named if is_one]
    assert made
    assert all(stop not in ids[:-1] for ids in made)
    assert (made[0][-1] == stop) == has_ends
    assert has_ends or all(stop not in ids for ids in made)
