"""Words counted by hand; scores of a model whose law is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import codec
from evals import sample_quality

BYTES = codec.Bytes()


def test_repetition_counts_what_came_before():
  # a b a b a b: the pairs ab, ba, ab, ba, ab, of which two are new.
  assert sample_quality.repetition([b'a b a b a b'], 2) == pytest.approx(3 / 5)
  texts = [b'a b a b a b', b'x+=y_1 x -=y_1']
  # x += y_1 x -= y_1 are x, +, =, y_1, x, -, =, y_1: of seven pairs six.
  expected = (3 / 5 + 1 / 7) / 2
  assert sample_quality.repetition(texts, 2) == pytest.approx(expected)
  assert sample_quality.repetition([b'a', b'']) == 0


def test_distinct_is_over_all_texts():
  texts = [b'a b c', b'a b d']
  assert sample_quality.distinct(texts, 1) == pytest.approx(4 / 6)
  assert sample_quality.distinct(texts, 2) == pytest.approx(3 / 4)
  assert np.isnan(sample_quality.distinct(texts, 4))


def by_last(params, ids_BT, documents_BT):
  """The id after an id i is i + 1 with chance p, and else any other alike."""
  del documents_BT
  log_p, log_rest = jnp.log(params), jnp.log((1 - params) / 259)
  is_next = jax.nn.one_hot(ids_BT + 1, 260, dtype=bool)
  return jnp.where(is_next, log_p, log_rest)


def test_score_is_that_of_the_texts_and_not_of_their_prompts():
  p, q = 0.5, 0.5 / 259
  texts = [b'bcd', b'b', b'bz' * 40]
  found = sample_quality.score(
    by_last, jnp.float32(p), BYTES, [b'xa', b'a', b'a'], texts
  )
  of_each = [-3 * np.log2(p), -np.log2(p), -np.log2(p) - 79 * np.log2(q)]
  sizes = np.array([3, 1, 80])
  mean = sum(of_each) / 84
  assert found.bits_per_byte == pytest.approx(mean, rel=1e-5)
  assert found.perplexity == pytest.approx(2**mean, rel=1e-4)
  residual = np.array(of_each) - mean * sizes
  error = np.sqrt(3 / 2 * np.sum(residual**2)) / 84
  assert found.error == pytest.approx(error, rel=1e-4)
  # More rows than are scored at a time, and one alone.
  many = sample_quality.score(
    by_last, jnp.float32(p), BYTES, [b'a'] * 20, [b'b'] * 20
  )
  assert many.bits_per_byte == pytest.approx(1)
  one = sample_quality.score(by_last, jnp.float32(p), BYTES, [b''], [b'b'])
  assert np.isnan(one.error) and one.bits_per_byte > 8


def test_nothing_to_score_is_named():
  with pytest.raises(ValueError, match='the 2 samples have no byte to score'):
    sample_quality.score(by_last, 0.5, BYTES, [b'a'] * 2, [b'', b''])
