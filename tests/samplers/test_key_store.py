"""Key stores: built, resumed, searched and refused."""

import json
import types

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import sample
from configs import neighbours
from configs import restore
from data import codec
from models import key_states
from samplers import chain
from samplers import key_files
from samplers import key_store
from samplers import retrieval
from tests import several
from tests.models import small_lm

WINDOW, PASSAGE = 16, 8
MODEL = small_lm.lm.ByteLM(**small_lm.SIZES | {'layers': 1})
DOCUMENTS = [
  ('a.py', b'for name in names:\n  print(name)\n'),
  ('empty.py', b''),
  ('b/c.py', b'import os\nprint(os.name)\n# the end of it all\n'),
]
OPTIONS = key_store.Options('float32', PASSAGE, WINDOW, rows=2, shard=1)


def make_run(model=MODEL, seed=0, spelling=None):
  config = types.SimpleNamespace(
    model=model,
    data=types.SimpleNamespace(codec=spelling or codec.Bytes()),
    row_length=WINDOW,
  )
  return restore.Run(config, small_lm.draw(model, seed), 7)


RUN = make_run()


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  path = tmp_path_factory.mktemp('keys') / 'store'
  said = []
  key_store.build(path, RUN, DOCUMENTS, OPTIONS, say=said.append)
  assert len(list(path.glob('keys-*.bin'))) > 2
  assert said[-1].startswith(f'{path}: 81 keys of 32 numbers, 3 documents, ')
  return path


def test_processes_share_the_keys(built, tmp_path, monkeypatch):
  wrote, write = [], key_files.write_shard

  def watched(path, number, key_ND):
    wrote.append((jax.process_index(), number))
    write(path, number, key_ND)

  monkeypatch.setattr(key_files, 'write_shard', watched)
  path = tmp_path / 'store'
  job = several.Job(2)
  errors = job.run(lambda: key_store.build(path, RUN, DOCUMENTS, OPTIONS))
  assert errors == [None, None]
  assert {number % 2 for who, number in wrote if who == 0} == {0}
  assert {number % 2 for who, number in wrote if who == 1} == {1}
  files = {file.name: file.read_bytes() for file in built.iterdir()}
  assert {file.name: file.read_bytes() for file in path.iterdir()} == files


@pytest.fixture(scope='module')
def store(built):
  return neighbours.open_store(str(built), RUN)


@jax.jit
def final_block(params, ids_BT):
  """What the block gives, and what its feed-forward layer adds to."""
  (_, kept) = MODEL.apply(
    {'params': params},
    ids_BT,
    capture_intermediates=lambda module, _: module.name == 'feed_forward',
    mutable=['intermediates'],
  )
  block = kept['intermediates']['block_0']
  return block['output'][0] - block['feed_forward']['__call__'][0]


def test_keys_are_what_the_last_feed_forward_layer_reads(store):
  for number, (_, text) in enumerate(DOCUMENTS):
    inputs = np.array([codec.BOS, *codec.encode(text)])
    start, stop = store.texts.offsets[number : number + 2]
    assert stop - start == len(inputs)
    np.testing.assert_array_equal(
      store.texts.ids_N[start:stop], [*inputs[1:], codec.EOS]
    )
    key_ND = store.keys.read(start, stop)
    # Windows of 16 that advance by 8: the first whole, then the last halves.
    for first in range(0, len(inputs), 8):
      part = inputs[first : first + WINDOW]
      ids_BT = np.zeros((1, WINDOW), np.int32)
      ids_BT[0, : len(part)] = part
      x_TD = np.asarray(final_block(RUN.params, ids_BT), np.float64)[0]
      scale_D = np.asarray(RUN.params['block_0']['feed_forward_norm']['scale'])
      mean_T1 = np.mean(x_TD**2, axis=1, keepdims=True)
      expected_TD = x_TD / np.sqrt(mean_T1 + 1e-5) * scale_D
      own = slice(0 if not first else 8, len(part))
      np.testing.assert_allclose(
        key_ND[first + own.start : first + own.stop],
        expected_TD[own],
        rtol=1e-3,
        atol=1e-4,
      )


