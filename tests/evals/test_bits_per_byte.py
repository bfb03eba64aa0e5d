"""Bits per byte against scoring every window of every document alone."""

import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from data import codec
from data import tokens
from evals import bits_per_byte
from models import forward
from models import lm
from models import masks
from models import ngrams
from tests.training import sharded_cases

SIZES = (1, 40, 0, 7, 8, 9, 23, 3, 8, 100)
# Over the bytes 0, 1 and 2, which are ids 4, 5 and 6.
BPE = tokens.Bpe(vocabulary_size=270, merges='4 5,6 6,260 4,261 262')


class Documents(list):
  """Documents with a codec, as a corpus has them."""

  codec = BPE


def make_documents(sizes=SIZES, symbols=256):
  rng = np.random.default_rng(0)
  return [rng.integers(0, symbols, n).astype(np.uint8) for n in sizes]


def uniform(params, ids_BT, documents_BT):
  del params, documents_BT
  return jnp.zeros((*ids_BT.shape, codec.VOCABULARY))


def unigram(params, ids_BT, documents_BT):
  """The same distribution everywhere: a byte's bits do not depend on it."""
  del documents_BT
  return jnp.broadcast_to(params, (*ids_BT.shape, len(params)))


def make_unigram(size=codec.VOCABULARY):
  """Logits over the vocabulary, and the bits of each of its tokens."""
  logits_V = np.random.default_rng(1).normal(0, 2, size)
  log_p_V = logits_V - np.log(np.exp(logits_V).sum())
  return jnp.asarray(logits_V, jnp.float32), -log_p_V[4:] / math.log(2)


def window_of(index, size, window, stride):
  """First and last + 1 id that byte `index` of `size` bytes is scored with."""
  stop = min(window, size)
  while stop <= index:
    stop = min(stop + stride, size)
  return max(stop - window, 0), stop


def score_one_by_one(
  apply, params, documents, *, window, stride, encode=codec.encode
):
  """Bits of every id: each window is a row of its own."""
  score = jax.jit(apply)
  bits = []
  for document in documents:
    ids = np.concatenate([[codec.BOS], encode(document)])
    bits_N = np.zeros(len(ids) - 1)
    for index in range(len(bits_N)):
      start, stop = window_of(index, len(bits_N), window, stride)
      ids_BT = np.zeros((1, window), np.int32)
      documents_BT = np.zeros((1, window), np.int32)
      ids_BT[0, : stop - start] = ids[start:stop]
      documents_BT[0, : stop - start] = 1
      logits_V = np.asarray(
        score(params, ids_BT, documents_BT)[0, index - start], np.float64
      )
      target = ids[index + 1]
      log_z = np.log(np.exp(logits_V - logits_V.max()).sum()) + logits_V.max()
      bits_N[index] = (log_z - logits_V[target]) / math.log(2)
    bits.append(bits_N)
  return bits


@pytest.fixture(scope='module')
def model():
  module = lm.ByteLM(
    vocabulary_size=BPE.vocabulary_size,
    width=16,
    layers=2,
    heads=2,
    key_value_heads=1,
    hidden=16,
    masks=(masks.Causal(window=3), masks.Causal()),
    ngrams=ngrams.NgramEmbedding(sizes=(3,), rows=64),
  )
  params = jax.device_put(sharded_cases.make_params(module))
  return forward.pure(module), params


@pytest.mark.parametrize('stride', [3, 8])
def test_equals_scoring_every_window_alone(model, stride):
  apply, params = model
  documents = make_documents(symbols=3)
  evaluator = bits_per_byte.BitsPerByte(window=8, stride=stride, batch_size=3)
  found = evaluator.run(apply, params, documents)
  bits = score_one_by_one(apply, params, documents, window=8, stride=stride)
  assert found['bytes'] == sum(SIZES)
  assert found['documents'] == len(SIZES) - 1  # One of them is empty.
  np.testing.assert_allclose(
    found['bits_per_byte'], np.concatenate(bits).mean(), rtol=1e-5
  )
  # It matters here how much context there is.
  whole = score_one_by_one(apply, params, documents, window=128, stride=1)
  assert abs(np.concatenate(whole).mean() - found['bits_per_byte']) > 1e-3


