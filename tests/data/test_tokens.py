"""Byte pairs against merging by plain loops, and what is kept on disk."""

import collections
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from configs import base
from data import codec
from data import folders
from data import packing
from data import sources
from data import text
from data import tokens

# The default pattern for `re`: its letters are ASCII's and all high bytes.
PIECES = re.compile(
  rb"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z\x80-\xff]+| ?[0-9]+"
  rb'| ?[^\sA-Za-z0-9\x80-\xff]+|\s+(?!\S)|\s+'
)
WORDS = ['alpha', 'beta', "isn't", 'été', 'x == 12', '\n    ', '日本', '#!/']


@dataclasses.dataclass(frozen=True)
class Sentences:
  """Documents of a few words, some of no text and some of any bytes.

  Those of the test split hold a word of their own.
  """

  count: int = 40

  def documents(self):
    rng = np.random.default_rng(self.count)
    for index in range(self.count):
      words = list(rng.choice(WORDS, int(rng.integers(0, 60))))
      split = ('', 'validation', 'test')[min(index % 8, 2)]
      if split == 'test':
        words += ['unheard'] * 50
      content = ' '.join(words).encode() + rng.bytes(int(rng.integers(0, 9)))
      yield sources.Document(str(index), str(index), content, split or 'train')

  def fingerprint(self):
    return str(self.count)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokens')
  bpe = tokens.Bpe(vocabulary_size=285)
  return text.Text(Sentences(), str(folder), codec=bpe)


@pytest.fixture(scope='module')
def trained(data):
  return data.trained().codec


def merge(pieces, pair):
  """Every piece with the pair's places joined, from the left."""
  for piece in pieces:
    index = 0
    while index < len(piece) - 1:
      if piece[index : index + 2] == list(pair):
        piece[index : index + 2] = [pair[0] + pair[1]]
      index += 1


def cut(document):
  """The single bytes of every piece."""
  pieces = PIECES.findall(document)
  assert b''.join(pieces) == document
  return [[bytes([byte]) for byte in piece] for piece in pieces]


def pairs_of(bpe):
  """The merges as pairs of bytes, read from the config's text."""
  pairs = [map(int, pair.split()) for pair in bpe.merges.split(',')]
  return [(bpe.tokens[left], bpe.tokens[right]) for left, right in pairs]


def encode_by_loops(bpe, document):
  """Merge after merge, in the order in which they were learned."""
  pieces = cut(document)
  for pair in pairs_of(bpe):
    merge(pieces, pair)
  return [bpe.tokens.index(token) for piece in pieces for token in piece]


texts = strategies.lists(
  strategies.sampled_from([*WORDS, ' ', '_']).map(str.encode)
  | strategies.binary(max_size=4)
).map(b''.join)


@hypothesis.given(document=strategies.binary() | texts)
def test_any_bytes_come_back(trained, document):
  ids = trained.encode(document)
  assert ids.dtype == np.int32
  assert trained.decode(ids) == document
  assert trained.lengths_V[ids].sum() == len(document)
  assert np.all((ids >= codec.OFFSET) & (ids < trained.vocabulary_size))
  array = np.frombuffer(document, np.uint8)
  np.testing.assert_array_equal(trained.encode(array), ids)


@hypothesis.given(document=texts)
def test_ids_are_those_of_merging_by_loops(trained, document):
  assert trained.encode(document).tolist() == encode_by_loops(trained, document)


def test_each_merge_was_of_a_most_frequent_pair(data, trained):
  pieces = [p for document in data.open('train') for p in cut(bytes(document))]
  pairs = pairs_of(trained)
  assert len(pairs) == 25
  for pair in pairs:
    counts = collections.Counter(
      two for piece in pieces for two in itertools.pairwise(piece)
    )
    assert counts[pair] == max(counts.values()) >= 2
    merge(pieces, pair)


def test_ids_begin_with_the_byte_vocabulary(trained):
  assert len(trained.tokens) == trained.vocabulary_size == 285
  for byte in range(256):
    assert trained.tokens[byte + codec.OFFSET] == bytes([byte])
  assert trained.lengths_V[: codec.OFFSET].tolist() == [0] * 4
  ids = [codec.BOS, codec.DELIMITER, 4, 259, codec.EOS, codec.PADDING]
  assert trained.decode(ids) == b'\x00\xff'
  assert trained.decode([]) == b''
  assert trained.encode(b'').shape == (0,)


