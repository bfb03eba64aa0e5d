"""Noises by their laws, and their price by hand for models that are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import codec
from data import tokens
from evals import bits_per_byte
from evals import noise
from models import forward
from models import lm
from tests.training import sharded_cases

TEXT = 'Naïve café, 2 km: Groß!\n'
BROKEN = b'ab\xff\xfec\xc3\xa9\xc3'
BPE = tokens.Bpe(vocabulary_size=264, merges='101 102,260 103,36 36,69 70')


class Documents(list):
  codec = BPE


def make(kind, text, seed=0):
  data = text.encode() if isinstance(text, str) else text
  return noise.noised(kind, np.frombuffer(data, np.uint8), seed).tobytes()


def make_documents(sizes=(40, 0, 7, 300, 25, 90)):
  rng = np.random.default_rng(0)
  return [rng.integers(97, 101, n).astype(np.uint8) for n in sizes]


def unigram(params, ids_BT, documents_BT):
  del documents_BT
  return jnp.broadcast_to(params, (*ids_BT.shape, len(params)))


def make_unigram(size=codec.VOCABULARY):
  """Logits over the vocabulary, and the bits of each of its ids."""
  logits_V = np.random.default_rng(1).normal(0, 2, size)
  log_p_V = logits_V - np.log(np.exp(logits_V).sum())
  return jnp.asarray(logits_V, jnp.float32), -log_p_V / math.log(2)


@pytest.mark.parametrize(
  ('kind', 'expected'),
  [
    (noise.UpperCase(), 'NAÏVE CAFÉ, 2 KM: GROSS!\n'),
    (noise.AntSpeak(), ''.join(f'{c} ' for c in 'NAÏVE CAFÉ, 2 KM: GROSS!\n')),
    (noise.Drop(0.0), TEXT),
    (noise.Drop(1.0), ''),
    (noise.Repeat(0.0), TEXT),
    (noise.Repeat(1.0, most=1), ''.join(c * 2 for c in TEXT)),
  ],
)
def test_kinds_without_chance(kind, expected):
  assert make(kind, TEXT).decode() == expected


@pytest.mark.parametrize(
  ('kind', 'expected'),
  [
    (noise.UpperCase(), b'AB\xff\xfeC\xc3\x89\xc3'),
    (noise.AntSpeak(), b'A B \xff \xfe C \xc3\x89 \xc3 '),
    (
      noise.Repeat(1.0, most=1),
      b'aabb\xff\xff\xfe\xfecc\xc3\xa9\xc3\xa9\xc3\xc3',
    ),
  ],
)
def test_bytes_that_are_no_text_stay_what_they_are(kind, expected):
  assert make(kind, BROKEN) == expected


def test_drop_leaves_out_a_tenth_and_keeps_the_order():
  text = ''.join(map(chr, range(0x4E00, 0x4E00 + 20_000)))
  kept = make(noise.Drop(), text).decode()
  assert list(kept) == sorted(kept)
  assert len(set(kept)) == len(kept)
  assert len(kept) / len(text) == pytest.approx(0.9, abs=0.01)


def test_random_case_changes_nothing_but_case():
  text = 'abcdEFGHé1 ' * 2000
  made = make(noise.RandomCase(), text).decode()
  assert made.lower() == text.lower()
  for letter in 'aEé':
    places = [i for i, c in enumerate(text) if c == letter]
    upper = np.mean([made[i].isupper() for i in places])
    assert upper == pytest.approx(0.5, abs=0.05)


def test_repeat_makes_one_to_four_copies_of_a_fifth():
  text = 'ab' * 20_000
  made = make(noise.Repeat(), text)
  array = np.frombuffer(made, np.uint8)
  ends = np.flatnonzero(np.append(array[1:] != array[:-1], True))
  runs = np.diff(np.append(-1, ends))
  assert len(runs) == len(text)
  shares = np.bincount(runs, minlength=6)[1:] / len(runs)
  np.testing.assert_allclose(shares, [0.8, *[0.05] * 4], atol=0.006)


@pytest.mark.parametrize(
  'kind', [noise.Drop(), noise.RandomCase(), noise.Repeat()]
)
def test_the_seed_decides(kind):
  text = 'some words of a text ' * 5
  assert make(kind, text, 1) == make(kind, text, 1)
  assert make(kind, text, 1) != make(kind, text, 2)


@pytest.mark.parametrize('vocabulary', ['bytes', 'tokens'])
def test_bits_are_those_of_the_noisy_bytes(vocabulary):
  documents, spelling = make_documents(), codec.Bytes()
  if vocabulary == 'tokens':
    documents, spelling = Documents(documents), BPE
  logits_V, bits_V = make_unigram(spelling.vocabulary_size)
  kinds = (noise.AntSpeak(), noise.Drop(0.3), noise.Repeat())
  evaluator = noise.NoisyBits(kinds, window=16, stride=8, batch_size=2, seed=5)
  found = evaluator.run(unigram, logits_V, documents)

  def measure(kind):
    clean = [d for d in documents if len(d)]
    made = [
      noise.noised(kind, d, (5, i)) if kind else d for i, d in enumerate(clean)
    ]
    bits = [bits_V[spelling.encode(text)].sum() for text in made]
    return np.array(bits), np.array([len(text) for text in made])

  clean_N, clean_sizes_N = measure(None)
  rate = clean_N.sum() / clean_sizes_N.sum()
  assert found['noise/clean/bits_per_byte'] == pytest.approx(rate, rel=1e-5)
  for kind in kinds:
    head = f'noise/{type(kind).__name__}'
    bits_N, sizes_N = measure(kind)
    assert found[f'{head}/bytes'] == sizes_N.sum()
    noisy = bits_N.sum() / sizes_N.sum()
    assert found[f'{head}/bits_per_byte'] == pytest.approx(noisy, rel=1e-5)
    assert found[f'{head}/ratio'] == pytest.approx(noisy / rate, rel=1e-5)
    total = bits_N.sum() / clean_N.sum()
    assert found[f'{head}/total_ratio'] == pytest.approx(total, rel=1e-5)
    # The jackknife, document by document.
    for name, value in (('ratio', True), ('total_ratio', False)):
      without = []
      for i in range(len(bits_N)):
        a, s, b, t = (
          np.delete(x, i).sum()
          for x in (bits_N, sizes_N, clean_N, clean_sizes_N)
        )
        without.append(a / s / (b / t) if value else a / b)
      spread = np.std(without) * math.sqrt(len(without) - 1)
      assert found[f'{head}/{name}_stderr'] == pytest.approx(spread, rel=1e-3)


def test_clean_text_is_scored_as_bits_per_byte_does():
  model = lm.ByteLM(width=16, layers=1, heads=2, key_value_heads=1, hidden=16)
  params = jax.device_put(sharded_cases.make_params(model))
  documents = make_documents()
  evaluator = noise.NoisyBits(
    (noise.UpperCase(),), window=16, stride=8, batch_size=2
  )
  apply = forward.pure(model)
  found = evaluator.run(apply, params, documents, max_bytes=200)
  plain = bits_per_byte.BitsPerByte(window=16, stride=8, batch_size=2).run(
    apply, params, documents, max_bytes=200
  )
  assert found['noise/clean/bytes'] == 200
  for name in ('bits_per_byte', 'bits_per_byte_stderr'):
    assert found[f'noise/clean/{name}'] == pytest.approx(plain[name], rel=1e-4)
  assert found['noise/UpperCase/ratio'] != pytest.approx(1, abs=1e-3)


def test_one_document_has_no_standard_errors_and_may_vanish():
  logits_V, _ = make_unigram()
  evaluator = noise.NoisyBits((noise.Drop(1.0),), window=8, stride=8)
  found = evaluator.run(unigram, logits_V, make_documents((20,)))
  assert found['noise/Drop/ratio_stderr'] is None
  assert found['noise/Drop/bytes'] == found['noise/Drop/bits_per_byte'] == 0


@pytest.mark.parametrize(
  ('make_it', 'words'),
  [
    (lambda: noise.Drop(1.5), r'Drop: rate=1\.5 is a probability'),
    (lambda: noise.Repeat(most=0), 'most=0 must be at least 1'),
    (
      lambda: noise.NoisyBits((noise.Drop(0.1), noise.Drop(0.2))),
      'kinds has Drop twice',
    ),
    (lambda: noise.NoisyBits(stride=0), 'stride=0 must be in'),
    (
      lambda: noise.NoisyBits().run(unigram, None, make_documents((0,))),
      'no byte to score',
    ),
  ],
)
def test_bad_input_is_named(make_it, words):
  with pytest.raises(ValueError, match=words):
    make_it()
