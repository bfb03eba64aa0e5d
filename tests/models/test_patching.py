"""Patch boundaries against the lists of lengths that define them."""

import functools
import itertools

import jax
import numpy as np
import pytest

from models import patching

BOS, EOS, DELIMITER = 1, 2, 3
RULES = (
  patching.Entropy(threshold=1.5),
  patching.Monotonic(rise=0.2),
  patching.Combined(rise=0.1, threshold=1.2),
  patching.Combined(rise=0.1, threshold=1.2, compat=True),
  patching.Stride(4),
  patching.Space(),
  patching.EveryByte(),
  patching.Delimiter(),
)


def word_like(id_):
  byte = id_ - 4
  return byte >= 0 and (chr(byte).isalnum() if byte < 128 else byte < 0xC0)


def starts_by_definition(rule, ids, entropy):
  """Section 2 of the paper as loops: starts at 0, ..., N of one document."""
  starts = [True, True]
  for i in range(2, len(ids) + 1):
    h, before = entropy[i - 1], entropy[i - 2]
    rises = i == 2 or (hasattr(rule, 'rise') and h - before > rule.rise)
    match rule:
      case patching.Entropy():
        starts.append(h > rule.threshold)
      case patching.Monotonic():
        starts.append(rises)
      case patching.Combined(compat=True):
        # The published code: no start right after the first flag it sets.
        both = rises and h > rule.threshold and i != 3
        starts.append(i == 2 or both)
      case patching.Combined():
        starts.append(rises and h > rule.threshold)
      case patching.Stride():
        starts.append(i % rule.stride == 0)
      case patching.Space():
        last, previous = ids[i - 1], ids[i - 2]
        starts.append(last < 4 or (not word_like(last) and word_like(previous)))
      case patching.EveryByte():
        starts.append(True)
      case patching.Delimiter():
        starts.append(ids[i - 1] == DELIMITER)
  return starts


def lengths_of(starts):
  edges = [*np.flatnonzero(starts), len(starts)]
  return np.diff(edges).tolist()


def cut(lengths, limit):
  """Each patch as limit, limit, ..., remainder."""
  pieces = []
  for length in lengths:
    pieces += [limit] * (length // limit) + [length % limit] * (
      length % limit > 0
    )
  return pieces


def documents_of(rng, lengths):
  words = b'ab, cd--E9 \xc3\xa9\xe4\xb8\xad\n'
  ids = [
    np.array([words[i] + 4 for i in rng.integers(0, len(words), n)], np.int32)
    for n in lengths
  ]
  for row in ids:
    row[rng.random(len(row)) < 0.1] = rng.integers(1, 4)
  return ids, [rng.uniform(0, 3, n).astype(np.float32) for n in lengths]


@functools.partial(jax.jit, static_argnums=0)
def found(patches, ids, documents, entropy):
  """The bytes that start a patch, and those that end one."""
  return (
    patches.starts(ids, documents, entropy),
    patches.closes(ids, documents, entropy),
  )


def starts_of(patches, ids, documents, entropy):
  return np.asarray(found(patches, ids, documents, entropy)[0])


def closes_of(patches, ids, documents, entropy):
  return np.asarray(found(patches, ids, documents, entropy)[1])


def pad_rows(rows):
  longest = max(map(len, rows))
  return np.stack([np.pad(row, (0, longest - len(row))) for row in rows])


@pytest.mark.parametrize('limit', [None, 1, 2, 5])
@pytest.mark.parametrize('rule', RULES, ids=str)
def test_starts_are_those_of_the_definition(rule, limit):
  rng = np.random.default_rng(0)
  ids, entropies = documents_of(rng, [1, 2, 3, 3, 19, 20, 20, 20])
  real = np.stack([np.arange(20) < len(row) for row in ids])
  starts = starts_of(
    patching.Patching(rule, max_length=limit),
    pad_rows(ids),
    real.astype(np.int32),
    pad_rows(entropies),
  )
  for row, id_T, entropy_T in zip(starts, ids, entropies, strict=True):
    expected = lengths_of(starts_by_definition(rule, id_T, entropy_T))
    expected = cut(expected, limit) if limit else expected
    assert sum(expected) == len(id_T) + 1
    assert lengths_of(row[: len(id_T) + 1]) == expected
    assert not row[len(id_T) + 1 :].any()


@pytest.mark.parametrize('threshold, last', [(-1.0, 7), (99.0, 1)])
def test_all_and_no_starts(threshold, last):
  rule = patching.Patching(patching.Entropy(threshold), max_length=None)
  ids = np.full((1, 7), 9, np.int32)
  starts = starts_of(rule, ids, np.ones_like(ids), np.ones((1, 7), np.float32))
  assert np.flatnonzero(starts[0]).tolist() == list(range(last + 1))


def test_space_keeps_a_words_first_separator():
  text = b'ab  cd, ef-'
  ids = np.array([[BOS, *(b + 4 for b in text)]], np.int32)
  patches = patching.Patching(max_length=None)
  starts = starts_of(patches, ids, np.ones_like(ids), None)
  edges = np.flatnonzero(starts[0]) - 1
  pieces = [text[max(a, 0) : b] for a, b in itertools.pairwise(edges)]
  assert pieces == [b'', b'ab ', b' cd,', b' ef-']


