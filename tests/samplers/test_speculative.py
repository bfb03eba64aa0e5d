"""The law of speculative sampling is the target's, whatever drafts."""

import functools
import itertools

import jax
import numpy as np
import pytest
from scipy import special
from scipy import stats

from samplers import chain
from samplers import loop
from samplers import speculative
from tests.models import small_lm
from tests.samplers import test_loop as toy

DRAFT = (
  toy.TABLE + np.random.default_rng(1).normal(size=toy.TABLE.shape)
).astype(np.float32)
TARGET_MODEL = speculative.Model(toy.step, toy.TABLE)


def run(
  prompts,
  sampler,
  table=DRAFT,
  capacity=toy.CAPACITY,
  draft_tokens=3,
  stop_ids=(),
  keys_B=None,
  num_rounds=99,
):
  draft = speculative.Model(toy.step, table)
  count = len(prompts)
  keys_B = toy.keys_for(count) if keys_B is None else keys_B
  state = speculative.prefill(
    TARGET_MODEL,
    draft,
    (toy.empty(count), toy.empty(count)),
    (*toy.padded(prompts), keys_B),
    capacity=capacity,
    draft_tokens=draft_tokens,
    sampler=sampler,
  )
  return speculative.decode(
    TARGET_MODEL,
    draft,
    state,
    sampler,
    num_rounds=num_rounds,
    draft_tokens=draft_tokens,
    stop_ids=stop_ids,
  )


def test_one_token_has_exactly_the_law_of_the_target():
  """Every draft and a fine grid of uniform numbers, against p."""
  grid_N = (np.arange(4_000) + 0.5) / 4_000
  rng = np.random.default_rng(0)
  accept, residual = map(jax.jit, (speculative.accept, speculative.residual))
  laws = [rng.dirichlet(np.full(4, 0.6), 2) for _ in range(6)]
  one, half = np.array([0, 1.0, 0, 0]), np.array([0.5, 0.5, 0, 0])
  laws += [(one, half), (half, one), (one, one), (half[::-1], half)]
  for p_V, q_V in laws:
    p_V, q_V = p_V.astype(np.float32), q_V.astype(np.float32)
    found_V = np.zeros(4)
    for token in range(4):
      accepted_N = accept(
        np.tile(p_V, (len(grid_N), 1)),
        np.tile(q_V, (len(grid_N), 1)),
        np.full(len(grid_N), token),
        grid_N.astype(np.float32),
      )
      share = float(np.mean(np.asarray(accepted_N)))
      rest_V = np.asarray(residual(p_V[None], q_V[None]))[0]
      found_V += q_V[token] * (1 - share) * rest_V / rest_V.sum()
      found_V[token] += q_V[token] * share
    np.testing.assert_allclose(found_V, p_V, atol=5e-4)


@pytest.mark.parametrize(
  'draft_tokens, penalty',
  [
    pytest.param(1, 0.0, marks=pytest.mark.slow),
    (3, 0.0),
    pytest.param(3, 2.0, marks=pytest.mark.slow),
  ],
)
def test_pairs_within_a_text_follow_the_joint_law(draft_tokens, penalty):
  count, size = 8_000, toy.VOCABULARY
  rule = f'frequency({penalty})|' if penalty else ''
  sampler = chain.parse(rule + 'temperature(1.3)|top_k(4)')
  state = run([[1, 4]] * count, sampler, capacity=4, draft_tokens=draft_tokens)

  @functools.cache
  def law_after(ids):
    counts_V = np.bincount(ids[2:], minlength=size)
    logits_V = (toy.TABLE[toy.hash_of(ids)] - penalty * counts_V) / 1.3
    logits_V[np.argsort(logits_V)[:-4]] = -np.inf
    return special.softmax(logits_V.astype(np.float64))

  def law(ids):
    return law_after(tuple(ids))

  expected_VV = np.zeros((size, size))
  for first, second in itertools.product(range(size), repeat=2):
    before = law([1, 4])[first] * law([1, 4, first])[second]
    if before:
      third_V = law([1, 4, first, second])
      expected_VV[second] += before * third_V
  pairs_BN = np.asarray(state.target.ids_BN)[:, 1:3]
  counts = np.bincount(pairs_BN @ [size, 1], minlength=size**2)
  expected = expected_VV.ravel() * count
  assert counts[expected == 0].sum() == 0
  common = expected > 5
  found = [*counts[common], counts[~common].sum() + 1e-9]
  wanted = np.array([*expected[common], expected[~common].sum() + 1e-9])
  assert (
    stats.chisquare(found, wanted * sum(found) / wanted.sum()).pvalue > 1e-3
  )
  # A draft that is no help at all would make no test.
  share = state.accepted_B.sum() / state.drafted_B.sum()
  assert 0.2 < share < 0.9


@pytest.mark.parametrize('stop_ids', [(), (1, 6)])
@pytest.mark.parametrize(
  'draft_tokens', [pytest.param(1, marks=pytest.mark.slow), 4]
)
def test_greedy_is_plain_greedy(draft_tokens, stop_ids):
  state = run(
    toy.PROMPTS, toy.GREEDY, draft_tokens=draft_tokens, stop_ids=stop_ids
  )
  expected = [
    toy.greedy_reference(p, toy.CAPACITY, stop_ids) for p in toy.PROMPTS
  ]
  assert toy.rows_of(state.target) == expected
  assert np.all(state.target.done_B)
  # What follows was read into both caches, unless the row had ended.
  if not stop_ids:
    assert 0 < int(state.accepted_B.sum()) < int(state.drafted_B.sum())