def test_letters_of_utf8_are_merged(trained):
  for word in (' été', ' 日本'):
    assert word.encode() in trained.tokens


def test_only_the_train_split_is_learned_from(data, trained):
  assert b'unheard' in bytes(data.open('test').bytes)
  assert not any(b'nhe' in token for token in trained.tokens)
  assert any(b'alpha' in token for token in trained.tokens)


def test_two_merges_to_the_same_bytes_are_one_id():
  pairs = [('a', 'b'), ('ab', 'c'), ('b', 'c'), ('a', 'bc'), ('c', 'c')]
  merges = tokens._numbered(pairs)
  assert merges == '101 102,260 103,102 103,101 262,103 103'
  bpe = tokens.Bpe(vocabulary_size=300, merges=merges)
  assert bpe.tokens[260:265] == (b'ab', b'abc', b'bc', b'cc', b'')
  assert bpe.encode(b'abcbc').tolist() == [261, 262]
  assert bpe.lengths_V[299] == 0


def test_stream_is_the_encoded_documents(data, trained):
  for split in text.SPLITS:
    corpus = data.open(split)
    assert corpus.codec == trained
    stored, offsets, shift = corpus.stream
    assert shift == 0
    assert stored.dtype == np.uint16
    for index, document in enumerate(corpus):
      ids = corpus.stream.read(offsets[index], offsets[index + 1])
      np.testing.assert_array_equal(ids, trained.encode(document))
    assert offsets[-1] == len(stored)


def test_bytes_per_id_turn_targets_into_bytes(data, trained):
  corpus = data.open('train')
  rows = packing.Rows(corpus, 16)
  targets = sum(rows[index]['mask'].sum() for index in range(len(rows)))
  ends = len(corpus)
  assert corpus.bytes_per_id > 1.5
  assert targets * corpus.bytes_per_id == pytest.approx(
    len(corpus.bytes) + ends
  )
  plain = dataclasses.replace(data, codec=codec.Bytes()).open('train')
  assert plain.bytes_per_id == 1.0


def test_large_vocabularies_are_stored_whole(data, trained):
  wide = dataclasses.replace(trained, vocabulary_size=2**16 + 1)
  assert data.open('train').stream.stored.dtype == np.uint16
  wider = dataclasses.replace(data, codec=wide).open('train').stream
  assert wider.stored.dtype == np.uint32
  np.testing.assert_array_equal(wider.stored, data.open('train').stream.stored)


def test_rows_hold_the_tokens(data, trained):
  corpus = data.open('train')
  rows = packing.Rows(corpus, 7)
  rows = [rows[index] for index in range(len(rows))]
  targets, mask = (
    np.concatenate([row[key] for row in rows]) for key in ('targets', 'mask')
  )
  expected = [[*trained.encode(d), codec.EOS] for d in corpus]
  np.testing.assert_array_equal(targets[mask == 1], np.concatenate(expected))


def test_everything_is_prepared_once(data, trained, monkeypatch):
  assert data.open('train').stream
  monkeypatch.setattr(folders, '_build', None)
  again = data.trained()
  assert again.codec == trained
  assert again.untrained() == data
  assert len(again.open('train').stream.stored)


def test_folders_tell_what_made_them(data, trained):
  corpus = data.open('train')
  folder = corpus.path / f'ids-{trained.digest[:16]}'
  metadata = json.loads((folder / 'metadata.json').read_text())
  assert metadata['digest'] == trained.digest
  assert metadata['documents'] == len(corpus)
  assert metadata['bytes'] == len(corpus.bytes)
  assert metadata['ids'] == len(corpus.stream.stored)
  stored = (folder / 'tokenizer.json').read_bytes()
  assert hashlib.sha256(stored).hexdigest() == metadata['tokenizer_sha256']
  assert json.loads(stored)['model']['vocab']['a'] == ord('a') + 4


