"""Tokenizers of released models against their own library."""

import dataclasses
import json

import hypothesis
import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import strategies

from configs import base
from data import packing
from data import sources
from data import text
from data import tokenizer_json
from tests.released import small_tokenizer

KINDS = {
  'bytes': small_tokenizer.byte_level(),
  'characters': small_tokenizer.sentencepiece(),
}
PLAIN = [
  'the alpha and the beta',
  'def f(a):\n  return\t12',
  'été: 日本 \U0001f600!',
  'a',
  '  two  spaces  ',
  '<s>the</s>',
  '',
]


def make(file, path, bos=None, stops=(2,), vocabulary=320):
  path.write_text(file, 'utf-8')
  return tokenizer_json.read(
    path, vocabulary_size=vocabulary, bos=bos, stops=stops
  )


@pytest.fixture(scope='module', params=KINDS)
def kind(request):
  return request.param


@pytest.fixture(scope='module')
def spelling(kind, tmp_path_factory):
  return make(KINDS[kind], tmp_path_factory.mktemp(kind) / 'tokenizer.json')


@pytest.fixture(scope='module')
def theirs(kind, tmp_path_factory):
  path = tmp_path_factory.mktemp(kind) / 'tokenizer.json'
  path.write_text(KINDS[kind], 'utf-8')
  return transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(path), clean_up_tokenization_spaces=False
  )


def test_prompts_and_texts_are_those_of_transformers(spelling, theirs):
  for sample in PLAIN:
    ids = theirs(sample).input_ids
    assert spelling.prompt(sample.encode()).tolist() == ids
    shown = theirs.decode(ids, skip_special_tokens=True)
    assert spelling.decode(ids).decode() == shown


def test_documents_are_tokens_wherever_these_keep_the_text(spelling, theirs):
  for sample in PLAIN[:4]:
    ids = theirs(sample, add_special_tokens=False).input_ids
    assert spelling.encode(sample.encode()).tolist() == ids
  assert spelling.encode(b'').shape == (0,)


@hypothesis.settings(max_examples=60)
@hypothesis.given(
  document=strategies.lists(
    strategies.sampled_from(
      [*PLAIN, ' the', '▁', '▁the', '<unk>', '\n', '<0x41>']
    ).map(str.encode)
    | strategies.binary(max_size=3)
  ).map(b''.join)
)
def test_any_bytes_come_back(spelling, document):
  ids = spelling.encode(document)
  assert ids.dtype == np.int32
  made = b''.join(spelling._tokens[i] for i in ids)
  assert made == (spelling.lead + document if document else b'')
  assert spelling.lengths_V[ids].sum() == len(made)


def test_what_tokens_lose_is_spelled_in_bytes(spelling, kind):
  library = tokenizers.Tokenizer.from_str(KINDS[kind])
  for sample in (' a', '  the', 'the ▁ and', 'then▁the beta'):
    ids = spelling.encode(sample.encode()).tolist()
    # By their decoder, not by ours.
    assert library.decode(ids) == sample
  ids = spelling.encode(b'the \xff and').tolist()
  near = spelling.encode(b'the  and').tolist()
  byte = spelling._bytes[255]
  assert spelling._tokens[byte] == b'\xff'
  assert ids.count(byte) == 1
  if kind == 'bytes':
    assert ids[0] == near[0] and ids[-1] == near[-1]


def test_going_on_keeps_the_space_that_a_beginning_loses(tmp_path):
  spelling = make(KINDS['characters'], tmp_path / 'tokenizer.json')
  assert spelling.lead == b' '
  ids = spelling.encode(b'the and')
  assert spelling.decode(ids) == b'the and'
  assert spelling.decode(ids, begins=False) == b' the and'
  assert (
    spelling.decode(spelling.encode('日'.encode())[1:2], begins=False)
    == ('日'.encode()[:1])
  )


