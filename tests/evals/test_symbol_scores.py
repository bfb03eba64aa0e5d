"""Scores of symbols against a softmax in float64, one document at a time."""

import jax
import numpy as np
import pytest

from bounds import alphabet
from evals import symbol_scores
from models import forward
from models import lm
from models import masks
from tests.models import small_lm

MODEL = lm.ByteLM(
  width=16, layers=1, heads=2, key_value_heads=1, hidden=16,
  masks=(masks.Causal(window=8),),
)  # fmt: skip
APPLY = forward.pure(MODEL)
PARAMS = small_lm.draw(MODEL)
RUN = jax.jit(APPLY)
RNG = np.random.default_rng(0)
TEXTS = [
  np.frombuffer(b'some words, some more words, and more', np.uint8),
  np.frombuffer('h\xe9 \x00'.encode(), np.uint8),
  np.zeros(0, np.uint8),
]
KIND = alphabet.ALPHABETS['ascii']
SIZES = {'window': 16, 'stride': 8, 'batch_size': 2}


def scored(texts, kind=KIND, **sizes):
  return symbol_scores.scores(
    APPLY, PARAMS, texts, classes=kind.classes, **SIZES | sizes
  )


def brute(text, start, stop):
  """float64 class probabilities after ids[start:stop] of BOS and bytes."""
  ids = np.concatenate([[1], text.astype(np.int32) + 4])[start:stop]
  row = np.pad(ids, (0, 16 - len(ids)))[None]
  logits_BTV = RUN(PARAMS, row, np.ones((1, 16), np.int32))
  logits = np.asarray(logits_BTV, np.float64)[0, len(ids) - 1]
  p = np.exp(logits[[*range(4, 260), 2]])
  p_C = np.bincount(KIND.class_of, p)
  return p_C / p_C.sum()


def test_probability_entropy_and_rank():
  found = scored(TEXTS)
  place = 0
  for text in TEXTS:
    for index in range(len(text) + 1):
      stop = index + 1
      # The window a symbol is first read in: it ends at 16, 24, 32, ...
      end = 16 if stop <= 16 else -(-stop // 8) * 8
      p_C = brute(text, max(end - 16, 0), stop)
      true = KIND.class_of[text[index] if index < len(text) else alphabet.END]
      assert found.probability_N[place] == pytest.approx(p_C[true], rel=1e-4)
      entropy = -(p_C * np.log2(p_C)).sum()
      assert found.entropy_N[place] == pytest.approx(entropy, rel=1e-4)
      assert found.rank_N[place] == (p_C > p_C[true] * (1 + 1e-5)).sum()
      place += 1
  assert place == len(found.probability_N)


def test_probabilities_of_all_classes_sum_to_one():
  ids_BT = RNG.integers(4, 260, (1, 8)).astype(np.int32)
  documents_BT = np.ones((1, 8), np.int32)
  total = sum(
    symbol_scores.score(
      APPLY, PARAMS, ids_BT, documents_BT, np.full((1, 8), c, np.int32),
      KIND.classes,
    )[0]
    for c in range(KIND.size)
  )  # fmt: skip
  np.testing.assert_allclose(total, 1, atol=1e-12)


def test_later_bytes_change_no_bit_of_earlier_scores():
  changed = [text.copy() for text in TEXTS]
  changed[0][20:] = RNG.integers(256, size=len(TEXTS[0]) - 20)
  for one, other in zip(scored(TEXTS), scored(changed), strict=True):
    np.testing.assert_array_equal(one[:20], other[:20])
    assert (one[20:30] != other[20:30]).any()


def test_the_end_of_a_document_changes_nothing_before_it():
  # 17 to 37 symbols: the last window ends at each of its places in turn.
  whole = scored(TEXTS[:1])
  for size in range(16, len(TEXTS[0])):
    cut = scored([TEXTS[0][:size]])
    for one, other in zip(cut, whole, strict=True):
      np.testing.assert_allclose(one[:size], other[:size], rtol=1e-5)


def test_gradient_measure_agrees_with_scores():
  ids_BT = np.concatenate([[1], TEXTS[0].astype(np.int32) + 4])[None, :16]
  targets_BT = TEXTS[0].astype(np.int32)[None, :16] + 4
  documents_BT = np.ones((1, 16), np.int32)
  logits_BTV = RUN(PARAMS, ids_BT, documents_BT)
  measure = jax.jit(symbol_scores.measure(KIND.classes))
  p_BT, entropy_BT = jax.device_get(measure(logits_BTV, targets_BT))
  found = scored(TEXTS)
  np.testing.assert_allclose(p_BT[0], found.probability_N[:16], rtol=1e-4)
  np.testing.assert_allclose(entropy_BT[0], found.entropy_N[:16], rtol=1e-4)
  end_BT = np.full((1, 16), 2, np.int32)
  end = measure(logits_BTV, end_BT)[0]
  probability = symbol_scores.score(
    APPLY, PARAMS, ids_BT, documents_BT,
    np.full((1, 16), KIND.class_of[alphabet.END]), KIND.classes,
  )[0]  # fmt: skip
  np.testing.assert_allclose(end, probability, rtol=1e-4)