def test_settings_have_folders_of_their_own(data, trained):
  other = dataclasses.replace(data.codec, pattern=r'\s+')
  again = dataclasses.replace(data, codec=other).trained().codec
  assert again.merges != trained.merges
  assert again.digest != trained.digest
  assert any(b"sn't" in token for token in again.tokens)
  assert not any(b"sn't" in token for token in trained.tokens)


def test_config_holds_the_whole_tokenizer(tmp_path):
  bpe = tokens.Bpe(vocabulary_size=300)
  data = text.Text(Sentences(16), str(tmp_path / 'here'), codec=bpe).trained()
  ids = data.codec.encode(b'alpha beta')
  stored = json.dumps(base.to_json(data.codec))
  shutil.rmtree(tmp_path / 'here')
  codec_again = base.from_json(json.loads(stored))
  np.testing.assert_array_equal(codec_again.encode(b'alpha beta'), ids)
  # Another text does not retrain it.
  other = text.Text(Sentences(24), str(tmp_path / 'there'), codec=codec_again)
  assert other.trained().codec == data.codec
  assert other.open('test').codec == data.codec


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
  bpe = tokens.Bpe(vocabulary_size=300)
  corpus = text.Text(Sentences(16), str(tmp_path), codec=bpe).open('train')

  def fail(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(tokens.np, 'save', fail)
  with pytest.raises(OSError, match='No space'):
    corpus.codec.stream(corpus)
  left = {p.name for p in corpus.path.iterdir() if p.name.startswith('ids')}
  assert left == {f'ids-{corpus.codec.digest[:16]}.lock'}
  monkeypatch.undo()
  assert len(corpus.stream.stored)


def test_damaged_stream_is_refused(tmp_path):
  bpe = tokens.Bpe(vocabulary_size=300)
  corpus = text.Text(Sentences(16), str(tmp_path), codec=bpe).open('train')
  assert len(corpus.codec.stream(corpus).stored)
  (path,) = corpus.path.glob('ids-*/ids.bin')
  path.write_bytes(path.read_bytes()[:-2])
  with pytest.raises(ValueError, match='damaged'):
    corpus.codec.stream(corpus)


def test_small_corpus_leaves_ids_unused(tmp_path, caplog):
  bpe = tokens.Bpe(vocabulary_size=5000)
  bpe = text.Text(Sentences(16), str(tmp_path), codec=bpe).trained().codec
  assert len(bpe.tokens) == 5000
  assert bpe.tokens[-1] == b''
  assert bpe.decode([4999]) == b''
  assert bpe.decode(bpe.encode(b'alpha')) == b'alpha'
  assert 'of data.codec.vocabulary_size=5000 ids' in caplog.text


@pytest.mark.parametrize(
  ('fields', 'says'),
  [
    ({'vocabulary_size': 260}, r'vocabulary_size=260 must be above 260.*Bytes'),
    ({'pattern': '('}, r"pattern='\(' is no regular expression"),
    ({'merges': '101 x'}, "'101 x'.*must be pairs"),
    ({'merges': '101 102,1 260'}, 'joins ids 1 and 260'),
    ({'merges': '101 300'}, 'joins ids 101 and 300'),
    ({'vocabulary_size': 261, 'merges': '101 102,260 101'}, 'makes 262 ids'),
    ({}, 'no merges yet'),
  ],
)
def test_bad_fields_are_named(fields, says):
  merges = '' if fields == {} else '101 102'
  with pytest.raises(ValueError, match=says):
    tokens.Bpe(**({'merges': merges} | fields)).encode(b'text')


def test_bad_input_is_named(trained, tmp_path):
  with pytest.raises(ValueError, match=r"text\.encode\('utf-8'\)"):
    trained.encode('text')
  with pytest.raises(ValueError, match='0 to 284'):
    trained.decode([285])
  (tmp_path / 'a.txt').write_text('abc')
  source = sources.TextFiles(f'{tmp_path}/*.txt')
  tiny = text.Text(source, str(tmp_path / 'cache'), codec=tokens.Bpe())
  with pytest.raises(ValueError, match='no pair of bytes that comes twice'):
    tiny.trained()


def test_missing_package_says_how_to_install_it(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tokenizers', None)
  with pytest.raises(ValueError, match=r"pip install '\.\[tokens\]'"):
    tokens.Bpe(merges='101 102').encode(b'text')