def test_passages_are_cut_within_documents(store):
  documents, starts, lengths = store.passages
  assert documents.tolist() == [0] * 5 + [1] + [2] * 6
  assert lengths.tolist() == [8, 8, 8, 8, 2, 1, 8, 8, 8, 8, 8, 6]
  assert starts.tolist() == [*np.cumsum([0, *lengths[:-1]])]
  key_ND = store.keys.read(starts[2], starts[2] + lengths[2])
  np.testing.assert_allclose(store.mean_PD[2], key_ND.mean(axis=0), rtol=1e-5)


def content(path):
  return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_build_that_was_killed_goes_on_to_the_same_bytes(
  built, tmp_path, monkeypatch
):
  whole, write = content(built), key_files.write_shard
  path, made = tmp_path / 'store', []

  def dies(path, number, key_ND):
    if len(made) == 2:
      raise KeyboardInterrupt
    made.append(number)
    write(path, number, key_ND)

  monkeypatch.setattr(key_files, 'write_shard', dies)
  with pytest.raises(KeyboardInterrupt):
    key_store.build(path, RUN, DOCUMENTS, OPTIONS)
  (path / 'keys-00002.bin.tmp').write_bytes(b'half')
  with pytest.raises(ValueError, match='is no key store yet; make one with'):
    neighbours.open_store(str(path), RUN)
  with pytest.raises(ValueError, match='part of a key store of another model'):
    key_store.build(path, RUN, DOCUMENTS[:1], OPTIONS)
  monkeypatch.setattr(
    key_files,
    'write_shard',
    lambda *args: (made.append(args[1]), write(*args)),
  )
  key_store.build(path, RUN, DOCUMENTS, OPTIONS)
  assert made == list(range(len(made)))  # none twice
  assert content(path) == whole


def test_bm25_and_means_are_those_of_a_plain_loop(store):
  texts = [b'spam eggs spam', b'eggs', b'a longer text of ham and spam', b'xy']
  held = retrieval.index(texts)

  def grams(text):
    return [text[i : i + 4] for i in range(len(text) - 3)]

  sizes = [len(grams(text)) for text in texts]
  found_P = retrieval.bm25(held, b'spam spam ham', 0.9, 0.4)
  for place, text in enumerate(texts):
    expected = 0.0
    for gram in grams(b'spam spam ham'):
      count = sum(gram in grams(other) for other in texts)
      tf = grams(text).count(gram)
      idf = np.log(1 + (len(texts) - count + 0.5) / (count + 0.5))
      length = 1 - 0.4 + 0.4 * sizes[place] / np.mean(sizes)
      expected += idf * tf / (tf + 0.9 * length)
    assert found_P[place] == pytest.approx(expected)
  assert found_P[0] > found_P[2] > found_P[1] == 0
  query_D = np.random.default_rng(0).normal(size=32)
  distance_P = np.sum((store.mean_PD - query_D) ** 2, axis=1)
  near_P = retrieval.nearness(store.mean_PD, query_D)
  np.testing.assert_allclose(near_P, -distance_P, rtol=1e-4)


def test_a_prompt_calls_for_the_passages_that_fit_it(store):
  held = retrieval.read_index(store)
  query_D = store.mean_PD[9]

  def choose(text, **fields):
    rule = retrieval.Retrieval(passages=3, **fields)
    return retrieval.choose(store, held, text, query_D, rule).tolist()

  by_text, by_mean = choose(b'import', dense=0.0), choose(b'', dense=1.0)
  assert by_text[0] == 6 and by_mean[0] == 9
  assert {by_text[0], by_mean[0]} <= set(choose(b'import', dense=0.5))
  chosen = [np.array([6, 11]), np.array([4])]
  loaded = retrieval.load(store, chosen, 2, 3)
  assert loaded.key_BCD.shape == (2, 16, 32)
  ids = store.texts.ids_N
  assert loaded.id_BML[0, 0].tolist() == ids[35:46].tolist()
  # The last passage of a document ends with it.
  assert loaded.id_BML[0, 1].tolist() == [*ids[75:81], *[-1] * 5]
  assert loaded.real_BC.sum(axis=1).tolist() == [14, 2]
  assert loaded.document_BM.tolist() == [[2, 2], [0, -1]]
  assert loaded.offset_BM.tolist() == [[0, 40], [32, -1]]
  np.testing.assert_array_equal(
    loaded.key_BCD[0, 8:14], store.keys.read(75, 81)
  )


