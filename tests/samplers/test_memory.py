"""Rules that remember: against brute force, and through the decode loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process

from samplers import chain
from samplers import constraints
from samplers import dry
from samplers import history
from samplers import loop
from samplers import mirostat
from samplers import penalties
from samplers import truncation
from samplers import xtc

V = 12
CAPACITY = 20


@jax.jit
def run(rule, prompt_BT, lengths_B, drawn_BN, actives_BN, logits_BV):
  """The rule's logits after it has seen a prompt and then these draws."""
  capacity = drawn_BN.shape[1]
  memory = rule.init(history.Prompt(prompt_BT, lengths_B, capacity, V))
  for n in range(capacity):
    drawn = history.Drawn(drawn_BN[:, n], actives_BN[:, n], logits_BV)
    memory = rule.update(memory, drawn)
  return rule(logits_BV, memory)


def case(seed=0, rows=4, prompt=14, draws=9, law=(0.25, 0.25, 0.25, 0.25)):
  """Ragged prompts and draws over few ids, some rows inactive for a while."""
  rng = np.random.default_rng(seed)
  prompt_BT = rng.choice(len(law), (rows, prompt), p=law).astype(np.int32)
  lengths_B = rng.integers(1, prompt + 1, rows).astype(np.int32)
  drawn_BN = rng.choice(len(law), (rows, draws), p=law).astype(np.int32)
  actives_BN = rng.random((rows, draws)) < 0.8
  logits_BV = rng.normal(size=(rows, V)).astype(np.float32) * 2
  logits_BV[:, 2] = -np.inf
  return prompt_BT, lengths_B, drawn_BN, actives_BN, logits_BV


def texts(prompt_BT, lengths_B, drawn_BN, actives_BN):
  """The prompt and the draws of each row, as lists."""
  return [
    (prompt[:length].tolist(), drawn[active].tolist())
    for prompt, length, drawn, active in zip(
      prompt_BT, lengths_B, drawn_BN, actives_BN, strict=True
    )
  ]


@pytest.mark.parametrize('window', [0, 1, 5, 99])
@pytest.mark.parametrize('prompt', [False, True])
def test_penalties_count_what_came(window, prompt):
  *past, logits_BV = case()
  amount = 0.7
  rules = (
    penalties.Repetition(1.5, window, prompt),
    penalties.Frequency(amount, window, prompt),
    penalties.Presence(amount, window, prompt),
  )
  repeated_BV, counted_BV, present_BV = (
    np.asarray(run(rule, *past, logits_BV)) for rule in rules
  )
  for row, (start, made) in enumerate(texts(*past)):
    whole = [*start, *made][-window if window else 0 :]
    whole = whole if prompt else whole[max(0, len(whole) - len(made)) :]
    for token in range(V):
      count, logit = whole.count(token), logits_BV[row, token]
      expected = logit / 1.5 if logit > 0 else logit * 1.5
      np.testing.assert_allclose(
        [
          repeated_BV[row, token],
          counted_BV[row, token],
          present_BV[row, token],
        ],
        [
          expected if count else logit,
          logit - amount * count,
          logit - amount * bool(count),
        ],
        rtol=1e-6,
      )


def test_repetition_is_that_of_transformers():
  *past, logits_BV = case(1)
  past[1][:], past[3][:] = past[0].shape[1], True
  processor = logits_process.RepetitionPenaltyLogitsProcessor(1.3)
  ids = torch.tensor(np.concatenate([past[0], past[2]], axis=1)).long()
  expected_BV = processor(ids, torch.tensor(logits_BV)).numpy()
  result_BV = run(penalties.Repetition(1.3), *past, logits_BV)
  np.testing.assert_allclose(result_BV, expected_BV, rtol=1e-6)


NEUTRAL = (
  penalties.Repetition(1.0),
  penalties.Frequency(0.0),
  penalties.Presence(0.0),
  dry.Dry(0.0),
  mirostat.Mirostat(0.0),
  constraints.MinLength(0, (1, 3)),
  constraints.MaxLength(0, 3),
)


