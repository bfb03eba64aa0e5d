"""Draws of a chain against the analytic law, and its command-line form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from scipy import stats

from samplers import chain
from samplers import entropy
from samplers import history
from samplers import mirostat
from samplers import presets
from samplers import truncation

DRAWS = 40_000


@jax.jit
def sample(sampler, keys_B, logits_BV):
  return sampler(keys_B, logits_BV)


def draw(sampler, logits_V, seed=0, count=DRAWS):
  keys_B = jax.random.split(jax.random.key(seed), count)
  logits_BV = jnp.broadcast_to(logits_V, (count, len(logits_V)))
  return np.asarray(sample(sampler, keys_B, logits_BV))


def assert_follows(token_B, law_V):
  counts_V = np.bincount(token_B, minlength=len(law_V))
  assert counts_V[law_V == 0].sum() == 0
  allowed_V = law_V > 0
  expected_V = law_V[allowed_V] / law_V.sum() * len(token_B)
  assert expected_V.min() > 5
  assert stats.chisquare(counts_V[allowed_V], expected_V).pvalue > 1e-3


def softmax(logits_V):
  return special.softmax(np.asarray(logits_V, np.float64))


LOGITS_V = np.array([0.3, -1.0, 2.0, 1.1, 0.3, -0.2, 1.9], np.float32)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 1.7])
def test_frequencies_follow_the_tempered_law(temperature):
  sampler = chain.Chain((truncation.Temperature(temperature),))
  law_V = softmax(LOGITS_V / temperature)
  assert_follows(draw(sampler, LOGITS_V), law_V)


def test_frequencies_follow_the_whole_chain_in_its_order():
  sampler = chain.parse('temperature(0.7)|top_k(4)|top_p(0.8)')
  law_V = softmax(LOGITS_V / 0.7)
  law_V[np.argsort(law_V)[:-4]] = 0
  law_V /= law_V.sum()
  order = np.argsort(-law_V)
  last = np.searchsorted(np.cumsum(law_V[order]), 0.8)
  law_V[order[last + 1 :]] = 0
  assert (law_V > 0).sum() == 2
  assert_follows(draw(sampler, LOGITS_V), law_V)


def test_many_equal_bfloat16_logits_are_drawn_evenly():
  # Noise in bfloat16 would give the first hundred ids half of the draws.
  token_B = draw(chain.Chain(), jnp.zeros(1000, jnp.bfloat16))
  assert_follows(token_B // 100, np.full(10, 0.1))


def test_chain_without_rules_is_a_plain_draw():
  assert_follows(draw(chain.Chain(), LOGITS_V), softmax(LOGITS_V))


_TRUNCATIONS = (
  'top_k(3)',
  'top_p(0.3)',
  'min_p(1)',
  'top_n_sigma(0.01)',
  'top_h(0.1)',
  'top_h_of_100(0.1)',
  'epsilon(0.9)',
  'eta(0.9)',
  # Those that may drop the best.
  'typical(0.2)',
  'xtc(1)',
  'typical(0.2)|xtc(1)|top_k(2)',
  'temperature(0.5)|typical(0.2)',
)


@pytest.mark.parametrize('rest', ['', *_TRUNCATIONS])
def test_zero_temperature_anywhere_is_greedy(rest):
  logits_V = np.array([0.0, 5.0, 5.0, 4.9, 4.8, 4.8, 4.8], np.float32)
  for text in (f'{rest}|temperature(0)', f'temperature(0)|{rest}'):
    token_B = draw(chain.parse(text.strip('|')), logits_V, count=50)
    np.testing.assert_array_equal(token_B, 1)


def test_every_truncation_says_so():
  # All others change what greedy rows are to choose.
  others = {'temperature', 'repetition', 'frequency', 'presence', 'dry', 'bias'}
  others |= {'allow', 'deny', 'min_length', 'max_length'}
  for name, rule in presets.RULES.items():
    assert getattr(rule, 'truncates', False) == (name not in others)


def test_mirostat_leaves_greedy_rows_alone():
  logits_BV = jnp.array([[0.0, 5.0, 4.9, 4.8]] * 2)
  sampler = chain.Chain(
    (
      entropy.Typical(0.2),
      mirostat.Mirostat(0.1),
      truncation.Temperature(np.array([0.0, 1.0])),
    )
  )
  lengths_B = jnp.ones(2, jnp.int32)
  memory = sampler.init(
    history.Prompt(lengths_B[:, None], lengths_B, 1, logits_BV.shape[1])
  )
  keys_B = jax.random.split(jax.random.key(0), 2)
  result_BV = sampler.transform(keys_B, logits_BV, memory)
  np.testing.assert_array_equal(np.argmax(result_BV, axis=1), [1, 2])


def test_greedy_rows_keep_penalties_and_constraints():
  logits_V = np.array([0.0, 5.0, 4.9, 4.8], np.float32)
  sampler = chain.parse('deny(1)|typical(0.2)|bias(2:-1)|temperature(0)')
  np.testing.assert_array_equal(draw(sampler, logits_V, count=9), 3)


def test_greedy_and_drawn_rows_share_a_batch():
  logits_V = np.array([0.0, 5.0, 4.9, 4.8], np.float32)
  rules = (
    entropy.Typical(0.2),
    truncation.Temperature(np.tile([0.0, 1.0], 30)),
  )
  token_B = draw(chain.Chain(rules), logits_V, count=60)
  np.testing.assert_array_equal(token_B[::2], 1)
  np.testing.assert_array_equal(token_B[1::2], 2)


def test_each_row_has_its_own_knobs():
  temperatures_B = np.tile(np.array([0.0, 0.6, 3.0], np.float32), 20_000)
  ps_B = np.tile(np.array([0.2, 1.0, 0.75], np.float32), 20_000)
  rules = (truncation.Temperature(temperatures_B), truncation.TopP(ps_B))
  token_B = draw(chain.Chain(rules), LOGITS_V, count=60_000)
  np.testing.assert_array_equal(token_B[0::3], 2)
  assert_follows(token_B[1::3], softmax(LOGITS_V / 0.6))
  law_V = softmax(LOGITS_V / 3)
  order = np.argsort(-law_V)
  last = np.searchsorted(np.cumsum(law_V[order]), 0.75)
  law_V[order[last + 1 :]] = 0
  assert_follows(token_B[2::3], law_V)


def test_draw_depends_on_its_own_row_only():
  rng = np.random.default_rng(0)
  logits_BV = rng.normal(size=(9, 260)).astype(np.float32)
  keys_B = jax.random.split(jax.random.key(1), 9)
  sampler = chain.parse('temperature(1.3)|top_k(100)|top_p(0.9)')
  together_B = np.asarray(sample(sampler, keys_B, logits_BV))
  assert len(set(together_B)) > 3
  for i in range(9):
    alone = sample(sampler, keys_B[i : i + 1], logits_BV[i : i + 1])
    assert alone[0] == together_B[i]


def test_knob_values_share_one_compilation():
  sample.clear_cache()
  keys_B = jax.random.split(jax.random.key(0), 2)
  for text in ('temperature(1)|top_k(3)', 'temperature(0.2)|top_k(0)'):
    sample(chain.parse(text), keys_B, jnp.zeros((2, 5)))
  rules = (truncation.Temperature(1), truncation.TopK(7))
  sample(chain.Chain(rules), keys_B, jnp.zeros((2, 5)))
  assert sample._cache_size() == 1


def test_parse_reads_rules_in_order():
  expected = chain.Chain(
    (truncation.Temperature(0.8), truncation.TopP(0.95), truncation.TopK(40))
  )
  parsed = chain.parse(' temperature(0.8)| top_p( .95 ) |top_k(40)')
  assert parsed == expected
  assert hash(parsed) == hash(expected)
  assert isinstance(parsed.rules[2].k, int)
  assert chain.parse('greedy') == chain.Chain((truncation.Temperature(0.0),))


@pytest.mark.parametrize(
  'text, words',
  [
    ('topp(0.9)', "'topp' is unknown; did you mean 'top_p'.* top_k"),
    ('gredy', "did you mean 'greedy'"),
    ('zzz(1)', "'zzz' is unknown; choices are greedy, temperature"),
    ('', 'not of the form'),
    ('top_k(4)|', 'not of the form'),
    ('top_k(4', 'not of the form'),
    ('top_k(4)top_p(1)', 'not of the form'),
    ('top_k', 'needs one number in brackets'),
    ('top_k()', 'needs one number in brackets'),
    ('top_p(much)', 'needs one number in brackets'),
    ('top_p(0.1,0.2)', 'needs one number in brackets'),
    ('top_p(0.9, p=0.5)', 'gives p twice; drop one'),
    ('xtc(0.9, exempt=3, exempt=4)', 'gives exempt twice; drop one'),
    ('max_length(40)', r'=40 needs end, .* write max_length\(40, end=2\)'),
    ('min_length(40)', r'=40 needs ids, .* write min_length\(40, ids=2\)'),
    ('greedy(3)', "'greedy' takes no number"),
    ('top_p(1.5)', r'p=1.5 must lie in \(0, 1\]'),
    ('top_k(2.5)', 'k=2.5 must be a whole number'),
    ('temperature(-1)', 'temperature=-1.0 must be a finite number >= 0'),
  ],
)
def test_bad_text_is_named(text, words):
  with pytest.raises(ValueError, match=words) as caught:
    chain.parse(text)
  assert '\n' not in str(caught.value)


def test_chain_is_a_frozen_value():
  with pytest.raises(dataclasses.FrozenInstanceError):
    chain.Chain().rules = ()