def test_the_model_as_its_own_draft_is_always_right():
  state = run(toy.PROMPTS, toy.WARM, table=toy.TABLE, capacity=12)
  np.testing.assert_array_equal(state.accepted_B, state.drafted_B)
  assert state.target.cache.calls <= 1 + 3 * 3


def test_rules_that_remember_follow_what_was_kept():
  rules = 'repetition(1.7)|dry(0.8, allowed=1)|min_length(5, ids=1)'
  sampler = chain.parse(rules + '|temperature(0)')
  state = run(toy.PROMPTS, sampler, stop_ids=(1,))
  plain = loop.generate(
    toy.step,
    toy.TABLE,
    toy.empty(4),
    *toy.padded(toy.PROMPTS),
    toy.keys_for(4),
    sampler,
    num_tokens=toy.CAPACITY,
    stop_ids=(1,),
  )
  assert toy.rows_of(state.target) == toy.rows_of(plain)
  free = [toy.greedy_reference(p, toy.CAPACITY, (1,)) for p in toy.PROMPTS]
  assert toy.rows_of(plain) != free


def test_rows_and_rounds_do_not_depend_on_each_other():
  keys_B = toy.keys_for(4, seed=3)
  together = run(toy.PROMPTS, toy.WARM, keys_B=keys_B)
  keys = np.asarray(jax.random.key_data(keys_B))
  for i, prompt in enumerate(toy.PROMPTS):
    # Four of it are as good as one; beside the longest, no other program.
    prompts = [prompt] * 3 + toy.PROMPTS[:1]
    of_rows = jax.random.wrap_key_data(keys[[i, i, i, 0]])
    alone = run(prompts, toy.WARM, keys_B=of_rows)
    expected = toy.rows_of(together.target)[i]
    assert toy.rows_of(alone.target)[:3] == [expected] * 3
  assert len(set(map(tuple, toy.rows_of(together.target)))) == 4


def test_a_draft_without_a_law_costs_speed_only():
  expected = [toy.greedy_reference(p, toy.CAPACITY) for p in toy.PROMPTS]
  for value in (np.nan, -np.inf):
    broken = np.full_like(toy.TABLE, value)
    state = run(toy.PROMPTS, toy.GREEDY, table=broken)
    assert toy.rows_of(state.target) == expected


@pytest.mark.parametrize(
  'value, words',
  [(np.nan, 'are NaN'), (-np.inf, 'are all -inf'), (np.inf, 'reach inf')],
)
def test_a_row_without_a_law_fails_and_says_so(value, words):
  table = toy.TABLE.copy()
  prompt = toy.PROMPTS[0]
  made = toy.greedy_reference(prompt, 3)
  table[toy.hash_of(prompt + made)] = value
  target = speculative.Model(toy.step, table)
  state = speculative.prefill(
    target,
    target,
    (toy.empty(1), toy.empty(1)),
    (*toy.padded([prompt]), toy.keys_for(1)),
    capacity=9,
    draft_tokens=5,
  )
  state = speculative.decode(
    target, target, state, toy.GREEDY, num_rounds=9, draft_tokens=5
  )
  assert toy.rows_of(state.target) == [made]
  with pytest.raises(ValueError, match=f'row 0: .* 3 generated tokens {words}'):
    loop.check(state.target)


@pytest.mark.slow
def test_models_with_windows_and_n_grams_agree_with_plain_decoding():
  fields = small_lm.SIZES | small_lm.EXTRAS | {'layers': 1}
  model = small_lm.lm.ByteLM(**fields)  # Its window is five.
  params, others = (small_lm.draw(model, seed) for seed in (0, 1))

  def step(params, ids_BT, documents_BT, cache):
    return model.apply({'params': params}, ids_BT, documents_BT, cache)

  rows = (*toy.padded([[1, 80, 90, 100, 7], [1, 9]]), toy.keys_for(2))
  plain = loop.generate(
    step, params, model.init_cache(2, 30), *rows, toy.GREEDY, num_tokens=12
  )
  target, draft = (speculative.Model(step, p) for p in (params, others))
  state = speculative.prefill(
    target,
    draft,
    (model.init_cache(2, 30), model.init_cache(2, 30)),
    rows,
    capacity=12,
    draft_tokens=3,
  )
  state = speculative.decode(
    target, draft, state, toy.GREEDY, num_rounds=20, draft_tokens=3
  )
  np.testing.assert_array_equal(state.target.ids_BN, plain.ids_BN)


def test_bad_input_is_named():
  with pytest.raises(ValueError, match='vocabulary of 7 ids and the model one'):
    run([[1]], toy.GREEDY, table=toy.TABLE[:, :7])
  state = speculative.prefill(
    TARGET_MODEL,
    TARGET_MODEL,
    (toy.empty(1), toy.empty(1)),
    (*toy.padded([[1]]), toy.keys_for(1)),
    capacity=toy.CAPACITY,
    draft_tokens=4,
  )
  with pytest.raises(ValueError, match=r'Repetition of .* must remember and'):
    speculative.decode(
      TARGET_MODEL,
      TARGET_MODEL,
      state,
      chain.parse('repetition(1.2)'),
      num_rounds=1,
    )
  with pytest.raises(ValueError, match='draft_tokens=0 must be at least 1'):
    run([[1]], toy.GREEDY, draft_tokens=0)