def test_what_was_copied_is_named(store):
  text = codec.encode(b'xyprint(q')
  document_N = np.array([-1, -1, 2, 2, 2, 2, 2, 2, 0])
  offset_N = np.array([-1, -1, 10, 11, 12, 13, 14, 15, 16])
  target = types.SimpleNamespace(ids_BN=text[None], length_B=np.array([9]))
  state = types.SimpleNamespace(
    target=target, document_BN=document_N[None], offset_BN=offset_N[None]
  )
  [found] = neighbours.spans(store, codec.Bytes(), state)
  assert found[0] == neighbours.Span(2, 6, 'b/c.py', 10, b'print(')
  assert [span.document for span in found] == ['b/c.py', 'a.py']
  assert DOCUMENTS[2][1][10:16] == found[0].text
  assert neighbours.described(found)[0] == (
    "ids 2-7: b/c.py at byte 10: 'print('"
  )
  json.dumps(neighbours.as_json(found))


def test_foreign_and_damaged_stores_are_refused(built, tmp_path):
  for run, words in (
    (make_run(seed=1), 'is of another model or of other parameters'),
    (make_run(MODEL.clone(norm_epsilon=1e-3)), 'is of another model or of'),
    (make_run(MODEL.clone(vocabulary_size=300)), '260 ids and the model has 3'),
  ):
    with pytest.raises(ValueError, match=words):
      neighbours.open_store(str(built), run)
  path = tmp_path / 'store'
  path.mkdir()
  for name, data in content(built).items():
    (path / name).write_bytes(data)
  neighbours.open_store(str(path), RUN)
  shard = path / 'keys-00001.bin'
  data = bytearray(shard.read_bytes())
  data[5] ^= 1
  shard.write_bytes(data)
  with pytest.raises(ValueError, match=r'damaged: keys-00001\.bin has changed'):
    neighbours.open_store(str(path), RUN)
  shard.unlink()
  with pytest.raises(ValueError, match=r'keys-00001\.bin is missing; remove'):
    neighbours.open_store(str(path), RUN)
  with pytest.raises(ValueError, match='none is no key store; make one with'):
    neighbours.open_store(str(tmp_path / 'none'), RUN)
  with pytest.raises(ValueError, match='is a finished store already'):
    key_store.build(built, RUN, DOCUMENTS, OPTIONS)


def test_a_store_of_nothing_is_refused(tmp_path):
  for documents in ([], [('empty.py', b''), ('other.py', b'')]):
    with pytest.raises(ValueError, match='its documents have no text; take an'):
      key_store.build(tmp_path / 'a', RUN, documents, OPTIONS)
  (tmp_path / 'mine.txt').touch()
  with pytest.raises(ValueError, match='holds other files; name a new'):
    key_store.build(tmp_path, RUN, DOCUMENTS, OPTIONS)
  settings = key_files.Settings('', 260, 32, 'float32', 8, 16, 8)
  path = tmp_path / 'b'
  path.mkdir()
  for name in ('ids.bin', 'means.bin'):
    (path / name).touch()
  np.save(path / 'offsets.npy', np.zeros(1, np.int64))
  with pytest.raises(ValueError, match='b is empty; build it from a corpus'):
    key_files.Store(path, {'settings': settings._asdict(), 'counts': []})


def test_models_without_such_states_are_named():
  with pytest.raises(ValueError, match='Embed has no last block whose feed'):
    key_states.step(small_lm.lm.nn.Embed(3, 4))


