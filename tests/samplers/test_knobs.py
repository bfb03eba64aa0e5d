"""Knobs that no rule is defined for are named before a token is drawn."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers import bat
from samplers import chain
from samplers import constraints
from samplers import dry
from samplers import entropy
from samplers import history
from samplers import mirostat
from samplers import penalties
from samplers import truncation
from samplers import xtc

V = 9
_FINITE = 'must be a finite number; 0 turns it off, more discourages'
_LENGTH = 'must be a whole number of tokens >= 0; 0 turns it off'


@pytest.mark.parametrize(
  'make, words',
  [
    (
      lambda: penalties.Repetition(0),
      'repetition penalty=0 must be a finite number > 0; 1 turns it off',
    ),
    (
      lambda: penalties.Repetition(np.array([1.0, np.nan])),
      'repetition penalty=nan of row 1 must be a finite number > 0',
    ),
    (
      lambda: penalties.Frequency(float('inf')),
      f'frequency penalty=inf {_FINITE}',
    ),
    (
      lambda: penalties.Presence(np.array([0, 0, -np.inf])),
      f'presence penalty=-inf of row 2 {_FINITE}',
    ),
    (
      lambda: penalties.Repetition(1.1, window=-1),
      'repetition window=-1 must be a whole number >= 0; 0 counts all tokens',
    ),
    (
      lambda: penalties.Frequency(0.1, window=2.5),
      'frequency window=2.5 must be a whole number >= 0; 0 counts all tokens',
    ),
    (
      lambda: penalties.Presence(0.1, window=2**31),
      'presence window=2147483648 must be a whole number >= 0',
    ),
    (
      lambda: penalties.Presence(0.1, prompt=2),
      'presence prompt=2 must be True or False',
    ),
    (
      lambda: penalties.Repetition(1.1, prompt=0.5),
      'repetition prompt=0.5 must be True or False',
    ),
    (
      lambda: dry.Dry(-0.1),
      'dry multiplier=-0.1 must be a finite number >= 0; 0 turns it off',
    ),
    (
      lambda: dry.Dry(0.8, base=0.5),
      'dry base=0.5 must be a finite number >= 1; 1.75 is usual',
    ),
    (
      lambda: dry.Dry(0.8, allowed=0),
      'dry allowed=0 must be a whole number >= 1, the tokens that may repeat',
    ),
    (
      lambda: dry.Dry(0.8, window=-2),
      'dry window=-2 must be a whole number >= 0; 0 searches all tokens',
    ),
    (
      lambda: dry.Dry(0.8, breakers=(3, -2)),
      'dry breakers=-2 must be a whole number >= 0, the id of a token',
    ),
    (
      lambda: mirostat.Mirostat(-1),
      'mirostat target=-1 must be a finite number of bits >= 0; 0 turns it off',
    ),
    (
      lambda: mirostat.Mirostat(5, rate=1.5),
      'mirostat rate=1.5 must lie in [0, 1]; 0 keeps the threshold where it is',
    ),
    (
      lambda: constraints.MinLength(-1, (2,)),
      f'min-length length=-1 {_LENGTH}',
    ),
    (
      lambda: constraints.MinLength(1.5, (2,)),
      f'min-length length=1.5 {_LENGTH}',
    ),
    (
      lambda: constraints.MaxLength(-3, 2),
      f'max-length length=-3 {_LENGTH}',
    ),
    (
      lambda: constraints.MaxLength(3, 2.5),
      'max-length end=2.5 must be a whole number >= 0, the id of a token',
    ),
    (
      lambda: xtc.Xtc(0.5, threshold=1.5),
      'xtc threshold=1.5 must lie in [0, 1]; probability=0 turns it off',
    ),
    (
      lambda: xtc.Xtc(-0.5),
      'xtc probability=-0.5 must lie in [0, 1]; probability=0 turns it off',
    ),
  ],
)
def test_bad_knobs_are_named(make, words):
  with pytest.raises(ValueError, match=re.escape(words)) as caught:
    make()
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: truncation.Temperature(1e39), 'temperature=1e+39, which is inf'),
    (lambda: truncation.TopNSigma(1e39), 'top-n-sigma n=1e+39, which is inf'),
    (lambda: truncation.TopP(1e-60), 'top-p p=1e-60, which is 0'),
    (lambda: entropy.Epsilon(1 - 1e-12), 'epsilon epsilon=0.999999999999, wh'),
    (lambda: penalties.Frequency(-1e39), 'frequency penalty=-1e+39, which is'),
    (
      lambda: penalties.Presence(np.array([0.0, 1e39])),
      'presence penalty=1e+39 of row 1, which is inf',
    ),
    (lambda: penalties.Repetition(1e39), 'repetition penalty=1e+39, which is'),
    (lambda: penalties.Repetition(1e-60), 'repetition penalty=1e-60, which is'),
    (lambda: dry.Dry(1e39), 'dry multiplier=1e+39, which is inf'),
    (lambda: mirostat.Mirostat(1e39), 'mirostat target=1e+39, which is inf'),
    (lambda: bat.BatSet(eta=1 - 1e-12), 'bat eta=0.999999999999, which is 1'),
    (lambda: constraints.Bias((1,), (1e39,)), 'bias value=1e+39 of row 0, wh'),
    (lambda: constraints.Bias((1,), (-1e39,)), 'bias value=-1e+39 of row 0, w'),
  ],
)
def test_what_float32_does_not_hold_is_named(make, words):
  with pytest.raises(ValueError, match=re.escape(words)) as caught:
    make()
  assert re.search(r'in float32, must (be|lie) .*;', str(caught.value))


@pytest.mark.parametrize(
  'rule',
  [
    truncation.Temperature(3e38),
    truncation.TopNSigma(3e38),
    penalties.Repetition(3e38),
    penalties.Frequency(3e38, prompt=True),
    penalties.Frequency(-3e38, prompt=True),
    penalties.Presence(3e38, prompt=True),
    dry.Dry(3e38, allowed=1),
    mirostat.Mirostat(3e38),
  ],
  ids=lambda rule: type(rule).__name__,
)
def test_the_largest_knobs_leave_a_law(rule):
  sampler = chain.Chain((rule,))
  prompt_BT = jnp.array([[3, 4, 3, 4, 3, 4]])
  memory = sampler.init(history.Prompt(prompt_BT, jnp.array([6]), 1, V))
  logits_BV = jnp.array([[0.0, -0.0, 1, 2, -2, 3e38, -3e38, 5, -np.inf]])
  keys_B = jax.random.split(jax.random.key(0), 1)
  result_BV = np.asarray(sampler.transform(keys_B, logits_BV, memory))
  assert not np.isnan(result_BV).any()
  assert np.isfinite(result_BV.max())


@pytest.mark.parametrize(
  'rule, words',
  [
    (truncation.Temperature(np.ones(3)), 'temperature .* (3,) .* 4'),
    (truncation.TopK(np.ones(8, int)), 'TopK k .* (8,) .* 4 rows; give'),
    (truncation.TopP(np.ones((2, 2))), 'TopP p .* (2, 2) .* one per row'),
    (truncation.TopP(0.5, min_keep=np.ones(2, int)), 'TopP min_keep .* (2,)'),
    (truncation.MinP((0.1, 0.2)), 'MinP m .* (2,)'),
    (mirostat.Mirostat(np.ones(3)), 'Mirostat target .* (3,)'),
    (penalties.Repetition(1.1, window=np.ones(2, int)), 'window .* (2,)'),
    (constraints.Deny(np.ones((3, 2), int)), 'Deny ids .* (3, 2) .* [B, M]'),
    (
      constraints.Bias(np.ones((1, 2), int), np.ones((3, 2))),
      'Bias values .* (3, 2)',
    ),
  ],
)
@pytest.mark.parametrize('is_jitted', [False, True])
def test_values_of_other_rows_are_named(rule, words, is_jitted):
  def draw(sampler):
    lengths_B = jnp.ones(4, jnp.int32)
    prompt = history.Prompt(jnp.ones((4, 1), jnp.int32), lengths_B, 1, V)
    keys_B = jax.random.split(jax.random.key(0), 4)
    return sampler.transform(keys_B, jnp.zeros((4, V)), sampler.init(prompt))

  if is_jitted:
    draw = jax.jit(draw)
  words = '.*'.join(map(re.escape, words.split('.*')))
  with pytest.raises(ValueError, match=words):
    draw(chain.Chain((rule,)))


def test_ids_are_one_leaf_and_share_compilations():
  texts = ('deny(0-4)', 'deny(1-7)', 'bias(0-4:-inf)', 'bias(1-6:-1 7:2 8:1)')
  draw = jax.jit(lambda sampler, logits_BV: sampler.rules[0](logits_BV))
  logits_BV = jnp.tile(jnp.arange(float(V)), (2, 1))
  for text in texts:
    rule = chain.parse(text).rules[0]
    leaves = jax.tree.leaves(rule)
    assert [np.shape(leaf) for leaf in leaves] == [(1, 8)] * len(leaves)
    np.testing.assert_array_equal(
      draw(chain.parse(text), logits_BV), rule(logits_BV)
    )
  assert draw._cache_size() == 2
  many = chain.parse('allow(4-32000)|xtc(0.5, exempt=3)')
  assert len(jax.tree.leaves(many)) == 4
  again = jax.tree.map(jnp.asarray, many)
  assert np.asarray(again.rules[0].ids).max() == 32000
  with pytest.raises(ValueError, match='is no id of a vocabulary of 32000'):
    constraints.check(again.rules, 32000)


@pytest.mark.parametrize('values', [(1.0, 2.0, -3.0), np.array([1.0, 2, -3])])
@pytest.mark.parametrize('ids', [(1, 2, 4), np.array([1, 2, 4])])
def test_biases_are_given_as_tuples_or_arrays(ids, values):
  rule = constraints.Bias(ids, values)
  logits_BV = jnp.zeros((2, V))
  expected_BV = np.zeros((2, V))
  expected_BV[:, [1, 2, 4]] = [1, 2, -3]
  for call in (lambda r, x: r(x), jax.jit(lambda r, x: r(x))):
    np.testing.assert_array_equal(call(rule, logits_BV), expected_BV)
  with pytest.raises(ValueError, match='bias has 3 ids and 2 values'):
    constraints.Bias(ids, values[:2])


def test_one_value_per_row_or_one_for_all_is_fine():
  keys_B = jax.random.split(jax.random.key(0), 4)
  logits_BV = jnp.tile(jnp.arange(float(V)), (4, 1))
  for rule in (
    truncation.TopK(np.array([2])),
    truncation.TopK(np.full(4, 2)),
    truncation.TopK((2, 2, 2, 2)),
    constraints.Deny(np.arange(7)),
    constraints.Deny(np.tile(np.arange(7), (4, 1))),
    constraints.Deny(np.arange(7)[None]),
  ):
    result_BV = chain.Chain((rule,)).transform(keys_B, logits_BV, ())
    np.testing.assert_array_equal(np.sum(result_BV > -np.inf, axis=1), 2)
