"""Every stateless rule: float64 references, and what all of them owe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from samplers import constraints
from samplers import entropy
from samplers import truncation
from samplers import xtc

SIZE, ROWS = 260, 8


@jax.jit
def apply_rows(rule, logits_BV):
  return rule(logits_BV)


def apply(rule, logits_BV):
  """What the rule leaves; with knobs of all rows, in programs of ROWS rows."""
  count = len(logits_BV)
  if all(np.ndim(knob) == 0 for knob in jax.tree.leaves(rule)):
    logits_BV = np.resize(logits_BV, (max(count, ROWS), logits_BV.shape[1]))
  return np.asarray(apply_rows(rule, logits_BV))[:count]


@jax.jit
def exclude(rule, logits_BV, excludes_B):
  return rule(logits_BV, excludes_B)


def rows(size=SIZE):
  """Random, tied, flat, peaked, holey, one-hot and huge rows."""
  rng = np.random.default_rng(size)
  gauss = rng.normal(size=size) * 3
  holes = np.where(rng.random(size) < 0.7, -np.inf, gauss)
  holes[size // 2] = 0.0
  one = np.full(size, -np.inf)
  one[size // 3] = 2.5
  tied = np.round(gauss)
  peaked = np.where(np.arange(size) == 7, 30.0, gauss)
  flat = np.full(size, -3.0)
  signs = np.where(rng.random(size) < 0.5, -0.0, 0.0)
  rows = [gauss, tied, flat, peaked, holes, one, signs, gauss * 1e30]
  return np.array(rows, np.float32)


TRUNCATIONS = {
  'top_k': truncation.TopK(3),
  'top_p': truncation.TopP(0.4),
  'min_p': truncation.MinP(0.3),
  'top_n_sigma': truncation.TopNSigma(0.7),
  'typical': entropy.Typical(0.3),
  'epsilon': entropy.Epsilon(0.2),
  'eta': entropy.Eta(0.5),
  'top_h': entropy.TopH(0.4),
  'top_h_of_100': entropy.TopHOfHundred(0.4),
}
NEUTRAL = (
  truncation.Temperature(1.0),
  truncation.TopK(0),
  truncation.TopK(SIZE),
  truncation.TopP(1.0),
  truncation.MinP(0.0),
  truncation.TopNSigma(0.0),
  entropy.Typical(1.0),
  entropy.Epsilon(0.0),
  entropy.Eta(0.0),
  entropy.TopH(1.0),
  entropy.TopHOfHundred(1.0),
  constraints.Bias((3, 4), (0.0, 0.0)),
  constraints.Bias(),
  constraints.Allow(),
  constraints.Deny(),
)


def kept(rule, logits_BV):
  """The kept set; what is kept must be unchanged to the bit."""
  logits_BV = np.asarray(logits_BV, np.float32)
  result_BV = np.asarray(apply(rule, logits_BV))
  kept_BV = result_BV > -np.inf
  np.testing.assert_array_equal(
    result_BV[kept_BV].view(np.uint32), logits_BV[kept_BV].view(np.uint32)
  )
  return kept_BV


@pytest.mark.parametrize('rule', NEUTRAL, ids=lambda r: type(r).__name__)
def test_neutral_value_is_a_bit_exact_no_op(rule):
  logits_BV = rows()
  result_BV = np.asarray(apply(rule, logits_BV))
  np.testing.assert_array_equal(
    result_BV.view(np.uint32), logits_BV.view(np.uint32)
  )


@pytest.mark.parametrize('rule', NEUTRAL[:11], ids=lambda r: type(r).__name__)
def test_neutral_row_beside_a_truncated_one(rule):
  # The neutral value of one row must hold where another row has its own.
  field = next(iter(vars(rule)))
  neutral = getattr(rule, field)
  other = 3 if isinstance(neutral, int) else 0.5
  both = type(rule)(np.array([neutral, other], type(neutral)))
  logits_BV = rows()[[0, 0]]
  result_BV = np.asarray(apply(both, logits_BV))
  np.testing.assert_array_equal(result_BV[0], logits_BV[0])
  assert np.any(result_BV[1] != logits_BV[1])
  alone_BV = apply(type(rule)(other), logits_BV[:1])
  np.testing.assert_array_equal(result_BV[1], alone_BV[0])


@pytest.mark.parametrize('name', TRUNCATIONS)
def test_truncation_is_never_empty_and_keeps_ties_whole(name):
  logits_BV = rows()
  kept_BV = kept(TRUNCATIONS[name], logits_BV)
  assert kept_BV.any(axis=1).all()
  assert not kept_BV[0].all()
  for logits_V, kept_V in zip(logits_BV, kept_BV, strict=True):
    assert not np.intersect1d(logits_V[kept_V], logits_V[~kept_V]).size


@pytest.mark.parametrize('name', TRUNCATIONS)
def test_truncation_follows_a_permutation(name):
  order = np.random.default_rng(1).permutation(SIZE)
  logits_BV = rows()[[0, 1, 4, 7]]
  kept_BV = kept(TRUNCATIONS[name], logits_BV)
  np.testing.assert_array_equal(
    kept(TRUNCATIONS[name], logits_BV[:, order]), kept_BV[:, order]
  )


@pytest.mark.parametrize('name', sorted(set(TRUNCATIONS) - {'top_h_of_100'}))
def test_min_keep_adds_the_best(name):
  rule = TRUNCATIONS[name]
  knob = next(iter(vars(rule).values()))
  logits_BV = rows()[[0, 3]]
  without_BV = kept(rule, logits_BV)
  with_BV = kept(type(rule)(knob, 60), logits_BV)
  np.testing.assert_array_equal(
    kept(type(rule)(knob, 1), logits_BV), without_BV
  )
  assert with_BV.sum(axis=1).tolist() == [60, 60]
  assert not np.any(without_BV & ~with_BV)
  if name != 'typical':
    assert np.all(with_BV >= (logits_BV >= np.sort(logits_BV)[:, -60:-59]))


@pytest.mark.parametrize('name', TRUNCATIONS)
def test_result_is_float32_and_empty_rows_stay(name):
  logits_BV = rows().astype(jnp.bfloat16)
  logits_BV[1] = -np.inf
  result_BV = apply(TRUNCATIONS[name], logits_BV)
  assert result_BV.dtype == jnp.float32
  assert not np.any(np.isnan(result_BV))
  assert np.all(result_BV[1] == -np.inf)
  np.testing.assert_array_equal(
    result_BV, apply(TRUNCATIONS[name], logits_BV.astype(np.float32))
  )


def law(logits_V):
  logits_V = np.asarray(logits_V, np.float64)
  return special.softmax(logits_V[logits_V > -np.inf])


@pytest.mark.parametrize('size', [260, 6000])
@pytest.mark.parametrize('alpha', [0.05, 0.3, 0.7, 0.97])
def test_top_h_adds_the_best_while_the_entropy_fits(size, alpha):
  rng = np.random.default_rng(3)
  logits_BV = rng.normal(size=(3, size)).astype(np.float32) * [[1], [3], [9]]
  logits_BV = logits_BV.astype(np.float32)
  kept_BV = kept(entropy.TopH(alpha), logits_BV)
  for logits_V, kept_V in zip(logits_BV, kept_BV, strict=True):
    p_V = np.sort(law(logits_V))[::-1]
    limit = alpha * special.entr(p_V).sum()
    mass_V = np.cumsum(p_V)
    entropy_V = np.cumsum(special.entr(p_V)) / mass_V + np.log(mass_V)
    count = max(1, np.argmax(entropy_V > limit))
    # Where the entropy is a hair from the limit, float32 may decide.
    assert abs(entropy_V[count] - limit) > 1e-5
    assert kept_V.sum() == count


def test_top_h_is_not_that_of_transformers():
  logits_BV = rows()[:1]
  paper, theirs = entropy.TopH(0.5), entropy.TopHOfHundred(0.5)
  assert kept(paper, logits_BV).sum() != kept(theirs, logits_BV).sum()


def test_top_h_keeps_a_group_of_which_one_token_fits():
  # H of the first alone is 0; with one of the four ties it is 0.56, with all
  # of them 1.33; that of the whole row is 1.55.
  logits_BV = np.log([[0.45, 0.15, 0.15, 0.15, 0.05, 0.05]])
  kept_BV = kept(entropy.TopH(0.5), logits_BV)
  assert kept_BV.sum() == 4
  assert kept(entropy.TopH(0.2), logits_BV).sum() == 1


def test_top_n_sigma_uses_the_population_of_finite_logits():
  logits_BV = rows()[[0, 4]]
  kept_BV = kept(truncation.TopNSigma(1.5), logits_BV)
  for logits_V, kept_V in zip(logits_BV, kept_BV, strict=True):
    finite_V = logits_V[logits_V > -np.inf].astype(np.float64)
    expected_V = logits_V >= finite_V.max() - 1.5 * finite_V.std()
    np.testing.assert_array_equal(kept_V, expected_V)
  # A temperature or a shift before it changes nothing.
  for scale, shift in ((0.1, 0.0), (1e36, 0.0), (1.0, 100.0)):
    again_BV = kept(truncation.TopNSigma(1.5), scale * logits_BV + shift)
    np.testing.assert_array_equal(again_BV, kept_BV)


def test_population_and_sample_deviation_differ_here():
  # Deviation 2 in the population, 2.828 in the sample; the gap is 4.
  logits_BV = np.array([[4.0, 0.0]], np.float32)
  assert kept(truncation.TopNSigma(1.9), logits_BV).sum() == 1
  assert kept(truncation.TopNSigma(2.0), logits_BV).sum() == 2


def test_eta_is_row_wise_and_relative_to_the_entropy():
  logits_BV = np.zeros((2, SIZE), np.float32)
  logits_BV[1, 0] = 20.0
  # Flat: p = exp(-H), and sqrt(0.01) exp(-H) is below it. Peaked: 0.01 is.
  kept_BV = kept(entropy.Eta(0.01), logits_BV)
  assert kept_BV.sum(axis=1).tolist() == [SIZE, 1]
  assert kept(entropy.Epsilon(0.01), logits_BV)[0].all()  # all tie for the best
  logits_BV[0, 0] = 0.1
  assert kept(entropy.Epsilon(0.01), logits_BV).sum(axis=1).tolist() == [1, 1]
  assert kept(entropy.Eta(0.01), logits_BV).sum(axis=1).tolist() == [SIZE, 1]


def test_xtc_keeps_the_least_of_the_top_choices():
  logits_BV = np.log([[0.3, 0.25, 0.25, 0.15, 0.05]] * 3)
  rule = xtc.Xtc(1.0, 0.2, exempt=(0,))
  excludes_B = np.array([True, False, True])
  result_BV = exclude(rule, logits_BV, excludes_B)
  # Both of the least stay, for they tie; the best is exempt.
  assert np.all(np.asarray(result_BV) > -np.inf)
  result_BV = exclude(xtc.Xtc(1.0, 0.2), logits_BV, excludes_B)
  expected_V = [False, True, True, True, True]
  np.testing.assert_array_equal(result_BV[0] > -np.inf, expected_V)
  assert np.all(np.asarray(result_BV[1]) > -np.inf)
  result_BV = exclude(xtc.Xtc(1.0, 0.1, exempt=(1,)), logits_BV, excludes_B)
  expected_V = [False, True, False, True, True]
  np.testing.assert_array_equal(result_BV[2] > -np.inf, expected_V)
  result_BV = exclude(xtc.Xtc(1.0, 0.28), logits_BV, excludes_B)
  assert np.all(np.asarray(result_BV) > -np.inf)


def test_temperature_keeps_huge_logits_apart():
  logits_BV = np.array([[3e38, 2e38, -np.inf, -3e38]], np.float32)
  result_BV = np.asarray(apply(truncation.Temperature(0.01), logits_BV))
  assert np.isfinite(result_BV).any()
  np.testing.assert_array_equal(special.softmax(result_BV), [[1, 0, 0, 0]])


def test_bias_allow_and_deny():
  logits_BV = rows()[[0, 4]]
  ids_BM = np.array([[3, 7, 7], [-1, 9, 5]], np.int32)
  values_BM = np.array([[1.0, 2.0, 0.5], [9.0, -np.inf, 1.0]], np.float32)
  expected_BV = logits_BV.copy()
  expected_BV[0, 3] += 1.0
  expected_BV[0, 7] += 2.5
  expected_BV[1, 9] = -np.inf
  expected_BV[1, 5] += 1.0
  biased_BV = apply(constraints.Bias(ids_BM, values_BM), logits_BV)
  np.testing.assert_array_equal(biased_BV, expected_BV)
  allowed_BV = kept(constraints.Allow((3, 7, SIZE + 5)), rows()[:1])
  assert np.flatnonzero(allowed_BV).tolist() == [3, 7]
  denied_BV = kept(constraints.Deny(ids_BM), rows()[[0, 0]])
  assert np.flatnonzero(~denied_BV[0]).tolist() == [3, 7]
  assert np.flatnonzero(~denied_BV[1]).tolist() == [5, 9]


def test_constraint_that_would_leave_nothing_leaves_the_best():
  logits_BV = rows()[[1, 5]]
  best_BV = logits_BV == logits_BV.max(axis=1, keepdims=True)
  everything = tuple(range(SIZE))
  np.testing.assert_array_equal(
    kept(constraints.Deny(everything), logits_BV), best_BV
  )
  forbid = constraints.Bias(everything, (-np.inf,) * SIZE)
  np.testing.assert_array_equal(kept(forbid, logits_BV), best_BV)
  nowhere = constraints.Allow((SIZE // 3 + 1,))
  np.testing.assert_array_equal(kept(nowhere, logits_BV)[1], best_BV[1])


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: truncation.MinP(1.5), r'm=1.5 must lie in \[0, 1\]'),
    (lambda: truncation.TopNSigma(-1), 'n=-1 must be a finite number >= 0'),
    (lambda: entropy.Typical(0), r'mass=0 must lie in \(0, 1\]'),
    (lambda: entropy.Epsilon(1), r'epsilon=1 must lie in \[0, 1\)'),
    (lambda: entropy.Eta(-0.1), 'eta epsilon=-0.1 must'),
    (lambda: entropy.TopH(2), r'alpha=2 must lie in \(0, 1\]'),
    (lambda: truncation.TopP(0.5, 0), 'min_keep=0 must be a whole number >= 1'),
    (lambda: truncation.TopP(np.array([0.5, 1.5])), 'p=1.5 of row 1 must lie'),
    (lambda: truncation.TopK(jnp.array([3, -2])), 'k=-2 of row 1 must be'),
    (lambda: xtc.Xtc(1.2), 'probability=1.2 must lie'),
    (lambda: constraints.Bias((1, 2), (0.5,)), '2 ids and 1 values'),
    (
      lambda: constraints.Bias((1,), (np.inf,)),
      'inf of row 0 must be a number',
    ),
    (lambda: constraints.Deny((1, -7)), 'deny id=-7 must be a whole number'),
  ],
)
def test_bad_knobs_are_named(make, words):
  with pytest.raises(ValueError, match=words) as caught:
    make()
  assert '\n' not in str(caught.value)