@pytest.mark.parametrize('rule', RULES, ids=str)
def test_packed_documents_are_patched_one_by_one(rule):
  rng = np.random.default_rng(1)
  lengths = [5, 1, 2, 6, 3]
  ids, entropies = documents_of(rng, lengths)
  patches = patching.Patching(rule, max_length=5)
  # The first row holds all of them, five others one each, two nothing.
  numbers = [np.repeat(np.arange(1, 6), lengths), *map(np.ones_like, ids)]
  inputs = [np.zeros((8, 20), x) for x in (np.int32, np.int32, np.float32)]
  for rows, parts in zip(
    inputs,
    (
      [np.concatenate(ids), *ids],
      numbers,
      [np.concatenate(entropies), *entropies],
    ),
    strict=True,
  ):
    for row, part in zip(rows, parts, strict=False):
      row[: len(part)] = part
  closes = closes_of(patches, *inputs)
  alone = [
    row[:length] for row, length in zip(closes[1:], lengths, strict=False)
  ]
  np.testing.assert_array_equal(closes[0, :17], np.concatenate(alone))
  assert not closes[0, 17:].any() and not closes[6:].any()
  starts = starts_of(patches, *inputs)
  first = np.cumsum([0, *lengths[:-1]])
  assert starts[0, first].all() and starts[0, first + 1].all()


@pytest.mark.parametrize('rule', RULES, ids=str)
def test_byte_by_byte_is_the_same_rule(rule):
  rng = np.random.default_rng(2)
  patches = patching.Patching(rule, max_length=5)
  lengths = [20, 1, 13, 2, 7, 20, 3, 5]
  ids, entropies = documents_of(rng, lengths)
  ids, entropies = pad_rows(ids), pad_rows(entropies)
  real = np.arange(20)[None] < np.array(lengths)[:, None]
  whole = closes_of(patches, ids, real.astype(np.int32), entropies)
  state, parts = jax.jit(lambda: patches.init(8))(), []
  extend = jax.jit(patches.extend)
  # A prefix in one call, and then the same shapes again.
  for start in range(0, 20, 4):
    span = slice(start, start + 4)
    closes, state = extend(
      state, ids[:, span], real[:, span], entropies[:, span]
    )
    parts.append(closes)
  state = jax.device_get(state)
  np.testing.assert_array_equal(np.concatenate(parts, 1), whole)
  np.testing.assert_array_equal(state.index_B, lengths)
  for row, length in enumerate(lengths):
    ends = np.flatnonzero(whole[row])
    assert state.length_B[row] == length - 1 - ends[-1]


def test_a_prefix_has_the_prefix_of_the_patches():
  rng = np.random.default_rng(3)
  ids, entropies = documents_of(rng, [20])
  ids, entropies = (np.tile(x[0], (8, 1)) for x in (ids, entropies))
  lengths = np.array([20, 1, 2, 3, 4, 7, 11, 16])
  real = (np.arange(20) < lengths[:, None]).astype(np.int32)
  for rule in RULES:
    patches = patching.Patching(rule, max_length=5)
    closes = closes_of(patches, ids, real, entropies)
    for row, length in zip(closes, lengths, strict=True):
      np.testing.assert_array_equal(row[:length], closes[0, :length])
    # A row of one byte has nothing before or after it.
    one = closes_of(patches, ids[:1, :1], real[:1, :1], entropies[:1, :1])
    np.testing.assert_array_equal(one, closes[:1, :1])


def test_layout_reads_the_last_complete_patch():
  rng = np.random.default_rng(4)
  documents = np.array([[1, 1, 1, 1, 2, 2, 2, 3, 4, 4, 0, 0]])
  closes = rng.random(documents.shape) < 0.4
  closes |= np.diff(documents, prepend=0) != 0
  closes &= documents > 0
  layout = jax.device_get(jax.jit(patching.layout)(closes, documents))
  patches = []  # (document, bytes) in order
  for i, document in enumerate(documents[0]):
    if not document:
      continue
    if not i or closes[0, i - 1] or documents[0, i - 1] != document:
      patches.append((document, []))
    patches[-1][1].append(i)
    assert layout.encoder_BT[0, i] == len(patches) - 1
    read, held = patches[layout.decoder_BT[0, i]]
    assert read == document and held[-1] <= i
    # The latest such patch: only an open one comes after it.
    after = patches[layout.decoder_BT[0, i] + 1 :]
    assert len(after) == (not closes[0, i])
  assert layout.count_B[0] == len(patches)


def test_segments_number_documents():
  documents = np.array([[7, 7, 3, 3, 7, 0, 0], [0, 0, 5, 5, 5, 6, 6]])
  np.testing.assert_array_equal(
    jax.jit(patching.segments)(documents),
    [[1, 1, 2, 2, 3, 0, 0], [0, 0, 1, 1, 1, 2, 2]],
  )


def test_entropy_is_exact_for_uniform_and_certain():
  logits = np.array([[0.0] * 8, [0.0] + [-1e9] * 7, [0.0] + [-np.inf] * 7])
  np.testing.assert_allclose(
    jax.jit(patching.entropy)(logits), [np.log(8), 0, 0], atol=1e-6
  )


def test_bad_input_is_named():
  ids = np.zeros((1, 3), np.int32)
  with pytest.raises(ValueError, match='Entropy patches need the entropy'):
    patching.Patching(patching.Entropy()).closes(ids, ids)
  with pytest.raises(ValueError, match='max_length=0'):
    patching.Patching(max_length=0)
  with pytest.raises(ValueError, match='stride=0'):
    patching.Stride(0)