@pytest.mark.parametrize(
  'text, words',
  [
    ('gama=1', r"'gama=1' is no setting of nest; did you mean 'gamma'\?"),
    ('span=x', "'span=x' of nest needs a whole number, as span=64"),
    ('gamma=', "'gamma=' of nest needs a number"),
    ('passages=0', 'passages=0 must be at least 1'),
    ('dense=2', r'dense=2.0 must lie in \[0, 1\]'),
    ('b=-1', r'b=-1.0 lie in \[0, 1\]'),
  ],
)
def test_bad_settings_are_named(text, words):
  with pytest.raises(ValueError, match=words):
    neighbours.parse(text)


def test_settings_are_read():
  rule, search = neighbours.parse('gamma=0.5, passages=7,span=9')
  assert (rule.gamma, rule.span, rule.alpha) == (0.5, 9, 0.3)
  assert search == retrieval.Retrieval(passages=7)
  assert neighbours.parse('')[1] == retrieval.Retrieval()


def test_sample_refuses_what_is_no_store(tmp_path, monkeypatch):
  RUN.config.sampler = chain.parse('greedy')
  for name in ('restore', 'for_decoding'):
    monkeypatch.setattr(restore, name, lambda directory, limit=None: RUN)
  for flag, words in (
    ({}, 'none is no key store; make one'),
    ({'beams': 2}, '--beams and --nest exclude each other'),
  ):
    with (
      flagsaver.flagsaver(checkpoint='x', nest=str(tmp_path / 'none'), **flag),
      pytest.raises(SystemExit, match=f'sample.py: .*{words}'),
    ):
      sample.main([])


@pytest.mark.slow
def test_sample_copies_from_a_store_and_says_from_where(
  built, tmp_path, monkeypatch, capsys
):
  config = RUN.config
  config.sampler = chain.parse('greedy')
  for name in ('restore', 'for_decoding'):
    monkeypatch.setattr(restore, name, lambda directory, limit=None: RUN)
  path = tmp_path / 'trace.json'
  with flagsaver.flagsaver(
    checkpoint='runs/none', nest=str(built), prompt=['import os'], num_bytes=8,
    nest_rule='delta=1, gamma=0, span=4, passages=2', trace=str(path),
  ):  # fmt: skip
    sample.main([])
  text, said = capsys.readouterr()
  assert text.startswith('import os')
  [made] = json.loads(path.read_text())['samples']
  assert made['sources']
  for span in made['sources']:
    document = dict(DOCUMENTS)[span['document']]
    # The end of a document is an id of no byte.
    first, end = span['offset'], span['first'] + span['count']
    copied = [step['text'] for step in made['steps'][span['first'] : end]]
    assert document[first:].decode().startswith(''.join(copied))
    assert f'{span["document"]} at byte {first}: ' in said
  assert '% of the drafted tokens accepted' in said
  assert f'{span["document"]} at byte' in path.with_suffix('.html').read_text()


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--out=x'], '--checkpoint is missing; give it a directory'),
    (['--checkpoint=x'], '--out is missing'),
    (
      ['--checkpoint=x', '--out=y', '--files=*', '--config=c'],
      '--files and --config exclude each other',
    ),
  ],
)
def test_bad_flags_end_with_one_sentence(arguments, words, monkeypatch):
  monkeypatch.setattr(key_store.host, 'keep_memory', lambda: None)
  own = flags.FlagValues()
  given = key_store.define_flags(own)
  own(['key_store', *arguments])
  with pytest.raises(SystemExit, match=f'samplers.key_store: {words}'):
    key_store.main(given)


def test_the_command_builds_from_files(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(key_store.host, 'keep_memory', lambda: None)
  monkeypatch.setattr(restore, 'restore', lambda directory: RUN)
  for name, text in DOCUMENTS[:2]:
    (tmp_path / name).write_bytes(text)
  own = flags.FlagValues()
  given = key_store.define_flags(own)
  out = tmp_path / 'store'
  own(['', '--checkpoint=x', f'--out={out}', f'--files={tmp_path}/*.py',
       '--max_bytes=20', '--dtype=bfloat16'])  # fmt: skip
  key_store.main(given)
  assert '21 keys of 32 numbers, 1 documents' in capsys.readouterr().out
  found = neighbours.open_store(str(out), RUN)
  assert found.names == ['a.py']
  assert found.keys.read(0, 21).dtype == 'bfloat16'
