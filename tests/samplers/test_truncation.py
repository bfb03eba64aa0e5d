"""Truncation rules against a sorting reference in float64."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from samplers import truncation


@jax.jit
def apply(rule, logits_BV):
  return rule(logits_BV)


def kept(rule, logits_BV):
  """The kept set; what is kept must be unchanged, the rest -inf."""
  logits_BV = np.asarray(logits_BV, np.float32)
  result_BV = np.asarray(apply(rule, logits_BV))
  kept_BV = result_BV == logits_BV
  np.testing.assert_array_equal(result_BV[~kept_BV], -np.inf)
  return kept_BV & (logits_BV > -np.inf)


def top_k_reference(logits_V, k):
  finite_V = logits_V > -np.inf
  if not 0 < k < len(logits_V):
    return finite_V
  return finite_V & (logits_V >= np.sort(logits_V)[-k])


def top_p_reference(logits_V, p, slack=0.0):
  """Whole tie groups from the largest until their mass reaches p - slack."""
  logits_V = logits_V.astype(np.float64)
  weights_V = np.exp(logits_V - logits_V.max())
  weights_V /= weights_V.sum()
  keep_V = np.zeros(len(logits_V), bool)
  for value in np.unique(logits_V[logits_V > -np.inf])[::-1]:
    keep_V |= logits_V == value
    if weights_V[keep_V].sum() >= p - slack:
      break
  return keep_V


def families(size):
  rng = np.random.default_rng(size)
  gauss = rng.normal(size=size) * 3
  holes = np.where(rng.random(size) < 0.7, -np.inf, gauss)
  holes[size // 2] = 0.0
  one = np.full(size, -np.inf)
  one[size // 3] = 2.5
  return {
    'gauss': gauss,
    'ties': np.round(gauss),
    'signed_zeros': np.where(rng.random(size) < 0.5, -0.0, 0.0),
    'peaked': np.where(np.arange(size) == 7, 40.0, gauss),
    'flat': np.full(size, -3.0),
    'holes': holes,
    'one': one,
    'huge': gauss * 1e30,
    'negative': gauss - 1000.0,
  }


FAMILIES = ('gauss', 'ties', 'signed_zeros', 'peaked', 'flat', 'holes', 'one')
FAMILIES += ('huge', 'negative')


@pytest.mark.parametrize('size', [260, 1000])
@pytest.mark.parametrize('family', FAMILIES)
def test_top_k_equals_sorting(family, size):
  logits_V = families(size)[family].astype(np.float32)
  ks = np.array([1, 2, 3, 40, size // 2, size - 1, size, size + 5, 0])
  logits_BV = np.broadcast_to(logits_V, (len(ks), size))
  expected_BV = np.stack([top_k_reference(logits_V, k) for k in ks])
  kept_BV = kept(truncation.TopK(jnp.asarray(ks)), logits_BV)
  np.testing.assert_array_equal(kept_BV, expected_BV)


@pytest.mark.parametrize('size', [260, 1000])
@pytest.mark.parametrize('family', FAMILIES)
def test_top_p_equals_sorting(family, size):
  logits_V = families(size)[family].astype(np.float32)
  ps = np.array([1e-9, 0.013, 0.1, 0.37, 0.9, 0.953, 0.999, 1.0], np.float32)
  logits_BV = np.broadcast_to(logits_V, (len(ps), size))
  kept_BV = kept(truncation.TopP(jnp.asarray(ps)), logits_BV)
  for kept_V, p in zip(kept_BV[:-1], ps[:-1], strict=True):
    np.testing.assert_array_equal(kept_V, top_p_reference(logits_V, float(p)))
  np.testing.assert_array_equal(kept_BV[-1], logits_V > -np.inf)


rows = functools.partial(
  hnp.arrays,
  np.float32,
  elements=st.one_of(
    st.integers(-4, 4).map(float),
    st.floats(-50, 50, width=32, allow_subnormal=False),
    st.just(-np.inf),
  ),
)


@hypothesis.settings(max_examples=150)
@hypothesis.given(rows((40,)), st.integers(1, 45))
def test_top_k_equals_sorting_on_anything(logits_V, k):
  hypothesis.assume(logits_V.max() > -np.inf)
  kept_BV = kept(truncation.TopK(jnp.array([k])), logits_V[None])
  np.testing.assert_array_equal(kept_BV[0], top_k_reference(logits_V, k))


@hypothesis.settings(max_examples=150)
@hypothesis.given(rows((40,)), st.floats(2**-7, 1 - 2**-7, width=32))
def test_top_p_equals_sorting_on_anything(logits_V, p):
  hypothesis.assume(logits_V.max() > -np.inf)
  # Where the mass at the boundary equals p, float32 may decide either way.
  loose_V = top_p_reference(logits_V, p, slack=1e-6)
  strict_V = top_p_reference(logits_V, p, slack=-1e-6)
  kept_V = kept(truncation.TopP(jnp.array([p])), logits_V[None])[0]
  assert np.all(loose_V <= kept_V)
  assert np.all(kept_V <= strict_V)


def test_top_p_keeps_the_token_that_reaches_the_mass_exactly():
  logits_BV = np.log([[0.125, 0.5, 0.125, 0.25]])
  kept_BV = kept(truncation.TopP(0.75 - 2**-12), logits_BV)
  np.testing.assert_array_equal(kept_BV, [[False, True, False, True]])
  kept_BV = kept(truncation.TopP(0.75 + 2**-12), logits_BV)
  np.testing.assert_array_equal(kept_BV, [[True, True, True, True]])


@pytest.mark.parametrize(
  'rule',
  [
    truncation.Temperature(1.0),
    truncation.TopK(0),
    truncation.TopK(260),
    truncation.TopP(1.0),
  ],
)
def test_neutral_knob_is_a_bit_exact_no_op(rule):
  for logits_V in families(260).values():
    logits_BV = logits_V.astype(np.float32)[None]
    result_BV = np.asarray(apply(rule, logits_BV))
    np.testing.assert_array_equal(
      result_BV.view(np.uint32), logits_BV.view(np.uint32)
    )


def test_row_of_nothing_but_minus_infinity_stays_free_of_nan():
  logits_BV = np.full((1, 260), -np.inf, np.float32)
  for rule in (
    truncation.Temperature(0.5),
    truncation.Temperature(0.0),
    truncation.TopK(3),
    truncation.TopP(0.5),
  ):
    np.testing.assert_array_equal(apply(rule, logits_BV), logits_BV)


def test_temperature_divides():
  logits_BV = np.array([[1.0, -2.0, -np.inf], [3.0, 0.5, 0.25]], np.float32)
  result_BV = apply(truncation.Temperature(jnp.array([0.5, 4.0])), logits_BV)
  np.testing.assert_array_equal(
    result_BV, logits_BV / np.array([[0.5], [4.0]], np.float32)
  )


def test_low_temperature_keeps_the_order_of_huge_logits():
  logits_BV = np.array(
    [[-3.4e38, -2e38, -3e38], [3e38, 2.5e38, -3e38]], np.float32
  )
  result_BV = np.asarray(apply(truncation.Temperature(0.5), logits_BV))
  np.testing.assert_allclose(
    result_BV,
    [[-2.8e38, 0.0, -2e38], [0.0, -1e38, -np.inf]],
    rtol=1e-5,
  )


def test_zero_temperature_keeps_the_first_argmax_only():
  logits_BV = np.array([[0.0, 2.0, 1.0, 2.0], [0.0, 2.0, 1.0, 2.0]], np.float32)
  result_BV = apply(truncation.Temperature(jnp.array([0.0, 2.0])), logits_BV)
  np.testing.assert_array_equal(
    result_BV, [[-np.inf, 2.0, -np.inf, -np.inf], [0.0, 1.0, 0.5, 1.0]]
  )


def test_second_truncation_sees_the_renormalised_rest():
  logits_BV = np.log(np.array([[0.4, 0.3, 0.2, 0.1]], np.float32))
  # After top-k 2 the first token weighs 4/7 > 0.5; before, only 0.4.
  kept_BV = kept(truncation.TopP(0.5), apply(truncation.TopK(2), logits_BV))
  np.testing.assert_array_equal(kept_BV, [[True, False, False, False]])
  kept_BV = kept(truncation.TopP(0.5), logits_BV)
  np.testing.assert_array_equal(kept_BV, [[True, True, False, False]])


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_result_is_float32(dtype):
  logits_BV = jnp.array([[1.0, 2.0, 4.0]], dtype)
  for rule in (
    truncation.Temperature(3.0),
    truncation.TopK(2),
    truncation.TopP(0.9),
  ):
    result_BV = apply(rule, logits_BV)
    assert result_BV.dtype == jnp.float32
    np.testing.assert_array_equal(
      result_BV, apply(rule, logits_BV.astype(jnp.float32))
    )


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: truncation.Temperature(-0.5), 'temperature=-0.5 .* >= 0'),
    (lambda: truncation.Temperature(float('inf')), 'inf must be a finite'),
    (lambda: truncation.Temperature(float('nan')), 'nan must be a finite'),
    (lambda: truncation.TopK(-1), 'k=-1 must be a whole number'),
    (lambda: truncation.TopK(2.5), 'k=2.5 must be a whole number'),
    (lambda: truncation.TopK(float('nan')), 'k=nan must be a whole number'),
    (lambda: truncation.TopK(float('inf')), 'k=inf must be a whole number'),
    (lambda: truncation.TopP(0), r'p=0 must lie in \(0, 1\]'),
    (lambda: truncation.TopP(1.01), r'p=1.01 must lie in \(0, 1\]'),
    (lambda: truncation.TopP(float('nan')), 'p=nan must lie in'),
  ],
)
def test_bad_knobs_are_named(make, words):
  with pytest.raises(ValueError, match=words):
    make()