def test_documents_within_the_window_have_their_full_context(model):
  apply, params = model
  documents = make_documents((5, 16, 3, 16, 9), symbols=3)
  evaluator = bits_per_byte.BitsPerByte(window=16, stride=1, batch_size=2)
  found = evaluator.run(apply, params, documents)
  bits = score_one_by_one(apply, params, documents, window=16, stride=1)
  np.testing.assert_allclose(
    found['bits_per_byte'], np.concatenate(bits).mean(), rtol=1e-5
  )


@pytest.mark.parametrize('batch_size', [1, 4])
def test_every_byte_is_scored_once(batch_size):
  documents = make_documents()
  logits_V, bits_by_byte = make_unigram()
  evaluator = bits_per_byte.BitsPerByte(
    window=8, stride=5, batch_size=batch_size
  )
  found = evaluator.run(unigram, logits_V, documents)
  bits_N = bits_by_byte[np.concatenate(documents)]
  np.testing.assert_allclose(found['bits_per_byte'], bits_N.mean(), rtol=1e-6)


def test_uniform_model_needs_the_logarithm_of_the_vocabulary():
  found = bits_per_byte.BitsPerByte(window=8, stride=4, batch_size=2).run(
    uniform, None, make_documents()
  )
  assert found['bits_per_byte'] == pytest.approx(math.log2(260), rel=1e-6)
  assert found['bits_per_byte_stderr'] == pytest.approx(0, abs=1e-6)


def test_standard_error_of_equal_documents_is_that_of_a_mean():
  documents = make_documents((32,) * 6)
  logits_V, bits_by_byte = make_unigram()
  found = bits_per_byte.BitsPerByte(window=8, stride=8).run(
    unigram, logits_V, documents
  )
  means_N = [bits_by_byte[document].mean() for document in documents]
  np.testing.assert_allclose(
    found['bits_per_byte_stderr'],
    np.std(means_N, ddof=1) / math.sqrt(6),
    rtol=1e-4,
  )


def test_standard_error_of_a_ratio_agrees_with_the_jackknife():
  rng = np.random.default_rng(3)
  documents = make_documents(rng.integers(20, 60, 200))
  logits_V, bits_by_byte = make_unigram()
  found = bits_per_byte.BitsPerByte(window=64, stride=32).run(
    unigram, logits_V, documents
  )
  sizes_N = np.array([len(document) for document in documents])
  bits_N = np.array([bits_by_byte[document].sum() for document in documents])
  rest_N = (bits_N.sum() - bits_N) / (sizes_N.sum() - sizes_N)
  jackknife = np.sqrt(199 / 200 * np.sum((rest_N - rest_N.mean()) ** 2))
  assert found['bits_per_byte_stderr'] == pytest.approx(jackknife, rel=0.02)


def test_one_document_has_no_standard_error():
  found = bits_per_byte.BitsPerByte(window=8, stride=8).run(
    uniform, None, make_documents((20,))
  )
  assert found['bits_per_byte_stderr'] is None


@pytest.mark.parametrize('limit', [1, 41, 42, 48, 10_000])
def test_max_bytes_scores_a_prefix(limit):
  documents = make_documents()
  logits_V, bits_by_byte = make_unigram()
  found = bits_per_byte.BitsPerByte(window=8, stride=8, batch_size=4).run(
    unigram, logits_V, documents, max_bytes=limit
  )
  stream_N = np.concatenate(documents)[:limit]
  ends = np.cumsum([n for n in SIZES if n])
  assert found['bytes'] == len(stream_N)
  assert found['documents'] == 1 + np.sum(ends[:-1] < limit)
  np.testing.assert_allclose(
    found['bits_per_byte'], bits_by_byte[stream_N].mean(), rtol=1e-6
  )


@pytest.mark.parametrize('stride', [3, 8])
def test_tokens_equal_scoring_every_window_of_ids_alone(model, stride):
  apply, params = model
  documents = Documents(make_documents(symbols=3))
  evaluator = bits_per_byte.BitsPerByte(window=8, stride=stride, batch_size=3)
  found = evaluator.run(apply, params, documents)
  bits = score_one_by_one(
    apply, params, documents, window=8, stride=stride, encode=BPE.encode
  )
  # Fewer ids than bytes, and still the bytes are what is counted.
  assert sum(map(len, bits)) < sum(SIZES) == found['bytes']
  np.testing.assert_allclose(
    found['bits_per_byte'], np.concatenate(bits).sum() / sum(SIZES), rtol=1e-5
  )


