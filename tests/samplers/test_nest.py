"""Nearest-neighbour decoding against a plain loop in float64."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from samplers import bat
from samplers import chain
from samplers import constraints
from samplers import draw
from samplers import loop
from samplers import nearest
from samplers import nest
from samplers import passages
from samplers import truncation
from tests.samplers import test_loop as toy

V, D, PASSAGE, SPAN, CAPACITY = 9, 5, 6, 4, 24
rng = np.random.default_rng(2)
EMBED = rng.normal(size=(V, D)).astype(np.float32)
HEAD = rng.normal(size=(D, V)).astype(np.float32)
PARAMS = jnp.asarray(EMBED), jnp.asarray(HEAD), jnp.int32(-1)
CORPUS = [rng.integers(1, V, size).tolist() for size in (31, 17, 40)]
CHOSEN = [[(0, 6), (2, 0), (2, 6), (1, 12)], [(2, 36), (0, 0), (1, 0), (0, 30)]]
CHOSEN.append(CHOSEN[0][::-1])
PROMPTS = [[1, 4, 4, 2], [3], [5, 5, 2]]


def sampler(temperature, denied=-1):
  """All of one structure, for which one program is enough."""
  ids = jnp.array([denied])
  rules = truncation.Temperature(temperature), truncation.TopP(0.9)
  return chain.Chain((constraints.Deny(ids), *rules))


GREEDY, WARM = sampler(0.0), sampler(1.1)
FIELDS = {'span': SPAN, 'neighbours': 8, 'near_temperature': 0.8}
RULE = nearest.Nest(alpha=0.35, gamma=0.4, **FIELDS)


class Cache(NamedTuple):
  """A leaky sum of embeddings."""

  sum_BD: jax.Array


def step(params, ids_BT, documents_BT, cache):
  def advance(sum_BD, token):
    id_B, document_B = token
    new_BD = 0.5 * sum_BD + params[0][id_B]
    sum_BD = jnp.where(document_B[:, None] > 0, new_BD, sum_BD)
    logits_BV = jnp.tanh(sum_BD) @ params[1] * 2
    logits_BV = jnp.where((id_B == params[2])[:, None], jnp.nan, logits_BV)
    return sum_BD, (logits_BV, jnp.tanh(sum_BD))

  sum_BD, found = jax.lax.scan(
    advance, cache.sum_BD, (ids_BT.T, documents_BT.T)
  )
  return tuple(jnp.swapaxes(x, 0, 1) for x in found), Cache(sum_BD)


def plain_step(*args):
  (logits_BTV, _), cache = step(*args)
  return logits_BTV, cache


def follow(sum_D, token):
  return 0.5 * sum_D + EMBED[token].astype(np.float64)


def keys_of(document):
  """The states before every token."""
  sums = [np.zeros(D)]
  for token in document[:-1]:
    sums.append(follow(sums[-1], token))
  return np.tanh(sums)


def load(chosen):
  shape = len(chosen), len(chosen[0])
  key_BMPD = np.zeros((*shape, PASSAGE, D), np.float32)
  real_BMP = np.zeros((*shape, PASSAGE), bool)
  id_BML = np.full((*shape, PASSAGE + SPAN), -1, np.int32)
  for row, part in enumerate(chosen):
    for place, (document, start) in enumerate(part):
      ids = CORPUS[document][start : start + PASSAGE + SPAN]
      id_BML[row, place, : len(ids)] = ids
      key_PD = keys_of(CORPUS[document])[start : start + PASSAGE]
      key_BMPD[row, place, : len(key_PD)] = key_PD
      real_BMP[row, place, : len(key_PD)] = True
  key_BCD = key_BMPD.reshape(shape[0], -1, D)
  return passages.Loaded(
    jnp.asarray(key_BCD),
    jnp.sum(jnp.asarray(key_BCD) ** 2, axis=2),
    jnp.asarray(real_BMP.reshape(shape[0], -1)),
    jnp.asarray(id_BML),
    *jnp.moveaxis(jnp.asarray(chosen, jnp.int32), 2, 0),
  )


def run(rule=RULE, sampler=GREEDY, stop=-1, order=(0, 1, 2), params=PARAMS):
  order = list(order)
  keys_B = toy.keys_for(3)[jnp.asarray(order)]
  state, query_BD, _ = nest.prefill(
    step,
    params,
    Cache(jnp.zeros((3, D))),
    *toy.padded([PROMPTS[i] for i in order]),
    keys_B,
    capacity=CAPACITY,
    recent=2,
  )
  loaded = load([CHOSEN[i] for i in order])
  state = nest.begin(state, query_BD, loaded)
  return nest.decode(
    step,
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


def mixture(sum_D, chosen, used, rule):
  """p, the share of the model and (weight, passage, place) of near keys."""
  query_D = np.tanh(sum_D)
  near = []
  for number, (document, start) in enumerate(chosen):
    key_PD = keys_of(CORPUS[document])[start : start + PASSAGE]
    for place, key_D in enumerate(key_PD):
      if (document, start + place) not in used:
        near.append((float(np.sum((query_D - key_D) ** 2)), number, place))
  near.sort()
  # Those as far as the last that counts do so, too.
  last = near[: rule.neighbours][-1:]
  near = [entry for entry in near if last and entry[0] <= last[0][0]]
  p_V = special.softmax(query_D @ HEAD * 2 / rule.temperature)
  if not near:
    return p_V, 1.0, []
  distances = np.array([d for d, *_ in near])
  ratio = distances.min() / distances.max()
  share = special.expit((ratio - rule.alpha) / rule.tau)
  weights = special.softmax(-distances / (0.8 * np.sqrt(D)))
  near_V = np.zeros(V)
  for weight, (_, number, place) in zip(weights, near, strict=True):
    document, start = chosen[number]
    near_V[CORPUS[document][start + place]] += weight
  found = [(w, n, p) for w, (_, n, p) in zip(weights, near, strict=True)]
  return share * p_V + (1 - share) * near_V, share, found


def reference(prompt, chosen, rule, pick, stop):
  """The algorithm as it is written, one token after the other."""
  sum_D = functools.reduce(follow, prompt, np.zeros(D))
  ids, sources, used, going_on, events = [], [], set(), None, set()

  def emit(token, source):
    nonlocal sum_D
    ids.append(token)
    sources.append(source)
    sum_D = follow(sum_D, token)
    return token == stop or len(ids) == CAPACITY

  def span_at(place):
    document, start = chosen[place[0]]
    first, last = start + place[1], start + PASSAGE + SPAN
    text = CORPUS[document][first : min(first + SPAN, last)]
    return [(token, (document, first + i)) for i, token in enumerate(text)]

  def is_good(p_V, token):
    return p_V[token] > 0.5 * rule.gamma * p_V.max()

  while True:
    p_V, share, near = mixture(sum_D, chosen, used, rule)
    drawn, start = pick(len(ids), p_V), None
    if going_on is not None:
      if is_good(p_V, span_at(going_on)[0][0]):
        start = going_on
        events.add('went on')
    elif share <= rule.delta:
      fits = [(w, (n, p)) for w, n, p in near if span_at((n, p))[0][0] == drawn]
      start = min(fits, key=lambda fit: (-fit[0], fit[1]))[1] if fits else None
    going_on = None
    if start is None:
      events.add('drawn')
      if emit(drawn, (-1, -1)):
        return ids, sources, events
      continue
    masked, span = used, span_at(start)
    for taken, (token, source) in enumerate(span):
      if taken:
        p_V, *_ = mixture(sum_D, chosen, masked, rule)
        if not is_good(p_V, token):
          events.add('rejected')
          if emit(pick(len(ids), p_V), (-1, -1)):
            return ids, sources, events
          break
      used = used | {source}
      if emit(token, source):
        return ids, sources, events
    else:
      after = start[0], start[1] + len(span)
      going_on = after if span_at(after) else None


@jax.jit
def draw_one(sampler, key, logits_V):
  changed_BV = sampler.transform(key[None], logits_V[None], ())
  return draw.draw(key[None], changed_BV)[0]


def by_sampler(sampler, key):
  def pick(place, p_V):
    with np.errstate(divide='ignore'):
      logits_V = np.log(p_V).astype(np.float32)
    return int(draw_one(sampler, jax.random.fold_in(key, place), logits_V))

  return pick


@pytest.mark.parametrize('sampler, stop', [(GREEDY, -1), (WARM, -1), (WARM, 7)])
def test_tokens_and_sources_are_those_of_a_plain_loop(sampler, stop):
  state = run(sampler=sampler, stop=stop)
  keys_B, seen = toy.keys_for(3), set()
  for row, (ids, documents, offsets) in enumerate(made(state)):
    pick = by_sampler(sampler, keys_B[row])
    expected, sources, events = reference(
      PROMPTS[row], CHOSEN[row], RULE, pick, stop
    )
    assert ids == expected
    assert list(zip(documents, offsets, strict=True)) == sources
    seen |= events
  if stop < 0:
    assert seen == {'drawn', 'rejected', 'went on'}
  assert np.all(state.target.done_B)


def test_what_is_copied_is_in_the_document():
  for ids, documents, offsets in made(run(sampler=WARM)):
    places = list(zip(ids, documents, offsets, strict=True))
    copied = [(token, d, o) for token, d, o in places if d >= 0]
    assert len(copied) > 4
    assert all(CORPUS[d][o] == token for token, d, o in copied)


@pytest.mark.parametrize(
  'fields', [{'alpha': -1e9}, {'alpha': -1e9, 'delta': 0.0}]
)
def test_a_model_left_alone_decodes_as_it_does(fields):
  state = run(nearest.Nest(**FIELDS, **fields), WARM)
  plain = loop.generate(
    plain_step,
    PARAMS,
    Cache(jnp.zeros((3, D))),
    *toy.padded(PROMPTS),
    toy.keys_for(3),
    WARM,
    num_tokens=CAPACITY,
  )
  np.testing.assert_array_equal(state.target.ids_BN, plain.ids_BN)
  np.testing.assert_array_equal(state.target.logits_BV, plain.logits_BV)
  assert np.all(state.document_BN == -1)


def test_extremes_take_no_span_or_all_of_it():
  none = run(nearest.Nest(delta=0.0, **FIELDS), WARM)
  assert np.all(none.document_BN == -1) and not np.any(none.drafted_B)
  # All that the model finds possible is taken, so that nothing is lost.
  every = run(nearest.Nest(delta=1.0, gamma=0.0, **FIELDS), WARM)
  np.testing.assert_array_equal(every.drafted_B, every.accepted_B)
  assert np.all(np.asarray(every.accepted_B) > CAPACITY / 2)


def test_rows_and_rounds_do_not_depend_on_each_other():
  together = made(run(sampler=WARM))
  assert len({len(set(d)) for _, d, _ in together} | {0}) > 1
  # Three of it are as good as one, and are no other program.
  for row in range(3):
    assert made(run(sampler=WARM, order=[row] * 3)) == [together[row]] * 3


@jax.jit
def mix(query_BTD, loaded, used_BC, logits_BTV, knobs):
  found = nearest.find(query_BTD, loaded, used_BC, V, knobs)
  return found, *nearest.mix(logits_BTV.reshape(-1, V), found, knobs)


def test_formulas_are_those_of_numpy():
  loaded, knobs = load(CHOSEN), nearest.knobs(RULE)
  query_BTD = np.random.default_rng(3).normal(size=(3, 2, D))
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
  logits_BTV = np.random.default_rng(4).normal(size=(3, 2, V))
  found, log_p_BV, share_B = mix(query_BTD, loaded, used_BC, logits_BTV, knobs)
  key_id_BC = np.asarray(passages.key_ids(loaded))
  for b, t in np.ndindex(3, 2):
    usable_C = np.flatnonzero(real_BC[b] & ~used_BC[b])
    near_C = usable_C[np.argsort(expected_BTC[b, t, usable_C])][:8]
    distance_C = expected_BTC[b, t, near_C]
    share = special.expit((distance_C.min() / distance_C.max() - 0.35) / 0.1)
    weight_C = special.softmax(-distance_C / (0.8 * np.sqrt(D)))
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
  weight_BC, ratio_B = jax.jit(nearest.weigh)(distance_BC, float(D), 8)
  np.testing.assert_array_equal(ratio_B, [np.inf, 1.0, 1.0])
  np.testing.assert_array_equal(weight_BC, [[0, 0], [1, 0], [0.5, 0.5]])


def test_what_is_denied_is_not_copied_either():
  free = made(run(sampler=GREEDY))
  common = max(range(V), key=lambda token: sum(r[0].count(token) for r in free))
  for ids, *_ in made(run(sampler=sampler(0.0, common))):
    assert common not in ids


def test_a_row_without_a_law_fails_and_says_so():
  params = (*PARAMS[:2], jnp.int32(8))
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
  bat_set = bat.BatSet(epsilon=0.1)
  for rules, words in (
    (chain.parse('repetition(1.2)').rules, r'Repetition remembers .* drop it'),
    ((bat_set,), r'BatSet speaks of the law of the model, not'),
  ):
    with pytest.raises(ValueError, match=words):
      nest.decode(
        step, PARAMS, None, None, chain.Chain(rules), RULE, num_rounds=1
      )
  state = toy.prefilled(PROMPTS)
  with pytest.raises(ValueError, match='store have 5 numbers and the states'):
    nest.begin(state, jnp.zeros((3, 4)), load(CHOSEN))
