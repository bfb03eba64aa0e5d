"""Contrastive search against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from models import forward
from samplers import contrastive
from samplers import loop
from samplers import rows
from tests.models import small_lm
from tests.samplers import test_loop as toy

HIDDEN = np.random.default_rng(2).normal(size=(toy.STATES, 6)) + 0.5
HIDDEN = HIDDEN.astype(np.float32)
AXES = rows.cache_axes(toy.empty)


def step(tables, ids_BT, documents_BT, cache):
  """The toy's logits, and for hidden states rows of the other table."""
  table = jnp.concatenate(tables, axis=1)
  both, cache = toy.step(table, ids_BT, documents_BT, cache)
  size = tables[0].shape[1]
  return (both[..., :size], jnp.nan_to_num(both[..., size:])), cache


def search(
  prompts, alpha, candidates, stop_ids=(), chunks=(99,), table=toy.TABLE
):
  tables = table, HIDDEN
  state = contrastive.prefill(
    step,
    tables,
    toy.empty(len(prompts)),
    *toy.padded(prompts),
    capacity=toy.CAPACITY,
  )
  for num_steps in chunks:
    state = contrastive.decode(
      step,
      tables,
      state,
      alpha,
      axes=AXES,
      candidates=candidates,
      num_steps=num_steps,
      stop_ids=stop_ids,
    )
  return state


def reference(prompt, alpha, candidates, stop_ids, table=toy.TABLE):
  ids = list(prompt)
  unit = HIDDEN / np.linalg.norm(HIDDEN, axis=1, keepdims=True)
  while len(ids) < len(prompt) + toy.CAPACITY:
    logits_V = table[toy.hash_of(ids)].astype(np.float64)
    p_V = special.softmax(logits_V)
    past = [unit[toy.hash_of(ids[: n + 1])] for n in range(len(ids))]

    def score(token, p_V=p_V, past=past):
      near = max(unit[toy.hash_of([*ids, token])] @ h for h in past)
      return (1 - alpha) * p_V[token] - alpha * near

    best = [n for n in np.argsort(-p_V)[:candidates] if logits_V[n] > -np.inf]
    ids.append(int(max(best, key=score)))
    if ids[-1] in stop_ids:
      break
  return ids[len(prompt) :]


@pytest.mark.parametrize(
  'alpha, chunks', [(0.0, (99,)), (0.6, (99,)), (0.6, (2, 1, 99))]
)
def test_search_is_that_of_a_plain_loop(alpha, chunks):
  stop_ids = (1, 6)
  state = search(toy.PROMPTS, alpha, 4, stop_ids, chunks)
  expected = [reference(p, alpha, 4, stop_ids) for p in toy.PROMPTS]
  assert toy.rows_of(state) == expected
  greedy = [
    toy.greedy_reference(p, toy.CAPACITY, stop_ids) for p in toy.PROMPTS
  ]
  assert (expected == greedy) == (alpha == 0)


def test_hidden_states_are_those_that_the_head_reads():
  model = small_lm.lm.ByteLM(**small_lm.SIZES)
  params = small_lm.draw(model)
  ids_BT = small_lm.ids(2, 5)
  (logits_BTV, hidden_BTD), cache = jax.jit(forward.hidden_step(model))(
    params, ids_BT, jnp.ones_like(ids_BT), model.init_cache(2, 8)
  )
  expected, _ = small_lm.step(
    model, params, ids_BT, jnp.ones_like(ids_BT), model.init_cache(2, 8)
  )
  np.testing.assert_allclose(logits_BTV, expected, atol=1e-5)
  np.testing.assert_allclose(
    hidden_BTD @ params['head']['kernel'], expected, atol=1e-4
  )
  np.testing.assert_array_equal(cache.length_B, 5)


@pytest.mark.parametrize('candidates', [4, 99])
def test_impossible_tokens_are_never_taken(candidates):
  # Mostly fewer than four are possible.
  rng = np.random.default_rng(3)
  table = np.where(rng.random(toy.TABLE.shape) < 0.8, -np.inf, toy.TABLE)
  table = table.astype(np.float32)
  table[:, 5] = toy.TABLE[:, 5]
  state = search(toy.PROMPTS, 1.0, candidates, table=table)
  expected = [reference(p, 1.0, candidates, (), table) for p in toy.PROMPTS]
  assert toy.rows_of(state) == expected


@pytest.mark.parametrize(
  'value, words',
  [(np.nan, 'are NaN'), (-np.inf, 'are all -inf'), (np.inf, 'reach inf')],
)
def test_a_row_without_a_law_fails_and_says_so(value, words):
  table = toy.TABLE.copy()
  made = toy.greedy_reference(toy.PROMPTS[0], 3)
  table[toy.hash_of(toy.PROMPTS[0] + made)] = value
  state = search(toy.PROMPTS[:1], 0.0, 4, table=table)
  assert toy.rows_of(state) == [made]
  with pytest.raises(ValueError, match=f'row 0: .* 3 generated tokens {words}'):
    loop.check(state)


@pytest.mark.parametrize(
  'alpha, candidates, words',
  [(1.5, 4, r'alpha=1.5 must lie in \[0, 1\]'), (0.5, 0, 'candidates=0 must')],
)
def test_bad_input_is_named(alpha, candidates, words):
  with pytest.raises(ValueError, match=words):
    contrastive.check(alpha, candidates)
