"""Nearest-neighbour decoding against a plain loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from samplers import bat
from samplers import chain
from samplers import constraints
from samplers import dry
from samplers import loop
from samplers import mirostat
from samplers import nearest
from samplers import nest
from samplers import passages
from samplers import penalties
from samplers import truncation
from tests.samplers import nest_reference as toys
from tests.samplers import test_loop as toy

PROMPTS = [[1, 4, 4, 2], [3], [5, 5, 2]]


def sampler(temperature, denied=-1):
  """All of one structure, for which one program is enough."""
  ids = jnp.array([denied])
  rules = truncation.Temperature(temperature), truncation.TopP(0.9)
  return chain.Chain((constraints.Deny(ids), *rules))


GREEDY, WARM = sampler(0.0), sampler(1.1)


def plain_step(*args):
  (logits_BTV, _), cache = toys.step(*args)
  return logits_BTV, cache


def run(
  rule=toys.RULE, sampler=GREEDY, stop=-1, order=(0, 1, 2), params=toys.PARAMS
):
  order = list(order)
  keys_B = toy.keys_for(3)[jnp.asarray(order)]
  state, query_BD, _ = nest.prefill(
    toys.step,
    params,
    toys.Cache(jnp.zeros((3, toys.D))),
    *toy.padded([PROMPTS[i] for i in order]),
    keys_B,
    capacity=toys.CAPACITY,
    recent=2,
    sampler=sampler,
  )
  loaded = toys.load([toys.CHOSEN[i] for i in order])
  state = nest.begin(state, query_BD, loaded)
  return nest.decode(
    toys.step,
    params,
    state,
    loaded,
    sampler,
    rule,
    num_rounds=99,
    stop_ids=(stop,),
  )


def made(state):
  """Ids and where they are from, of every row."""
  length_B = np.asarray(state.target.length_B)
  parts = state.target.ids_BN, state.document_BN, state.offset_BN
  return [
    [np.asarray(x)[row, :length].tolist() for x in parts]
    for row, length in enumerate(length_B)
  ]


@pytest.mark.parametrize(
  'sampler, stop', [(GREEDY, -1), (WARM, -1), (WARM, toys.STOP)]
)
def test_tokens_and_sources_are_those_of_a_plain_loop(sampler, stop):
  state = run(sampler=sampler, stop=stop)
  keys_B, seen = toy.keys_for(3), set()
  for row, (ids, documents, offsets) in enumerate(made(state)):
    expected, sources, events = toys.reference(
      PROMPTS[row],
      toys.CHOSEN[row],
      toys.RULE,
      toys.Hand(sampler, keys_B[row]),
      stop,
    )
    assert ids == expected
    assert list(zip(documents, offsets, strict=True)) == sources
    seen |= events
  if stop < 0:
    assert seen == {'drawn', 'rejected', 'went on'}
  assert np.all(state.target.done_B)


def remembering(length, repetition, multiplier, frequency, target, p):
  """A sampler with every kind of memory; all of one structure."""
  return chain.Chain(
    (
      constraints.Deny(jnp.array([-1])),
      constraints.MinLength(length, jnp.array([toys.STOP])),
      penalties.Repetition(repetition, window=5),
      dry.Dry(multiplier, base=1.5, allowed=1),
      penalties.Frequency(frequency),
      truncation.Temperature(1.1),
      mirostat.Mirostat(target, rate=0.3),
      truncation.TopP(p),
    )
  )


KNOBS = 12, 1.3, 0.4, 0.1, 1.5
STRICT = remembering(*KNOBS, 1.0)


class Memory(toys.Hand):
  """What STRICT is, by lists and in float64."""

  def __init__(self, key, prompt):
    super().__init__(WARM, key)
    self.prompt, self.made, self.mu = prompt, [], 2 * KNOBS[-1]

  def judged(self, p_V):
    length, repetition, multiplier, frequency, _ = KNOBS
    whole, law_V = [*self.prompt, *self.made], super().law(p_V)
    if len(self.made) < length:
      law_V[toys.STOP] = -np.inf
    for token in set(whole[-5:]):
      law_V[token] *= repetition
    for token in range(toys.V):
      passage = max(
        (
          size
          for end in range(len(whole))
          for size in range(1, end + 1)
          if whole[end - size : end + 1] == [*whole[-size:], token]
        ),
        default=0,
      )
      if passage:
        law_V[token] -= multiplier * 1.5 ** (passage - 1)
      law_V[token] -= frequency * self.made.count(token)
    return law_V

  def law(self, p_V):
    law_V = special.log_softmax(self.judged(p_V) / 1.1)
    is_kept_V = (-law_V / np.log(2) <= self.mu) | (law_V == law_V.max())
    return np.where(is_kept_V, law_V, -np.inf)

  def draw(self, place, p_V):
    law_V = self.law(p_V)
    key = jax.random.fold_in(self.key, place)
    return int(toys.draw_one(chain.Chain(), key, np.float32(law_V))), law_V

  def remember(self, token, law_V):
    surprise = -special.log_softmax(law_V)[token] / np.log(2)
    self.mu -= 0.3 * (surprise - KNOBS[-1])
    self.made.append(token)


def test_rules_that_remember_know_of_copied_tokens_too():
  keys_B, seen = toy.keys_for(3), set()
  together = made(run(sampler=STRICT, stop=toys.STOP))
  for row, (ids, documents, offsets) in enumerate(together):
    hand = Memory(keys_B[row], PROMPTS[row])
    expected, sources, events = toys.reference(
      PROMPTS[row], toys.CHOSEN[row], toys.RULE, hand, toys.STOP
    )
    assert ids == expected
    assert list(zip(documents, offsets, strict=True)) == sources
    assert toys.STOP not in ids[: KNOBS[0]]
    seen |= events
  assert seen == {'drawn', 'rejected', 'went on'}
  assert made(run(sampler=STRICT, stop=toys.STOP, order=[1] * 3)) == 3 * [
    together[1]
  ]
  # With nothing to say they change nothing.
  idle = remembering(0, 1.0, 0.0, 0.0, 0.0, 0.9)
  assert made(run(sampler=idle)) == made(run(sampler=WARM)) != together


def test_what_is_copied_is_in_the_document():
  for ids, documents, offsets in made(run(sampler=WARM)):
    places = list(zip(ids, documents, offsets, strict=True))
    copied = [(token, d, o) for token, d, o in places if d >= 0]
    assert len(copied) > 4
    assert all(toys.CORPUS[d][o] == token for token, d, o in copied)


@pytest.mark.parametrize(
  'fields', [{'alpha': -1e9}, {'alpha': -1e9, 'delta': 0.0}]
)
def test_a_model_left_alone_decodes_as_it_does(fields):
  state = run(nearest.Nest(**toys.FIELDS, **fields), WARM)
  plain = loop.generate(
    plain_step,
    toys.PARAMS,
    toys.Cache(jnp.zeros((3, toys.D))),
    *toy.padded(PROMPTS),
    toy.keys_for(3),
    WARM,
    num_tokens=toys.CAPACITY,
  )
  np.testing.assert_array_equal(state.target.ids_BN, plain.ids_BN)
  np.testing.assert_array_equal(state.target.logits_BV, plain.logits_BV)
  assert np.all(state.document_BN == -1)


def test_extremes_take_no_span_or_all_of_it():
  none = run(nearest.Nest(delta=0.0, **toys.FIELDS), WARM)
  assert np.all(none.document_BN == -1) and not np.any(none.drafted_B)
  # All that the model finds possible is taken, so that nothing is lost.
  every = run(nearest.Nest(delta=1.0, gamma=0.0, **toys.FIELDS), WARM)
  np.testing.assert_array_equal(every.drafted_B, every.accepted_B)
  assert np.all(np.asarray(every.accepted_B) > toys.CAPACITY / 2)


def test_rows_and_rounds_do_not_depend_on_each_other():
  together = made(run(sampler=WARM))
  assert len({len(set(d)) for _, d, _ in together} | {0}) > 1
  # Three of it are as good as one, and are no other program.
  for row in range(3):
    assert made(run(sampler=WARM, order=[row] * 3)) == [together[row]] * 3


@jax.jit
def mix(query_BTD, loaded, used_BC, logits_BTV, knobs):
  found = nearest.find(query_BTD, loaded, used_BC, toys.V, knobs)
  return found, *nearest.mix(logits_BTV.reshape(-1, toys.V), found, knobs)


def test_formulas_are_those_of_numpy():
  loaded, knobs = toys.load(toys.CHOSEN), nearest.knobs(toys.RULE)
  query_BTD = np.random.default_rng(3).normal(size=(3, 2, toys.D))
  key_BCD = np.asarray(loaded.key_BCD, np.float64)
  expected_BTC = np.sum((query_BTD[:, :, None] - key_BCD[:, None]) ** 2, axis=3)
  query_BTD = query_BTD.astype(np.float32)
  np.testing.assert_allclose(
    nearest.distances(query_BTD, loaded), expected_BTC, rtol=1e-4, atol=1e-5
  )
  real_BC = np.asarray(loaded.real_BC)
  assert not real_BC.all()
  used_BC = np.zeros(real_BC.shape, bool)
  used_BC[2, 3:] = True  # fewer than the neighbours are left
  logits_BTV = np.random.default_rng(4).normal(size=(3, 2, toys.V))
  found, log_p_BV, share_B = mix(query_BTD, loaded, used_BC, logits_BTV, knobs)
  key_id_BC = np.asarray(passages.key_ids(loaded))
  for b, t in np.ndindex(3, 2):
    usable_C = np.flatnonzero(real_BC[b] & ~used_BC[b])
    near_C = usable_C[np.argsort(expected_BTC[b, t, usable_C])][:8]
    distance_C = expected_BTC[b, t, near_C]
    share = special.expit((distance_C.min() / distance_C.max() - 0.35) / 0.1)
    weight_C = special.softmax(-distance_C / (0.8 * np.sqrt(toys.D)))
    p_V = share * special.softmax(logits_BTV[b, t])
    np.add.at(p_V, key_id_BC[b, near_C], (1 - share) * weight_C)
    row = 2 * b + t
    np.testing.assert_allclose(share_B[row], share, rtol=1e-4)
    np.testing.assert_allclose(np.exp(log_p_BV[row]), p_V, rtol=1e-4)
    np.testing.assert_allclose(
      found.weight_BC[row, near_C], weight_C, rtol=1e-4
    )
    assert np.count_nonzero(found.weight_BC[row]) == len(near_C)
  p_BV = np.array([[0.6, 0.1, 0.3], [0.9, 0.1, 0.0], [0.9, 0.1, 0.0]])
  log_p_BV = jnp.log(p_BV)
  token_B = np.array([1, 1, 2])
  # 0.1 is more than 0.15 x 0.6 and less than 0.15 x 0.9.
  for gamma, expected in ((0.3, [1, 0, 0]), (0.4, [0] * 3), (0, [1, 1, 0])):
    assert nearest.accepts(log_p_BV, token_B, gamma).tolist() == expected


def test_without_a_usable_key_the_model_is_alone():
  distance_BC = jnp.array([[jnp.inf, jnp.inf], [2.0, jnp.inf], [0.0, 0.0]])
  weight_BC, ratio_B = jax.jit(nearest.weigh)(distance_BC, float(toys.D), 8)
  np.testing.assert_array_equal(ratio_B, [np.inf, 1.0, 1.0])
  np.testing.assert_array_equal(weight_BC, [[0, 0], [1, 0], [0.5, 0.5]])


def test_what_is_denied_is_not_copied_either():
  free = made(run(sampler=GREEDY))
  common = max(
    range(toys.V), key=lambda token: sum(r[0].count(token) for r in free)
  )
  for ids, *_ in made(run(sampler=sampler(0.0, common))):
    assert common not in ids


def test_a_row_without_a_law_fails_and_says_so():
  params = (*toys.PARAMS[:2], jnp.int32(8))
  whole, state = made(run(sampler=WARM)), run(sampler=WARM, params=params)
  for row, (ids, *_) in enumerate(made(state)):
    full = whole[row][0]
    end = full.index(8) + 1 if 8 in full else len(full)
    assert ids == full[:end]
    assert state.target.failed_B[row] == (8 in full)
  with pytest.raises(ValueError, match='are NaN'):
    loop.check(state.target)


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'tau': 0.0}, 'tau=0.0 above 0'),
    ({'alpha': float('nan')}, 'alpha=nan must be finite'),
    ({'delta': 1.5}, r'delta=1.5 must lie in \[0, 1\]'),
    ({'gamma': 2.0}, r'gamma=2.0 must lie in \[0, 2\)'),
    ({'span': 0}, 'span=0 and neighbours=1024 must be at least 1'),
    ({'temperature': 0.0}, 'temperature=0.0 and near_temperature=1.0 must be'),
  ],
)
def test_bad_rules_are_named(fields, words):
  with pytest.raises(ValueError, match=words):
    nearest.Nest(**fields)


def test_bad_input_is_named():
  bat_set = chain.Chain((bat.BatSet(epsilon=0.1),))
  words = r'BatSet speaks of the law of the model, not'
  with pytest.raises(ValueError, match=words):
    nest.decode(
      toys.step, toys.PARAMS, None, None, bat_set, toys.RULE, num_rounds=1
    )
  state = toy.prefilled(PROMPTS)
  with pytest.raises(ValueError, match='store have 5 numbers and the states'):
    nest.begin(state, jnp.zeros((3, 4)), toys.load(toys.CHOSEN))