@pytest.mark.parametrize('rule', NEUTRAL, ids=lambda r: type(r).__name__)
def test_neutral_value_is_a_bit_exact_no_op(rule):
  *past, logits_BV = case(2)
  logits_BV[0, 0], logits_BV[1, 1], logits_BV[2, 3] = -0.0, 3e38, -3e38
  result_BV = np.asarray(run(rule, *past, logits_BV))
  np.testing.assert_array_equal(
    result_BV.view(np.uint32), logits_BV.view(np.uint32)
  )


def test_penalties_leave_finite_logits_finite():
  *past, logits_BV = case(2)
  logits_BV = np.full_like(logits_BV, -3e38)
  for rule in (penalties.Repetition(9.0), dry.Dry(1e30, 1e9, 1)):
    assert np.isfinite(run(rule, *past, logits_BV)).all()


def longest_repeats(text, window, breakers):
  """For each id, the longest end of the text that it followed before."""
  text = text[-window:] if window else text
  found = {}
  for place in range(1, len(text)):
    length = 0
    while (
      length < place
      and text[place - 1 - length] == text[len(text) - 1 - length]
      and text[len(text) - 1 - length] not in breakers
    ):
      length += 1
    found[text[place]] = max(found.get(text[place], 0), length)
  return found


@pytest.mark.parametrize('window', [0, 9])
@pytest.mark.parametrize('breakers', [(), (1,), (2, 5)])
@pytest.mark.parametrize('allowed', [1, 3])
def test_dry_equals_brute_force(window, breakers, allowed):
  punished = 0
  for seed in range(8):
    *past, logits_BV = case(seed, prompt=20, law=(0.7, 0.2, 0.1))
    rule = dry.Dry(0.8, 1.75, allowed, window, breakers)
    result_BV = np.asarray(run(rule, *past, logits_BV))
    for row, (start, made) in enumerate(texts(*past)):
      expected_V = logits_BV[row].astype(np.float64)
      for token, length in longest_repeats(
        [*start, *made], window, breakers
      ).items():
        if length >= allowed and token not in breakers:
          expected_V[token] -= 0.8 * 1.75 ** (length - allowed)
          punished += 1
      np.testing.assert_allclose(result_BV[row], expected_V, rtol=1e-5)
  assert punished > 5


def test_dry_of_long_repeats_is_capped_and_still_off_at_zero():
  # 1.75 to the power of 159 is more than float32 holds.
  prompt_BT = np.full((3, 400), 3, np.int32)
  multipliers_B = np.array([0.0, 1e-37, 0.8], np.float32)
  logits_BV = np.tile(np.arange(V, dtype=np.float32), (3, 1))
  logits_BV[:, 0], logits_BV[:, 5] = -0.0, -np.inf
  none_BN = np.zeros((3, 1), np.int32)
  result_BV = np.asarray(
    run(
      dry.Dry(multipliers_B),
      *(prompt_BT, np.full(3, 400, np.int32), none_BN, none_BN > 0),
      logits_BV,
    )
  )
  expected_BV = logits_BV.copy()
  most = np.finfo(np.float32).max
  expected_BV[:, 3] -= np.minimum(multipliers_B * most, most)
  np.testing.assert_array_equal(
    result_BV[0].view(np.uint32), logits_BV[0].view(np.uint32)
  )
  np.testing.assert_allclose(result_BV, expected_BV, rtol=1e-6)


