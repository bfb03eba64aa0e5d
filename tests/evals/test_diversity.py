"""Diversity and risk: counted by hand, and by the rules that draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import codec
from evals import bat_thresholds
from evals import diversity
from evals import support_trie
from samplers import bat
from samplers import chain
from samplers import history
from samplers import support

rng = np.random.default_rng(0)
LOGITS = (1.5 * rng.normal(size=(7, 40))).astype(np.float32)
LAWS = diversity.sort(LOGITS)
RULES = diversity.rules(LAWS)
KNOBS = {
  'top_k': (1, 5, 39),
  'top_p': (0.05, 0.6, 0.95),
  'typical': (0.1, 0.6, 0.95),
  'min_p': (0.9, 0.1, 0.01),
  'epsilon': (0.3, 0.03, 0.003),
  'eta': (0.9, 0.2, 0.01),
  'top_n_sigma': (0.3, 1.5, 3.0),
  'top_h': (0.1, 0.6, 0.95),
  'top_h_of_100': (0.1, 0.6, 0.95),
  'mirostat': (0.8, 1.9, 3.5),
}


@jax.jit
def transform(sampler, logits_NV):
  count, size = logits_NV.shape
  past_NT, lengths_N = jnp.zeros((count, 1), int), jnp.ones(count, int)
  memory = sampler.init(history.Prompt(past_NT, lengths_N, 1, size))
  return sampler.transform(None, logits_NV, memory)


@pytest.mark.parametrize('name', KNOBS)
def test_count_is_that_of_the_rule_that_draws(name):
  counts = []
  for knob in KNOBS[name]:
    changed = transform(chain.parse(f'{name}({knob})'), LOGITS)
    kept_N = np.sum(np.asarray(changed) > -np.inf, axis=1)
    np.testing.assert_array_equal(diversity.kept(RULES[name], knob), kept_N)
    counts.append(kept_N.sum())
  assert counts[0] < counts[1] < counts[2]


def test_count_of_adaptive_decoding_is_that_of_its_definition():
  for knob in (1e-1, 1e-2, 1e-4):
    kept_N = diversity.kept(RULES['adaptive'], knob)
    for row, log_p_V in enumerate(LAWS.log_p_NV):
      p_V, size = np.exp(log_p_V), len(log_p_V)
      keeps = 1
      for i in range(1, size):
        rest, before = p_V[i:].sum(), p_V[i - 1 :].sum()
        gain = p_V[i - 1] * np.log(p_V[i - 1]) + rest * np.log(
          rest / (size - i)
        )
        gain -= before * np.log(before / (size - i + 1))
        keeps = i if gain / np.log(size) > knob else keeps
      assert kept_N[row] == keeps


def test_count_of_bat_is_that_of_the_rule_that_keeps():
  basis_VC = support.columns(rng.normal(size=(40, 6)), 4)
  found = bat_thresholds.rules(basis_VC, LAWS, ids=40, steps=14)
  more = 0
  for name, knob in (('epsilon', 0.05), ('eta', 0.3)):
    rule = bat.BatSet(**{name: knob}, basis_VC=basis_VC)
    kept_BV = np.asarray(jax.jit(lambda rule, x: rule(x))(rule, LOGITS))
    kept_N = np.sum(kept_BV > -np.inf, axis=1)
    np.testing.assert_array_equal(
      diversity.kept(found[f'bat({name})'], knob), kept_N
    )
    more += (kept_N - diversity.kept(RULES[name], knob)).sum()
  assert more > 5
  # Without a look below the threshold it is that of the threshold.
  plain = bat_thresholds.rules(basis_VC, LAWS, ids=0)
  np.testing.assert_allclose(
    plain['bat(eta)'].critical_NV, RULES['eta'].critical_NV
  )


def test_top_h_of_100_looks_at_a_hundred():
  laws = diversity.sort(rng.normal(size=(3, 300)).astype(np.float32))
  rule = diversity.rules(laws)['top_h_of_100']
  assert diversity.kept(rule, 0.999).max() < 100
  # There the rule is off.
  np.testing.assert_array_equal(diversity.kept(rule, 1.0), 300)


def test_mirostat_is_epsilon_of_its_first_step():
  mirostat, epsilon = RULES['mirostat'], RULES['epsilon']
  for tau in (0.8, 1.9, 3.5):
    np.testing.assert_array_equal(
      diversity.kept(mirostat, tau), diversity.kept(epsilon, 4.0**-tau)
    )


def test_recall_and_risk_of_a_hand_made_case():
  laws = diversity.sort(np.log([[0.1, 0.5, 0.4], [0.6, 0.3, 0.1]]))
  best_N = diversity.optimal(laws, [np.array([0, 1]), np.array([0])])
  np.testing.assert_array_equal(best_N, [3, 1])
  found = diversity.recall_and_risk(np.array([2, 3]), best_N)
  np.testing.assert_allclose(found, [[2 / 3, 1.0], [0.0, 2.0]])
  # top-k of 2: risks 0 and 1, recalls 2/3 and 1.
  match = diversity.match(diversity.rules(laws)['top_k'], best_N, 0.6)
  assert match.knob == 2
  np.testing.assert_allclose(match[1:], [0.5, 0.5 / 2**0.5, 5 / 6, 2**-0.5 / 6])


@pytest.mark.parametrize('name', RULES)
def test_match_is_the_nearest_of_all_knobs(name):
  rule, best_N = RULES[name], rng.integers(1, 10, 7)
  for risk in (0.3, 2.0):
    match = diversity.match(rule, best_N, risk)
    risks = [
      diversity.recall_and_risk(diversity.kept(rule, knob), best_N)[1].mean()
      for knob in np.unique(rule.critical_NV)
    ]
    assert abs(match.risk - risk) <= min(abs(r - risk) for r in risks) + 1e-12
  points = diversity.curve(rule, best_N)
  assert np.all(np.diff([p[0] for p in points]) >= 0)
  assert np.all(np.diff([p[1] for p in points]) >= 0)


def test_trie_of_a_small_corpus():
  first = '  for i in x\nfor i of y\nfor key in x\nif a b'
  second = 'lone\nif a c\nif b d\nif c d\n\tfor k in z\n'
  documents = [np.frombuffer(x.encode(), np.uint8) for x in (first, second)]
  trie = support_trie.Trie(roots=2, branch=1, depth=1, least_children=2)
  nodes = trie.nodes(documents, codec.Bytes())
  shown = [
    (codec.decode(n.context), codec.decode(n.support), n.lines) for n in nodes
  ]
  assert shown == [
    (b'for ', b'ik', 4),
    (b'for i ', b'io', 2),
    (b'if ', b'abc', 4),
    (b'if a ', b'bc', 2),
  ]


def test_corpus_without_a_node_is_named():
  with pytest.raises(ValueError, match='no beginning of a line that 3 words'):
    support_trie.Trie().nodes([np.frombuffer(b'a b', np.uint8)], codec.Bytes())