def test_marks_are_those_of_the_post_processor_then_of_the_config(tmp_path):
  path = tmp_path / 'tokenizer.json'
  spelling = make(KINDS['bytes'], path, bos=7, stops=(301, 302))
  assert (spelling.bos, spelling.stops) == (300, (301, 302))
  assert spelling.decode([300, 0, 301, 302]) == spelling.decode([0])
  tree = json.loads(KINDS['characters']) | {'post_processor': None}
  bare = json.dumps(tree)
  spelling = make(bare, path, bos=1, stops=(2,))
  assert (spelling.bos, spelling.stops) == (1, (2,))
  assert spelling.prompt(b'a').tolist() == spelling.encode(b'a').tolist()
  assert spelling.prompt(b'').tolist() == [1]
  assert make(bare, path, bos=None, stops=(2,)).bos == 2
  assert make(bare, path, bos=1, stops=()).stops == (1,)
  with pytest.raises(ValueError, match='neither bos_token_id nor'):
    make(bare, path, bos=None, stops=())


def test_config_holds_the_file_byte_for_byte(spelling, kind):
  again = base.from_json(json.loads(json.dumps(base.to_json(spelling))))
  assert again == spelling
  assert again.file == KINDS[kind].encode()
  assert again.trained(None) == again.untrained() == spelling


def test_stream_is_the_encoded_documents(spelling, tmp_path):
  contents = [b'the alpha', ' ▁ the\n'.encode(), b'\xff\xfe', b'', b'beta'] * 4
  for i, content in enumerate(contents):
    (tmp_path / f'{i:02}.txt').write_bytes(content + b'%d' % i)
  data = text.Text(
    sources.TextFiles(f'{tmp_path}/*.txt'), str(tmp_path / 'c'), codec=spelling
  )
  corpus = data.trained().open('train')
  assert len(corpus) > 10
  for index, document in enumerate(corpus):
    ids = corpus.stream.read(*corpus.stream.offsets[index : index + 2])
    np.testing.assert_array_equal(ids, spelling.encode(document))
    assert spelling.decode(ids) == bytes(document)
  # A mark may be any id, that of padding too.
  marked = dataclasses.replace(spelling, bos=0, stops=(319, 7))
  rows = packing.Rows(dataclasses.replace(corpus, codec=marked), 7)
  rows = [rows[index] for index in range(len(rows))]
  ids, documents = (
    np.concatenate([row[key] for row in rows]) for key in ('ids', 'documents')
  )
  wanted = [[0, *spelling.encode(document), 319] for document in corpus]
  wanted = np.concatenate(wanted)
  found = ids[documents > 0]
  assert len(found) >= len(wanted) - 1
  np.testing.assert_array_equal(found, wanted[: len(found)])


def edited(**changes):
  return json.dumps(json.loads(KINDS['characters']) | changes)


def without_bytes():
  tree = json.loads(KINDS['characters'])
  vocabulary = tree['model']['vocab']
  tree['model']['vocab'] = {
    name: i for name, i in vocabulary.items() if name != '<0xFF>'
  }
  return json.dumps(tree)


@pytest.mark.parametrize(
  ('file', 'words'),
  [
    ('{}', 'tokenizer.json is none that the package tokenizers reads'),
    (edited(decoder=None), 'decoder=None does not say which bytes'),
    (edited(decoder={'type': 'BPEDecoder', 'suffix': '</w>'}), 'BPEDecoder'),
    (edited(normalizer={'type': 'Replace', 'pattern': {'String': 'a'},
                        'content': 'e'}), "the tokens of 'a' are those of"),
    (without_bytes(), 'no token for byte 0xFF'),
  ],
)  # fmt: skip
def test_files_that_text_cannot_be_read_by(tmp_path, file, words):
  with pytest.raises(ValueError, match='tokenizer') as error:
    make(file, tmp_path / 'tokenizer.json').encode(b'a\xff')
  assert words in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'vocabulary': 290}, 'has ids up to 290, but config.json has vocab_size'),
    ({'stops': (320,)}, r'stops=\(320,\) must be ids below'),
  ],
)
def test_marks_and_sizes_that_do_not_fit(tmp_path, fields, words):
  with pytest.raises(ValueError, match=words):
    make(KINDS['characters'], tmp_path / 'tokenizer.json', **fields)


def test_damaged_config_is_named():
  with pytest.raises(ValueError, match='import the model again'):
    tokenizer_json.TokenizerJson(9, 1, (2,), 'xyz').encode(b'a')