def test_mirostat_holds_the_surprise_at_its_target():
  count, steps = 64, 400
  rng = np.random.default_rng(0)
  logits_BV = np.tile(rng.normal(size=(1, 200)) * 2.5, (count, 1))
  logits_BV = jnp.asarray(logits_BV, jnp.float32)
  log_p_V = np.asarray(jax.nn.log_softmax(logits_BV[0])) / np.log(2)
  targets_B = np.tile(np.array([1.5, 2.5], np.float32), count // 2)
  sampler = chain.Chain((mirostat.Mirostat(targets_B, 0.1),))
  lengths_B = jnp.ones(count, jnp.int32)
  prompt = history.Prompt(lengths_B[:, None], lengths_B, steps, 200)

  @jax.jit
  def draw(sampler):
    def step(memory, key):
      keys_B = jax.random.split(key, count)
      is_active_B = jnp.ones(count, bool)
      token_B, after = sampler.step(keys_B, logits_BV, memory, is_active_B)
      return after, (token_B, memory[0], after[0])

    keys_N = jax.random.split(jax.random.key(0), steps)
    return jax.lax.scan(step, sampler.init(prompt), keys_N)[1]

  token_NB, before_NB, after_NB = map(np.asarray, draw(sampler))
  np.testing.assert_allclose(before_NB[0], 2 * targets_B)
  surprise_NB = np.zeros(token_NB.shape)
  for n, b in np.ndindex(token_NB.shape):
    kept_V = -log_p_V <= before_NB[n, b]
    kept_V |= log_p_V == log_p_V.max()
    assert kept_V[token_NB[n, b]]
    # Renormalised over what was kept.
    surprise_NB[n, b] = np.log2(np.exp2(log_p_V[kept_V]).sum())
    surprise_NB[n, b] -= log_p_V[token_NB[n, b]]
  np.testing.assert_allclose(
    after_NB, before_NB - 0.1 * (surprise_NB - targets_B), atol=1e-4
  )
  mean_B = surprise_NB[50:].mean(axis=0)
  np.testing.assert_allclose(mean_B, targets_B, atol=0.1)


def test_lengths_are_counted_without_the_prompt():
  *past, logits_BV = case(3)
  made_B = past[3].sum(axis=1)
  least = constraints.MinLength(made_B + np.array([0, 1, 0, 1]), (1, 2))
  short_BV = np.asarray(run(least, *past, logits_BV))[:, 1] == -np.inf
  assert short_BV.tolist() == [False, True, False, True]
  most = constraints.MaxLength(made_B + np.array([1, 2, 0, 3]), 5)
  forced_BV = np.asarray(run(most, *past, logits_BV)) > -np.inf
  assert forced_BV.sum(axis=1).tolist() == [1, V - 1, 1, V - 1]
  assert forced_BV[[0, 2], 5].all()


# Through the loop.

TABLE = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32)


def step(table, ids_BT, documents_BT, cache):
  """Logits that depend on the last token alone."""
  return table[ids_BT], cache + (documents_BT > 0).sum(axis=1)


def everything(scale=1.0):
  """A chain of every rule that remembers, or takes chances."""
  return chain.Chain(
    (
      constraints.MinLength(int(3 * scale), (0,)),
      penalties.Repetition(1.2 * scale),
      penalties.Frequency(0.4 * scale, window=6),
      penalties.Presence(0.2 * scale, prompt=scale > 1),
      dry.Dry(0.8 * scale, allowed=int(scale)),
      truncation.Temperature(1.3 * scale),
      xtc.Xtc(0.5 / scale, 0.15 / scale),
      mirostat.Mirostat(2.5 * scale),
    )
  )


PROMPTS = [[1, 4, 4, 2], [3], [5, 6, 5, 6, 5], [7, 7]]


def prefill(prompts, sampler, keys_B, table=TABLE):
  ids_BT = np.full((len(prompts), 5), 9, np.int32)
  for row, prompt in enumerate(prompts):
    ids_BT[row, : len(prompt)] = prompt
  lengths_B = np.array([len(p) for p in prompts], np.int32)
  return loop.prefill(
    step,
    table,
    jnp.zeros(len(prompts), jnp.int32),
    ids_BT,
    lengths_B,
    keys_B,
    capacity=CAPACITY,
    sampler=sampler,
  )


decode = functools.partial(loop.decode, step, TABLE, stop_ids=(0,))


