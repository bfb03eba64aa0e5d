"""BAT as a rule: what it draws, keeps and refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from scipy import stats

from configs import output_layer
from models import linear
from samplers import bat
from samplers import chain
from samplers import loop
from samplers import support
from tests.models import small_lm

V, C = 30, 4
rng = np.random.default_rng(4)
BASIS = support.columns(rng.normal(size=(V, 8)), C)
logits_V = (1.5 * rng.normal(size=V)).astype(np.float32)
p_V = special.softmax(logits_V)
KEYS = jax.random.split(jax.random.key(0), 20_000)


@jax.jit
def draw(sampler, keys_B, logits_BV):
  return sampler(keys_B, logits_BV)


@jax.jit
def keep(sampler, logits_BV):
  return sampler.transform(None, logits_BV, ()) > -jnp.inf


def made(rule, **fields):
  return chain.Chain((rule(basis_VC=BASIS, **fields),))


@jax.jit
def decide(t):
  return support.decide(
    support.whiten(BASIS, jnp.tile(p_V, (V, 1))),
    jnp.arange(V),
    jnp.full((V, 1), t, jnp.float32),
    jnp.ones(V, bool),
  )


def expected_set(t):
  """By one decision after the other."""
  return np.asarray(decide(np.float32(t))) != support.REJECTED


def thresholds():
  entropy = special.entr(p_V).sum()
  order = np.argsort(-p_V)
  crossing = order[np.searchsorted(np.cumsum(p_V[order]), 0.5)]
  return {
    'epsilon': (0.03, 0.03),
    'eta': (0.2, min(0.2, np.sqrt(0.2) * np.exp(-entropy))),
    'top_p': (0.5, p_V[crossing]),
    'top_k': (4, np.sort(p_V)[-4]),
  }


@pytest.mark.parametrize('name', thresholds())
def test_set_is_what_is_certified_at_each_threshold(name):
  value, t = thresholds()[name]
  kept_V = np.asarray(keep(made(bat.BatSet, **{name: value}), logits_V[None]))
  expected_V = expected_set(t * (1 - 1e-6))
  np.testing.assert_array_equal(kept_V[0], expected_V)
  # Ids on both sides of the threshold, some below it and some not.
  assert (p_V >= t).sum() < expected_V.sum() < V


@pytest.mark.parametrize('tries', [1, V])
def test_draws_follow_the_law_on_the_certified_set(tries):
  sampler = made(bat.Bat, epsilon=0.03, tries=tries)
  token_B = draw(sampler, KEYS, np.tile(logits_V, (len(KEYS), 1)))
  kept_V = expected_set(0.03)
  assert np.sum(~kept_V) > 0 and np.any(p_V[kept_V] < 0.03)
  law_V = np.where(kept_V, p_V, 0.0).astype(np.float64)
  if tries == 1:  # Then it takes the best.
    law_V[np.argmax(p_V)] += 1 - law_V.sum()
  expected_V = law_V / law_V.sum() * len(KEYS)
  counts_V = np.bincount(np.asarray(token_B), minlength=V)
  assert counts_V[law_V == 0].sum() == 0
  some_V = law_V > 0
  assert expected_V[some_V].min() > 5
  assert stats.chisquare(counts_V[some_V], expected_V[some_V]).pvalue > 1e-3


def test_rows_do_not_depend_on_neighbours_and_may_differ_in_their_threshold():
  logits_BV = (rng.normal(size=(6, V)) * 1.5).astype(np.float32)
  keys_B = KEYS[:6]
  fields = {
    'epsilon': np.array([0.05, 0, 0, 0, 0, 0.2], np.float32),
    'top_k': np.array([0, 2, 0, 5, 0, 0]),
    'top_p': np.array([1, 1, 0.3, 1, 1, 1], np.float32),
    'tries': np.array([10, 10, 3, 1, 10, 10]),
  }
  together_B = np.asarray(draw(made(bat.Bat, **fields), keys_B, logits_BV))
  keys = np.asarray(jax.random.key_data(keys_B))
  for row in range(6):
    # Six of it are as good as one, and no other program.
    one = {name: np.repeat(value[row], 6) for name, value in fields.items()}
    alone_B = draw(
      made(bat.Bat, **one),
      jax.random.wrap_key_data(np.tile(keys[row], (6, 1))),
      np.tile(logits_BV[row], (6, 1)),
    )
    np.testing.assert_array_equal(alone_B, together_B[row])
  # Row 4 has none, and is left as it is.
  del fields['tries']
  kept_BV = np.asarray(keep(made(bat.BatSet, **fields), logits_BV))
  assert kept_BV[4].all() and not kept_BV[0].all()


def test_one_compilation_for_all_values():
  draw.clear_cache()
  logits_BV = np.tile(logits_V, (2, 1))
  for fields in ({'eta': 0.1}, {'top_p': 0.5, 'tries': 3}, {'top_k': 9}):
    draw(made(bat.Bat, **fields), KEYS[:2], logits_BV)
  assert draw._cache_size() == 1


SMALL = small_lm.lm.ByteLM(**small_lm.SIZES | {'layers': 1})


@pytest.mark.parametrize(
  'fields',
  [{}, {'tie_head': True}, {'linear': linear.Roles(head=linear.Dense())}],
  ids=str,
)
def test_output_layer_gives_the_logits(fields):
  model = SMALL.clone(**fields)
  params = small_lm.draw(model)

  @jax.jit
  def apply(params, ids_BT):
    return model.apply({'params': params}, ids_BT, mutable=['intermediates'])

  (logits_BTV, _), kept = jax.device_get(apply(params, small_lm.ids(1, 5)))
  (hidden_BTD,) = kept['intermediates']['final']
  output_VD = np.asarray(output_layer.find(model, params))
  np.testing.assert_allclose(
    logits_BTV[0], hidden_BTD[0] @ output_VD.T, atol=1e-4
  )


def test_a_model_decodes_with_it():
  model = SMALL
  params = small_lm.draw(model)
  sampler = chain.parse('bat(eta=0.01, columns=6)')
  rules = bat.attach(sampler.rules, lambda: output_layer.find(model, params))
  assert rules[0].basis_VC.shape == (260, 6)

  def step(params, ids_BT, documents_BT, cache):
    return model.apply({'params': params}, ids_BT, documents_BT, cache)

  state = loop.generate(
    step,
    params,
    model.init_cache(3, 9),
    jnp.full((3, 2), 99, jnp.int32),
    jnp.full(3, 2),
    KEYS[:3],
    chain.Chain(rules),
    num_tokens=7,
  )
  loop.check(state)
  assert np.all(np.asarray(state.length_B) == 7)


def test_the_output_layer_is_asked_for_only_if_needed():
  rules = chain.parse('top_p(0.9)').rules
  assert bat.attach(rules, lambda: 1 / 0) == rules


@pytest.mark.parametrize(
  'text, words',
  [
    ('bat(eta=1)', r'bat eta=1.0 must lie in \[0, 1\); 0 turns it off'),
    ('bat(top_p=0)', r'bat top_p=0.0 must lie in \(0, 1\]'),
    ('bat(top_k=2.5)', 'bat top_k=2.5 must be a whole number'),
    ('bat(eta=0.1, epsilon=0.1)', 'thresholds eta and epsilon; give it one'),
    ('bat(eta=0.1, tries=0)', 'bat tries=0.0 must be a whole number >= 1'),
    ('bat(eta=0.1, columns=0)', 'bat columns=0.0 must be a whole number'),
    ('bat(eta=0.1, basis_VC=3)', 'made from the output layer'),
    ('temperature(2)|bat(eta=0.1)', 'which Temperature before it changes'),
    ('bat(eta=0.1)|top_k(3)', 'TopK behind it has no choice'),
    ('top_k(3)|bat_set(eta=0.1)', 'which TopK before it changes'),
  ],
)
def test_bad_text_is_named(text, words):
  with pytest.raises(ValueError, match=words):
    chain.parse(text)


def test_basis_of_another_vocabulary_is_named():
  with pytest.raises(ValueError, match='basis of 30 ids for logits of 31'):
    keep(made(bat.BatSet, eta=0.1), jnp.zeros((1, V + 1)))
