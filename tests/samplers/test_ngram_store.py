"""The command that builds n-gram stores, and drafts that end by them."""

import types

import jax
import numpy as np
import pytest
from absl import flags

from configs import base
from configs import corpora
from configs import restore
from data import codec
from data import tokens
from samplers import ngram_store
from samplers import ngram_tables
from tests import tiny_runs

BYTES = codec.Bytes()
RUN = restore.Run(
  types.SimpleNamespace(data=types.SimpleNamespace(codec=BYTES)), None, 7
)


@pytest.fixture
def command(monkeypatch):
  """Runs main with the given arguments."""

  def run(*arguments, found=RUN):
    monkeypatch.setattr(ngram_store.host, 'keep_memory', lambda: None)
    monkeypatch.setattr(restore, 'restore', lambda directory: found)
    own = flags.FlagValues()
    given = ngram_store.define_flags(own)
    own(['ngram_store', *arguments])
    ngram_store.main(given)

  return run


def ids_of(*texts):
  return [np.append(BYTES.encode(text), codec.EOS) for text in texts]


def test_the_command_builds_from_files(command, tmp_path, capsys):
  for name, text in (('a.py', b'one two one'), ('b.py', b'one'), ('c', b'no')):
    (tmp_path / name).write_bytes(text)
  out = tmp_path / 'new' / 'store.npz'
  command(
    '--checkpoint=x', f'--out={out}', f'--files={tmp_path}/*.py',
    '--max_bytes=13',
  )  # fmt: skip
  assert f'{out}: 15 ids of 2 documents, ' in capsys.readouterr().out
  expected = ngram_tables.build(ids_of(b'one two one', b'on'))
  found = ngram_tables.load(out, corpora.vocabulary(BYTES))
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_command_builds_from_a_config_and_from_the_run(
  command, tmp_path, monkeypatch
):
  config = tiny_runs.make_config(tiny_runs.write_texts(tmp_path / 'texts'))
  config.data.prepare()
  monkeypatch.setattr(base, 'load', lambda name: config)
  outs = tmp_path / 'a.npz', tmp_path / 'b.npz'
  command(
    '--checkpoint=x', f'--out={outs[0]}', '--config=c', '--split=validation'
  )
  run = restore.Run(config, None, 7)
  command(
    '--checkpoint=x', f'--out={outs[1]}', '--split=validation', found=run
  )
  expected = ngram_tables.build(
    ids_of(*(bytes(text) for text in config.data.open('validation')))
  )
  for out in outs:
    found = ngram_tables.load(out, corpora.vocabulary(BYTES))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_long_work_says_how_far_it_is(command, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(ngram_tables, '_BLOCK', 8)
  (tmp_path / 'a.txt').write_bytes(b'x' * 20)
  out = tmp_path / 'store.npz'
  command('--checkpoint=x', f'--out={out}', f'--files={tmp_path}/*.txt')
  said = capsys.readouterr().out.splitlines()
  assert said[0].startswith('8 ids counted, of 1 documents, 0 s')


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--out=x.npz'], '--checkpoint is missing; give it a directory'),
    (['--checkpoint=x'], '--out is missing; give it a file, as ngrams.npz'),
    (
      ['--checkpoint=x', '--out=y.npz', '--files=*', '--config=c'],
      '--files and --config exclude each other',
    ),
    (['--checkpoint=x', '--out=y'], r'store y must end in \.npz'),
    (['--checkpoint=x', '--out={}/there.npz'], 'is there already; remove it'),
    (
      ['--checkpoint=x', '--out={}/new.npz', '--files={}/*.txt'],
      'has no document of two ids; take another',
    ),
  ],
)
def test_bad_input_is_one_sentence(command, arguments, words, tmp_path):
  (tmp_path / 'there.npz').touch()
  (tmp_path / 'empty.txt').touch()
  with pytest.raises(SystemExit, match=f'samplers.ngram_store: .*{words}') as e:
    command(*(argument.format(tmp_path) for argument in arguments))
  assert '\n' not in e.value.code


def test_ids_of_another_codec_are_told_apart(tmp_path):
  first, second = (
    tokens.Bpe(vocabulary_size=262, merges=merges)
    for merges in ('101 102', '103 104')
  )
  assert corpora.vocabulary(first).size == corpora.vocabulary(second).size
  assert corpora.vocabulary(first) == corpora.vocabulary(
    tokens.Bpe(vocabulary_size=262, merges='101 102')
  )
  path = tmp_path / 'store.npz'
  store = ngram_tables.build(ids_of(b'some text'))
  ngram_tables.save(path, store, corpora.vocabulary(first))
  ngram_tables.load(path, corpora.vocabulary(first))
  with pytest.raises(ValueError, match='of another codec, whose 262 ids stand'):
    ngram_tables.load(path, corpora.vocabulary(second))