@pytest.mark.parametrize('limit', [None, 1, 2, 43, 44, 50, 100])
def test_bits_of_a_document_are_the_sum_over_its_tokens(limit):
  documents = Documents(make_documents(symbols=3))
  logits_V, bits_by_token = make_unigram(BPE.vocabulary_size)
  found = bits_per_byte.BitsPerByte(window=8, stride=5, batch_size=4).run(
    unigram, logits_V, documents, max_bytes=limit
  )
  # A document that is cut is encoded as what is left of it.
  left = sum(SIZES) if limit is None else limit
  bits, sizes = [], []
  for document in documents:
    kept, left = document[:left], max(left - len(document), 0)
    if len(kept):
      bits.append(bits_by_token[BPE.encode(kept) - 4].sum())
      sizes.append(len(kept))
  bits_D, sizes_D = np.array(bits), np.array(sizes)
  mean = bits_D.sum() / sizes_D.sum()
  assert found['bytes'] == sizes_D.sum()
  assert found['documents'] == len(sizes_D)
  assert found['bits_per_byte'] == pytest.approx(mean, rel=1e-6)
  if len(sizes_D) > 1:
    spread = np.std(bits_D - mean * sizes_D, ddof=1) * len(sizes_D) ** 0.5
    assert found['bits_per_byte_stderr'] == pytest.approx(
      spread / sizes_D.sum(), rel=1e-5
    )


def test_byte_codec_of_a_corpus_changes_nothing(model):
  class Corpus(list):
    codec = codec.Bytes()

  apply, params = model
  documents = make_documents(symbols=3)
  evaluator = bits_per_byte.BitsPerByte(window=8, stride=3, batch_size=3)
  plain = evaluator.run(apply, params, documents)
  assert evaluator.run(apply, params, Corpus(documents)) == plain
  assert evaluator.run(apply, params, Documents(documents)) != plain


@hypothesis.given(
  sizes=st.lists(st.integers(0, 70), max_size=12),
  window=st.integers(1, 20),
  data=st.data(),
)
def test_pieces_and_rows(sizes, window, data):
  stride = data.draw(st.integers(1, window))
  evaluator = bits_per_byte.BitsPerByte(window=window, stride=stride)
  pieces = list(evaluator._pieces(np.array(sizes, int)))
  scored = [
    (piece.document, index)
    for piece in pieces
    for index in range(piece.score_from, piece.stop)
  ]
  expected = [(d, i) for d, n in enumerate(sizes) for i in range(n)]
  assert sorted(scored) == expected
  for piece in pieces:
    assert 0 <= piece.start <= piece.score_from < piece.stop
    assert piece.stop - piece.start <= window
    context = piece.score_from - piece.start
    assert piece.start == 0 or context >= window - stride
  rows = bits_per_byte.pack(iter(pieces), window)
  assert sorted(piece for row in rows for piece in row) == sorted(pieces)
  fill = [sum(piece.stop - piece.start for piece in row) for row in rows]
  assert all(0 < total <= window for total in fill)
  # First fit leaves at most one row that is half empty.
  assert sum(2 * total <= window for total in fill) <= 1


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'stride': 0}, r'stride=0 must be in 1\.\.window=512'),
    ({'stride': 513}, r'stride=513 must be in 1\.\.window=512'),
    ({'batch_size': 0}, 'batch_size=0 at least 1'),
  ],
)
def test_bad_fields_are_named(fields, words):
  with pytest.raises(ValueError, match=words):
    bits_per_byte.BitsPerByte(**fields)


@pytest.mark.parametrize('sizes', [(), (0, 0)])
def test_nothing_to_score_is_refused(sizes):
  with pytest.raises(ValueError, match='no byte to score; choose another'):
    bits_per_byte.BitsPerByte().run(uniform, None, make_documents(sizes))
