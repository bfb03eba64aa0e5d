"""Streams and what networks say of them, for networks made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bounds import alphabet
from configs import streams
from configs import sweep
from data import codec

STREAM = streams.Stream('given', (
  np.frombuffer(b'some words', np.uint8),
  np.frombuffer('h\xe9 more'.encode(), np.uint8),
))  # fmt: skip


def evidence(apply):
  return streams.evidence(
    apply, jnp.ones(()), STREAM, alphabet='ascii', window=16, stride=8
  )


def guess(scale, ids_BT, documents_BT):
  """Every id equally likely."""
  del documents_BT
  return scale * jnp.zeros((*ids_BT.shape, codec.VOCABULARY))


def peek(scale, ids_BT, documents_BT):
  """The id that comes next."""
  del documents_BT
  return scale * 9 * jax.nn.one_hot(jnp.roll(ids_BT, -1, 1), codec.VOCABULARY)


def diverge(scale, ids_BT, documents_BT):
  return jnp.nan * guess(scale, ids_BT, documents_BT)


def test_guessing_costs_what_guessing_costs():
  found = evidence(guess)
  kind = alphabet.named('ascii')
  sizes = np.array([len(members) for members in kind.classes])
  np.testing.assert_allclose(
    found.probability_N, sizes[kind.class_of[STREAM.symbols]] / 257, rtol=1e-6
  )
  assert found.bytes == 18
  # The two bytes of the accent are among 158 that share a class.
  assert found.spelling_bits == pytest.approx(2 * np.log2(sizes[-1]))


def test_network_that_sees_what_it_predicts_is_refused():
  with pytest.raises(ValueError, match='sees what it predicts'):
    evidence(peek)


def test_network_of_nan_is_refused():
  with pytest.raises(ValueError, match='gives NaN on stream given'):
    evidence(diverge)


def test_prefix_counts_its_own_symbols():
  found = evidence(guess)
  # Of 20: ten bytes, an end, h and the first half of the accent.
  part = sweep.prefix(found, STREAM, 13 / 20, 'ascii')
  assert len(part.probability_N) == 13
  assert part.bytes == 12
  assert part.spelling_bits == pytest.approx(found.spelling_bits / 2)
  np.testing.assert_array_equal(part.rank_N, found.rank_N[:13])
