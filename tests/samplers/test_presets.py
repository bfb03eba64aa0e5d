"""The command-line form of every rule, presets, and contradictions."""

import jax
import numpy as np
import pytest

from samplers import chain
from samplers import constraints
from samplers import dry
from samplers import entropy
from samplers import penalties
from samplers import presets
from samplers import truncation
from samplers import xtc


def test_further_fields_are_given_by_name():
  expected = (
    xtc.Xtc(0.5, threshold=0.2, exempt=(4, 10, 11, 12)),
    truncation.TopP(0.9, min_keep=3),
    penalties.Frequency(0.3, window=64, prompt=True),
    dry.Dry(0.8, allowed=3, breakers=(14,)),
    entropy.Eta(3e-4),
    constraints.Bias((10, 97, 98), (-2.0, 0.5, 0.5)),
    constraints.Deny((0, 1, 2, 3, 255)),
    constraints.MaxLength(40, end=2),
  )
  text = (
    'xtc(0.5, threshold=0.2, exempt=4 10-12) | top_p(0.9,min_keep=3)'
    '|frequency(0.3, window=64, prompt=1)|dry(0.8, allowed=3, breakers=14)'
    '|eta(3e-4)|bias(10:-2 97-98:0.5)|deny(0-3 255)|max_length(40, end=2)'
  )
  parsed = chain.parse(text)
  assert parsed.rules == expected
  assert isinstance(parsed.rules[1].min_keep, int)
  assert hash(parsed) == hash(chain.Chain(expected))


def test_chains_compose():
  first = chain.Chain() | truncation.TopK(4)
  assert first | chain.parse('top_p(0.5)') == chain.parse('top_k(4)|top_p(0.5)')


def names(sampler):
  known = {rule: name for name, rule in presets.RULES.items()}
  return [known[type(rule)] for rule in sampler.rules]


@pytest.mark.parametrize(
  'preset, order',
  [
    ('hf', 'repetition temperature top_k top_p min_p'),
    ('vllm', 'repetition temperature min_p top_k top_p'),
    ('llama.cpp', 'repetition top_k top_p min_p temperature'),
    ('mlx', 'repetition top_p min_p top_k temperature'),
  ],
)
def test_preset_puts_the_rules_in_its_order(preset, order):
  rules = 'min_p(0.1)|temperature(0.8)|top_p(0.9)|repetition(1.1)|top_k(9)'
  assert names(chain.parse(f'{preset}: {rules}')) == order.split()
  written = 'min_p temperature top_p repetition top_k'
  assert names(chain.parse(rules)) == written.split()


def test_orders_keep_different_sets():
  logits_BV = np.log([[0.5, 0.2, 0.15, 0.1, 0.05]]).astype(np.float32)
  keys_B = jax.random.split(jax.random.key(0), 1)
  rules = 'temperature(0.25)|top_p(0.8)'
  kept = {
    preset: int(
      np.sum(
        chain.parse(f'{preset}:{rules}').transform(keys_B, logits_BV, ())
        > -np.inf
      )
    )
    for preset in presets.PRESETS
  }
  # At temperature 1/4 the first weighs 0.96.
  assert kept == {'hf': 1, 'vllm': 1, 'llama.cpp': 3, 'mlx': 3}


def test_preset_brings_its_own_meaning():
  assert chain.parse('hf: top_h(0.4)').rules == (entropy.TopHOfHundred(0.4),)
  assert chain.parse('top_h(0.4)').rules == (entropy.TopH(0.4),)
  with pytest.raises(ValueError, match=r"min_keep=3 does not exist .*'hf'"):
    chain.parse('hf: top_h(0.4, min_keep=3)')


def test_greedy_has_a_place_in_every_preset():
  for preset in presets.PRESETS:
    assert names(chain.parse(f'{preset}: greedy')) == ['temperature']