def test_memory_does_not_depend_on_chunks_or_neighbours():
  keys_B = jax.random.split(jax.random.key(5), 4)
  sampler = everything()
  whole = decode(prefill(PROMPTS, sampler, keys_B), sampler, num_steps=CAPACITY)
  chunked = prefill(PROMPTS, sampler, keys_B)
  for num_steps in (1, 7, 0, 4, 99):
    chunked = decode(chunked, sampler, num_steps=num_steps)
  np.testing.assert_array_equal(whole.ids_BN, chunked.ids_BN)
  jax.tree.map(np.testing.assert_array_equal, whole.memory, chunked.memory)
  assert len(set(np.asarray(whole.length_B).tolist())) > 1
  for row, prompt in enumerate(PROMPTS):
    alone = prefill([prompt], sampler, keys_B[row : row + 1])
    alone = decode(alone, sampler, num_steps=CAPACITY)
    np.testing.assert_array_equal(alone.ids_BN[0], whole.ids_BN[row])


def test_memory_holds_the_text_of_every_row():
  sampler = chain.Chain((penalties.Presence(0.5), truncation.Temperature(2.0)))
  keys_B = jax.random.split(jax.random.key(6), 4)
  state = decode(prefill(PROMPTS, sampler, keys_B), sampler, num_steps=CAPACITY)
  (past,) = state.memory
  for row, prompt in enumerate(PROMPTS):
    made = np.asarray(state.ids_BN[row, : state.length_B[row]]).tolist()
    text = np.asarray(past.ids_BL[row, : past.length_B[row]]).tolist()
    assert text == prompt + made


def test_penalty_and_lengths_shape_the_text():
  keys_B = jax.random.split(jax.random.key(0), 4)
  greedy = truncation.Temperature(0.0)
  forbid = chain.Chain((penalties.Presence(99.0), greedy))
  state = decode(prefill(PROMPTS, forbid, keys_B), forbid, num_steps=CAPACITY)
  for row in range(4):
    made = np.asarray(state.ids_BN[row, : state.length_B[row]])
    assert len(set(made.tolist())) == len(made)
  exact = chain.Chain(
    (
      constraints.MinLength(np.array([2, 4, 6, 0]), (0,)),
      constraints.MaxLength(np.array([3, 5, 7, 1]), 0),
      greedy,
    )
  )
  state = decode(prefill(PROMPTS, exact, keys_B), exact, num_steps=CAPACITY)
  assert state.length_B.tolist() == [3, 5, 7, 1]


def test_one_compilation_for_all_values_of_all_knobs():
  loop.decode.clear_cache()
  keys_B = jax.random.split(jax.random.key(0), 4)
  for scale in (1.0, 2.0):
    sampler = everything(scale)
    decode(prefill(PROMPTS, sampler, keys_B), sampler, num_steps=2)
  assert loop.decode._cache_size() == 1


def test_sampler_that_remembers_must_be_given_to_prefill():
  sampler = everything()
  keys_B = jax.random.split(jax.random.key(0), 4)
  with pytest.raises(ValueError, match=r'pass the sampler to .*prefill'):
    decode(prefill(PROMPTS, None, keys_B), sampler, num_steps=2)
  with pytest.raises(ValueError, match=r'Repetition.* must remember'):
    chain.parse('repetition(1.2)')(keys_B, jnp.zeros((4, V)))


def test_row_without_a_law_is_done_and_named():
  table = TABLE.copy()
  table[4], table[5], table[6] = np.nan, -np.inf, np.inf
  keys_B = jax.random.split(jax.random.key(0), 4)
  greedy = chain.parse('greedy')
  prompts = [[1], [2, 4], [5], [6]]
  table[:4, 4:7] = -9  # from the other rows these are not reached
  table[7:, 4:7] = -9
  state = prefill(prompts, greedy, keys_B, table)
  state = loop.decode(step, table, state, greedy, num_steps=CAPACITY)
  assert state.failed_B.tolist() == [False, True, True, True]
  assert state.length_B.tolist() == [CAPACITY, 0, 0, 0]
  assert np.all(state.done_B)
  for row, words in ((1, 'are NaN'), (2, 'are all -inf'), (3, 'reach inf')):
    alone = state._replace(failed_B=np.arange(4) == row)
    with pytest.raises(ValueError, match=f'row {row}: .* 0 .*{words}'):
      loop.check(alone)
  loop.check(state._replace(failed_B=np.zeros(4, bool)))
