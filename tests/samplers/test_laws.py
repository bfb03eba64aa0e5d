"""Draws of every rule against its analytic law, and with every neighbour."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from scipy import stats

from samplers import chain
from samplers import draw
from samplers import history
from samplers import presets

DRAWS = 30_000
plain_V = np.array([0.3, -1.0, 2.0, 1.1, 0.3, -0.2, 1.9, -3.0])
p_V = special.softmax(plain_V)
rank_V = np.argsort(np.argsort(-p_V))
H = special.entr(p_V).sum()
# What every row was given to remember: 6 0 6 came before, and 6 0 once more.
PROMPT = (2, 6, 0, 6, 5, 3, 6, 0)
past_V = np.bincount(PROMPT, minlength=8)


def only(keep_V):
  return np.where(keep_V, p_V, 0.0)


def excluded(threshold):
  top_V = p_V >= threshold
  return only(~top_V | (p_V == p_V[top_V].min()))


def top_p(p):
  # The last one in and its tie.
  order = np.argsort(-p_V)
  last = np.searchsorted(np.cumsum(p_V[order]), p)
  return only(plain_V >= plain_V[order[last]])


def typical(mass):
  d_V = np.abs(-np.log(p_V) - H)
  order = np.argsort(d_V)
  last = np.searchsorted(np.cumsum(p_V[order]), mass)
  return only(d_V <= d_V[order[last]])


def top_h(alpha):
  order = np.argsort(-p_V)
  entropies = [stats.entropy(p_V[order[:n]]) <= alpha * H for n in range(1, 9)]
  return only(rank_V < max(1, sum(entropies)))


def top_h_of_100(alpha):
  order = np.argsort(-p_V)
  return only(rank_V < np.sum(np.cumsum(special.entr(p_V[order])) <= alpha * H))


def tilted(logits_V):
  return special.softmax(logits_V)


LAWS = {
  # Without a basis that of its threshold; with one see test_bat.
  'bat(epsilon=0.06)': only(p_V >= 0.06),
  'bat_set(epsilon=0.06)': only(p_V >= 0.06),
  'temperature(0.8)': tilted(plain_V / 0.8),
  'top_k(3)': only(rank_V < 3),
  'top_p(0.8)': top_p(0.8),
  'min_p(0.2)': only(p_V >= 0.2 * p_V.max()),
  'typical(0.5)': typical(0.5),
  'epsilon(0.06)': only(p_V >= 0.06),
  'eta(0.09)': only(p_V >= min(0.09, 0.3 * np.exp(-H))),
  'top_n_sigma(1.2)': only(plain_V >= 2.0 - 1.2 * plain_V.std()),
  'top_h(0.7)': top_h(0.7),
  'top_h_of_100(0.7)': top_h_of_100(0.7),
  'xtc(0.4, threshold=0.1)': 0.4 * excluded(0.1) / excluded(0.1).sum()
  + 0.6 * p_V,
  'mirostat(1.2)': only(-np.log2(p_V) <= 2.4),
  'repetition(1.5)': tilted(
    np.where(
      past_V > 0,
      np.where(plain_V > 0, plain_V / 1.5, plain_V * 1.5),
      plain_V,
    )
  ),
  'frequency(0.3, prompt=1)': tilted(plain_V - 0.3 * past_V),
  'presence(0.9, prompt=1)': tilted(plain_V - 0.9 * (past_V > 0)),
  # 6 would prolong 6 0 6; nothing else follows what ends the prompt.
  'dry(0.7)': tilted(plain_V - 0.7 * (np.arange(8) == 6)),
  'bias(1:1.5 3-4:-0.5)': tilted(
    plain_V + np.array([0, 1.5, 0, -0.5, -0.5, 0, 0, 0])
  ),
  'allow(0 2-3)': only(np.isin(np.arange(8), [0, 2, 3])),
  'deny(2)': only(np.arange(8) != 2),
  'min_length(1, ids=2 6)': only(~np.isin(np.arange(8), [2, 6])),
  'max_length(1, end=5)': np.eye(8)[5],
}


@jax.jit
def sample(sampler, keys_B, logits_BV):
  count = len(keys_B)
  prompt_BT = jnp.tile(jnp.array(PROMPT), (count, 1))
  lengths_B = jnp.full(count, len(PROMPT))
  prompt = history.Prompt(prompt_BT, lengths_B, 2, logits_BV.shape[1])
  memory = sampler.init(prompt)
  return sampler.step(keys_B, logits_BV, memory, jnp.ones(count, bool))[0]


def assert_follows(token_B, law_V):
  counts_V = np.bincount(token_B, minlength=len(law_V))
  assert counts_V[law_V == 0].sum() == 0
  allowed_V = law_V > 0
  expected_V = law_V[allowed_V] / law_V.sum() * len(token_B)
  assert expected_V.min() > 5
  if len(expected_V) > 1:
    assert stats.chisquare(counts_V[allowed_V], expected_V).pvalue > 1e-3


def test_every_rule_has_a_law_here():
  assert {text.split('(')[0] for text in LAWS} == set(presets.RULES)


@pytest.mark.parametrize('text', LAWS)
def test_draws_follow_the_law(text):
  law_V = LAWS[text]
  assert np.any(np.abs(law_V / law_V.sum() - p_V) > 0.02), 'no test at all'
  keys_B = jax.random.split(jax.random.key(len(text)), DRAWS)
  logits_BV = jnp.tile(jnp.asarray(plain_V, jnp.float32), (DRAWS, 1))
  assert_follows(
    np.asarray(sample(chain.parse(text), keys_B, logits_BV)), law_V
  )


def test_xtc_is_tossed_apart_from_the_draw():
  # With one stream for both, the toss would say where the draw falls.
  sampler = chain.parse('xtc(0.5, threshold=0.1)')
  keys_B = jax.random.split(jax.random.key(1), DRAWS)
  logits_BV = jnp.zeros((DRAWS, 9))
  rule = sampler.rules[0]
  own_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, 1)
  tossed_B = np.asarray(rule.toss(own_B))
  assert stats.binomtest(int(tossed_B.sum()), DRAWS, 0.5).pvalue > 1e-3
  # A flat row of nine loses nothing, whatever is tossed.
  token_B = np.asarray(sample(sampler, keys_B, logits_BV))
  table = [np.bincount(token_B[tossed_B == t], minlength=9) for t in (0, 1)]
  assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize('size', [7, 600])
def test_draw_reaches_every_block_in_proportion(size):
  rng = np.random.default_rng(size)
  weights_V = np.where(rng.random(size) < 0.6, 0.0, rng.random(size) + 0.1)
  weights_V[-1] = 1.0
  with np.errstate(divide='ignore'):
    logits_BV = np.tile(np.log(weights_V).astype(np.float32), (DRAWS, 1))
  keys_B = jax.random.split(jax.random.key(0), DRAWS)
  token_B = np.asarray(jax.jit(draw.draw)(keys_B, logits_BV))
  assert_follows(token_B, weights_V)


def test_rules_are_different_structures():
  # jit finds what it compiled by this, and would run one rule for another.
  rules = [rule() for rule in presets.RULES.values()]
  for a, b in itertools.combinations(rules, 2):
    assert jax.tree.structure(a) != jax.tree.structure(b)
    assert jax.tree.structure(a) == jax.tree.structure(type(a)())


_BLOCKWISE = {'bat', 'top_p', 'typical', 'top_h', 'xtc'}


@pytest.mark.parametrize(
  'text',
  [
    # Those that look at some blocks of a row, and one that remembers.
    pytest.param(
      text,
      marks=[pytest.mark.slow]
      * (text.split('(')[0] not in _BLOCKWISE | {'repetition'}),
    )
    for text in LAWS
  ],
)
def test_token_depends_on_its_own_row_only(text):
  rng = np.random.default_rng(0)
  # Some rows need the whole vocabulary where others do not.
  logits_BV = rng.normal(size=(6, 6000)).astype(np.float32)
  logits_BV *= np.array([1, 8, 1, 8, 3, 0.1], np.float32)[:, None]
  keys_B = jax.random.split(jax.random.key(1), 6)
  sampler = chain.parse(text)
  together_B = np.asarray(sample(sampler, keys_B, logits_BV))
  keys_B = np.asarray(jax.random.key_data(keys_B))
  for row in (0, 1, 3, 5):
    # Six of it are as good as one, and no other program.
    keys = jax.random.wrap_key_data(np.tile(keys_B[row], (6, 1)))
    alone_B = sample(sampler, keys, np.tile(logits_BV[row], (6, 1)))
    np.testing.assert_array_equal(alone_B, together_B[row])


def test_one_compilation_for_all_values_of_every_rule():
  keys_B = jax.random.split(jax.random.key(0), 3)
  # BAT stands alone, so that test_bat has it.
  kinds = [r for r in presets.RULES.values() if not hasattr(r, 'basis_VC')]
  neutral = {kind: kind() for kind in kinds}
  set_to = dict(neutral)
  for text in LAWS:
    (rule,) = chain.parse(text).rules
    if type(rule) not in kinds:
      continue
    # As many ids, up to a power of two, are one shape.
    shapes, others = (
      [np.shape(leaf) for leaf in jax.tree.leaves(x)]
      for x in (rule, neutral[type(rule)])
    )
    if shapes == others:
      set_to[type(rule)] = rule
  assert sum(set_to[kind] != neutral[kind] for kind in neutral) > 15
  sample.clear_cache()
  for rules in (neutral, set_to):
    sample(chain.Chain(tuple(rules.values())), keys_B, jnp.zeros((3, 8)))
  assert sample._cache_size() == 1