@pytest.mark.parametrize(
  'text, words',
  [
    ('vlm: top_k(3)', "preset 'vlm' is unknown; did you mean 'vllm'"),
    ('hf: xtc(0.5)', "preset 'hf' has no rule 'xtc'; its rules are bias, "),
    ('hf:', 'not of the form'),
    ('hf: top_k(3)|', 'not of the form'),
    ('tipical(0.9)', "'tipical' is unknown; did you mean 'typical'"),
    ('top_p(0.9, minkeep=2)', "no field 'minkeep'; did you mean 'min_keep'"),
    ('xtc(0.5, 0.1)', 'other fields by name; .* probability, threshold'),
    ('top_k(k=many)', r'needs one number in brackets, as in top_k\(1\)'),
    ('xtc(0.5, exempt=a)', "'a' is no id; write ids as 10 or 97-122"),
    ('deny(9-3)', 'runs backwards; write 3-9'),
    ('bias(10)', "'10' is no bias; write id:value"),
    ('bias(x:1)', "'x' is no id"),
    ('min_length(9, ids=2)|max_length(9, end=2)', 'min_length=9 contradicts'),
    ('allow(3-5)|deny(0-9)', r'leave no id of \[3, 4, 5\]'),
    ('allow(3)|allow(4)', 'leave no id'),
  ],
)
def test_bad_text_is_named(text, words):
  with pytest.raises(ValueError, match=words) as caught:
    chain.parse(text)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: constraints.MaxLength(40), 'max_length=40 needs end, which ends'),
    (
      lambda: constraints.MaxLength(np.array([0, 7]), np.array([-1, -1])),
      'max_length=7 needs end',
    ),
    (
      lambda: constraints.MaxLength(np.array([0, 7, 8]), np.array([4, 4, -1])),
      'max_length=8 needs end',
    ),
    (lambda: constraints.MinLength(40), 'min_length=40 needs ids, which ends'),
    (
      lambda: constraints.MinLength(9, np.array([[3, -1], [-1, -1]])),
      'min_length=9 needs ids',
    ),
    (
      lambda: chain.Chain(
        (
          constraints.MinLength(np.ones(2), (2,)),
          constraints.MaxLength(np.ones(3) * 9, 2),
        )
      ),
      'min_length has 2 rows and max_length 3',
    ),
    (
      lambda: chain.parse(
        'min_length(9, ids=2)|min_length(3, ids=2)|max_length(7, end=2)'
      ),
      'min_length=9 contradicts max_length=7',
    ),
    (
      lambda: chain.Chain(
        (
          constraints.Allow(np.array([[3, 4], [5, -1]])),
          constraints.Deny(np.array([5])),
        )
      ),
      r'leave no id of \[5\]',
    ),
  ],
)
def test_contradictions_are_named(make, words):
  with pytest.raises(ValueError, match=words):
    make()


def test_lengths_that_are_off_need_no_id():
  constraints.MinLength(np.zeros(3))
  constraints.MaxLength(np.array([0, 7]), np.array([-1, 2]))
  constraints.MinLength(np.array([0, 7]), np.array([[-1, -1], [2, -1]]))


def test_presets_bring_their_windows_where_none_is_written():
  text = 'repetition(1.1)|frequency(0.1, window=9)|presence(0.2, prompt=0)'
  for preset, window in (('llama.cpp', 64), ('mlx', 20)):
    assert set(chain.parse(f'{preset}: {text}').rules) == {
      penalties.Repetition(1.1, window, True),
      penalties.Frequency(0.1, 9, True),
      penalties.Presence(0.2, window, False),
    }
  for rules in (chain.parse(text).rules, chain.parse(f'vllm: {text}').rules):
    assert set(rules) == {
      penalties.Repetition(1.1, 0, True),
      penalties.Frequency(0.1, 9, False),
      penalties.Presence(0.2, 0, False),
    }


def test_ids_are_checked_against_a_vocabulary():
  sampler = chain.parse('deny(0-3)|max_length(9, end=255)')
  constraints.check(sampler.rules, 256)
  with pytest.raises(ValueError, match=r'MaxLength end 255 is no id of .* 200'):
    constraints.check(sampler.rules, 200)
  with pytest.raises(ValueError, match='leave no id of'):
    constraints.check(chain.parse('deny(0-9)').rules, 10)
