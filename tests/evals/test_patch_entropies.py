"""Windows of long documents give what reading all of them at once gives."""

import functools

import jax
import numpy as np
import pytest

from data import codec
from data import packing
from data import text
from evals import patch_entropies
from models import forward
from models import lm
from models import masks
from models import ngram_entropy
from models import patched
from training import annotations

LM = patched.LMEntropy(
  lm.ByteLM(
    width=16,
    layers=2,
    heads=2,
    key_value_heads=1,
    hidden=16,
    masks=(masks.Causal(window=5),),
  )
)
NGRAMS = ngram_entropy.NgramEntropy(sizes=(1, 2, 4), rows=512)
TEXTS = [b'the cat sat on the mat and more', b'', b'x', b'\x00\xff' * 9]


@functools.cache
def drawn(scorer):
  """Parameters that make entropies differ much."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
    scorer.init, jax.random.key(0), np.ones((1, 8), np.int32)
  )
  low = 0.1 if scorer == NGRAMS else -1
  return jax.tree.map(
    lambda x: rng.uniform(low, 1, x.shape).astype(np.float32), shapes['params']
  )


@functools.cache
def alone(scorer):
  """Entropies of the documents, a whole one per row."""
  measure = jax.jit(forward.pure(scorer))
  found = []
  for document in TEXTS:
    ids_T = np.array([codec.BOS, *codec.encode(document), codec.EOS], np.int32)
    ids_1T = np.pad(ids_T, (0, 40 - len(ids_T)))[None]
    documents_1T = (np.arange(40)[None] < len(ids_T)).astype(np.int32)
    nats_1T = measure(drawn(scorer), ids_1T, documents_1T)
    found.append(np.asarray(nats_1T)[0, : len(ids_T)])
  return np.concatenate(found)


@pytest.mark.parametrize(
  ('scorer', 'context'),
  [(LM, 10), (NGRAMS, 4)],
  ids=['lm', 'ngrams'],
)
@pytest.mark.parametrize('window', [3, 100])
def test_entropies_are_those_of_whole_documents(scorer, context, window):
  params = drawn(scorer)
  ids_N, documents_N = patch_entropies.stream(TEXTS)
  said = []
  found_N = patch_entropies.entropies(
    forward.pure(scorer), params, ids_N, documents_N,
    window=window, context=context, progress=said.append,
  )  # fmt: skip
  np.testing.assert_allclose(found_N, alone(scorer), atol=2e-4)
  assert np.ptp(found_N) > 0.2
  assert said[-1] == len(ids_N)
  assert said == sorted(said)


def test_too_little_context_shows():
  # Otherwise the comparison above says nothing about windows.
  params = drawn(NGRAMS)
  ids_N, documents_N = patch_entropies.stream(TEXTS)
  found_N = patch_entropies.entropies(
    forward.pure(NGRAMS), params, ids_N, documents_N, window=7, context=0
  )
  assert np.abs(found_N - alone(NGRAMS)).max() > 1e-2


def test_the_stream_is_that_of_training_and_so_are_the_entropies(tmp_path):
  (tmp_path / 'bytes.bin').write_bytes(b''.join(TEXTS))
  ends = np.cumsum([0] + [len(document) for document in TEXTS])
  np.save(tmp_path / 'offsets.npy', ends.astype(np.int64))
  rows = packing.Rows(text.Corpus(tmp_path), 7)
  ids_N, documents_N = patch_entropies.stream(TEXTS)
  theirs_N, numbers_N = rows.cut(0, rows.stream_length)
  np.testing.assert_array_equal(ids_N, theirs_N)
  np.testing.assert_array_equal(documents_N, numbers_N)
  params = drawn(LM)
  measure = forward.pure(LM)
  kept_N = annotations.annotate(
    measure, params, rows, tmp_path, name='nats', label='lm', context=5
  )
  found_N = patch_entropies.entropies(
    measure, params, ids_N, documents_N, window=7, context=5
  )
  np.testing.assert_allclose(found_N, kept_N, atol=2e-3)


def test_no_text_at_all():
  ids_N, documents_N = patch_entropies.stream([])
  assert (ids_N.shape, documents_N.shape) == ((0,), (0,))
  found_N = patch_entropies.entropies(
    forward.pure(LM), {}, ids_N, documents_N, window=7, context=5
  )
  assert found_N.shape == (0,)
