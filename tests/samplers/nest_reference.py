"""Nearest-neighbour decoding as a plain loop in float64, of a toy model."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from samplers import draw
from samplers import nearest
from samplers import passages

V, D, PASSAGE, SPAN, CAPACITY, STOP = 9, 5, 6, 4, 24, 7
rng = np.random.default_rng(2)
EMBED = rng.normal(size=(V, D)).astype(np.float32)
HEAD = rng.normal(size=(D, V)).astype(np.float32)
PARAMS = jnp.asarray(EMBED), jnp.asarray(HEAD), jnp.int32(-1)
CORPUS = [rng.integers(1, V, size).tolist() for size in (31, 17, 40)]
CHOSEN = [[(0, 6), (2, 0), (2, 6), (1, 12)], [(2, 36), (0, 0), (1, 0), (0, 30)]]
CHOSEN.append(CHOSEN[0][::-1])
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


def reference(prompt, chosen, rule, hand, stop):
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

  def is_good(law_V, token):
    return law_V[token] > np.log(0.5 * rule.gamma) + law_V.max()

  while True:
    p_V, share, near = mixture(sum_D, chosen, used, rule)
    (drawn, law_V), start = hand.draw(len(ids), p_V), None
    if going_on is not None:
      judged_V = hand.judged(p_V)
      if is_good(judged_V, span_at(going_on)[0][0]):
        start, law_V = going_on, judged_V
        events.add('went on')
    elif share <= rule.delta:
      fits = [(w, (n, p)) for w, n, p in near if span_at((n, p))[0][0] == drawn]
      start = min(fits, key=lambda fit: (-fit[0], fit[1]))[1] if fits else None
    going_on = None
    if start is None:
      events.add('drawn')
      hand.remember(drawn, law_V)
      if emit(drawn, (-1, -1)):
        return ids, sources, events
      continue
    masked, span = used, span_at(start)
    for taken, (token, source) in enumerate(span):
      if taken:
        p_V, *_ = mixture(sum_D, chosen, masked, rule)
        law_V = hand.judged(p_V)
        if not is_good(law_V, token):
          events.add('rejected')
          drawn, law_V = hand.draw(len(ids), p_V)
          hand.remember(drawn, law_V)
          if emit(drawn, (-1, -1)):
            return ids, sources, events
          break
      hand.remember(token, law_V)
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


class Hand:
  """Draws by a sampler that forgets; laws are log p."""

  def __init__(self, sampler, key):
    self.sampler, self.key = sampler, key

  def draw(self, place, p_V):
    """A token and the law that it is from."""
    law_V = self.law(p_V)
    key = jax.random.fold_in(self.key, place)
    return int(draw_one(self.sampler, key, np.float32(law_V))), law_V

  def law(self, p_V):
    with np.errstate(divide='ignore'):
      return np.log(p_V)

  judged = law

  def remember(self, token, law_V):
    pass
