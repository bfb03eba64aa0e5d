"""Bits by position of a model whose probabilities are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from data import codec
from evals import by_position

V = codec.VOCABULARY


def apply(bits_T, ids_BT, documents_BT):
  """Byte `a` has bits_T after each place, the other ids share the rest."""
  p_T = 2.0 ** -bits_T[: ids_BT.shape[1]]
  logits_TV = jnp.log((1 - p_T) / (V - 1))[:, None].repeat(V, 1)
  logits_TV = logits_TV.at[:, ord('a') + codec.OFFSET].set(jnp.log(p_T))
  return jnp.broadcast_to(logits_TV[None], (*ids_BT.shape, V))


def test_groups_double_and_hold_documents_that_fill_them():
  bits_T = np.concatenate([np.full(8, 1.0), np.full(8, 2.0), np.full(16, 4.0)])
  documents = [np.full(n, ord('a'), np.uint8) for n in (35, 7, 17, 31)]
  evaluator = by_position.BitsByPosition(first=8, longest=32, most=3)
  found = evaluator.run(apply, jnp.asarray(bits_T), documents)
  assert found == {
    'by_position/8/bits_per_byte': pytest.approx(1),
    'by_position/8/bits_per_byte_stderr': pytest.approx(0, abs=1e-6),
    'by_position/8/ratio': 1,
    'by_position/8/documents': 3,
    'by_position/16/bits_per_byte': pytest.approx(2),
    'by_position/16/bits_per_byte_stderr': pytest.approx(0, abs=1e-6),
    'by_position/16/ratio': pytest.approx(2),
    'by_position/16/documents': 3,
    'by_position/32/bits_per_byte': pytest.approx(4),
    'by_position/32/bits_per_byte_stderr': None,
    'by_position/32/ratio': pytest.approx(4),
    'by_position/32/documents': 1,
  }


def test_the_error_is_that_of_the_mean_over_documents():
  texts = [b'a' * 8, b'a' * 6 + b'bb']
  documents = [np.frombuffer(text, np.uint8) for text in texts]
  evaluator = by_position.BitsByPosition(first=8, longest=8)
  found = evaluator.run(apply, jnp.full(8, 1.0), documents)
  other = 1 + np.log2(V - 1)
  each = [1, (6 + 2 * other) / 8]
  assert found['by_position/8/bits_per_byte'] == pytest.approx(np.mean(each))
  spread = np.std(each, ddof=1) / np.sqrt(2)
  assert found['by_position/8/bits_per_byte_stderr'] == pytest.approx(spread)


@pytest.mark.parametrize(
  'fields', [{'first': 0}, {'first': 512, 'longest': 1000}, {'most': 0}]
)
def test_groups_that_do_not_double_are_refused(fields):
  with pytest.raises(ValueError, match='longest='):
    by_position.BitsByPosition(**fields)


def test_a_split_of_short_documents_is_refused():
  evaluator = by_position.BitsByPosition(first=8, longest=8)
  with pytest.raises(ValueError, match='no document'):
    evaluator.run(apply, jnp.ones(8), [np.zeros(7, np.uint8)])
