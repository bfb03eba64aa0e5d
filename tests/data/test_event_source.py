import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from data import builder
from data import card_world
from data import event_builder
from data import event_codes
from data import event_source
from data import event_tokens


@pytest.fixture(scope='module')
def stream(tmp_path_factory):
  directory = tmp_path_factory.mktemp('cards')
  return event_source.CardStream(users=20, events=9, directory=str(directory))


def test_columns_are_what_was_drawn(stream):
  corpus = stream.open('test')
  cards, _ = stream.cards('test')
  assert len(corpus) == 4 and corpus.num_events == 36
  assert corpus.tokenizer.names == (
    'time:gap', 'time:hour', 'merchant', 'amount', 'channel', 'city', 'error',
    'fraud',
  )  # fmt: skip
  ids_EC = np.asarray(corpus.ids_EC).astype(int)
  first = event_codes.Words(()).first
  np.testing.assert_array_equal(ids_EC[:, 1] - first, cards.hour.ravel())
  np.testing.assert_array_equal(ids_EC[:, 2] - first, cards.merchant.ravel())
  np.testing.assert_array_equal(ids_EC[:, 4] - first, cards.channel.ravel())
  city_E = np.where(ids_EC[:, 5] == 0, -1, ids_EC[:, 5] - first)
  np.testing.assert_array_equal(city_E, cards.city.ravel())
  np.testing.assert_array_equal(ids_EC[:, 6] - first, cards.error.ravel())
  label = corpus.tokenizer.label.code
  np.testing.assert_array_equal(ids_EC[:, 7] - label.first, cards.fraud.ravel())
  gap_E = np.diff(corpus.times_E.reshape(4, 9), axis=1) // 3600
  np.testing.assert_array_equal(gap_E, cards.gap[:, 1:])
  assert (ids_EC[::9, 0] == event_codes.NULL).all()
  code = corpus.tokenizer.columns[3].code
  bent_E = corpus.values_EC[:, 3] * code.spread + code.mean
  cents_E = np.sinh(bent_E) * code.scale * 100
  np.testing.assert_allclose(cents_E, cards.cents.ravel(), rtol=1e-5)
  assert np.isnan(corpus.values_EC[:, [1, 2, 4, 5, 6, 7]]).all()


def test_fresh_users_are_new_and_the_same_however_they_are_asked_for(stream):
  whole = stream.fresh(0, 6)
  part = stream.fresh(2, 3)
  np.testing.assert_array_equal(whole.ids_EC[18:45], part.ids_EC)
  prepared = {stream.open(s).ids_EC[:9].tobytes() for s in event_source.SPLITS}
  assert whole.ids_EC[:9].tobytes() not in prepared
  assert len(prepared) == 3


def test_same_seed_makes_identical_files(stream, tmp_path):
  other = dataclasses.replace(stream, directory=str(tmp_path))
  for path in sorted(stream.prepare().rglob('*')):
    if path.is_file():
      same = other.prepare() / path.relative_to(stream.prepare())
      assert path.read_bytes() == same.read_bytes()
  changed = dataclasses.replace(other, seed=1)
  assert changed.prepare() != other.prepare()


def test_by_time_the_past_is_not_scored(stream):
  by_time = dataclasses.replace(stream, split_by='time')
  counts = [by_time.open(s).scored_E.sum() for s in event_source.SPLITS]
  assert sum(counts) == 180 and min(counts) > 20
  test = by_time.open('test')
  assert test.num_events == 180
  cards, _ = by_time.cards('test')
  label_E = test.ids_EC[:, -1] - test.tokenizer.label.code.first
  np.testing.assert_array_equal(label_E, cards.fraud.ravel())


def test_tokenizer_survives_its_json(stream):
  tokenizer = stream.tokenizer
  again = event_tokens.Tokenizer.from_json(tokenizer.to_json())
  assert again == tokenizer and again.digest == tokenizer.digest
  assert tokenizer.offsets_C[0] == 0
  np.testing.assert_array_equal(
    tokenizer.offsets_C[1:], np.cumsum(tokenizer.sizes_C)[:-1]
  )
  text = tokenizer.to_json().replace('"version": 1', '"version": 0')
  with pytest.raises(ValueError, match='has version 0, and this code reads'):
    event_tokens.Tokenizer.from_json(text)
  with pytest.raises(ValueError, match='are no rows of 8 columns'):
    tokenizer.decode(np.zeros((3, 2)))


def test_tfds_has_every_entity(stream, tmp_path):
  corpora = {split: stream.open(split) for split in event_source.SPLITS}
  folder = event_builder.write(corpora, tmp_path, 'cards')
  corpus, seen = corpora['test'], list(builder.read(folder, 'test'))
  assert len(seen) == len(corpus)
  for name, array in (
    ('ids', corpus.ids_EC),
    ('values', corpus.values_EC),
    ('times', corpus.times_E),
    ('scored', corpus.scored_E),
  ):
    stored = np.concatenate([example[name] for example in seen])
    np.testing.assert_array_equal(stored, array)
  names = [example['entity'].decode() for example in seen]
  assert names == corpus.table['user'].unique().to_pylist()


def test_bins_of_numbers():
  x_E = np.concatenate([np.arange(1.0, 101), np.full(60, 7.0), [0, np.nan]])
  code = event_codes.Bins.fitted(x_E, bins=8, logarithmic=False)
  ids_E = code.encode(pa.array(x_E, from_pandas=True), None)
  assert ids_E[-2] == event_codes.ZERO and ids_E[-1] == event_codes.NULL
  assert ids_E[:-2].min() == code.first and ids_E.max() == code.size - 1
  # Equal numbers share a bin, larger ones are in no lower one.
  assert (np.diff(ids_E[:100]) >= 0).all() and len(set(ids_E[100:160])) == 1
  extremes = code.encode(pa.array([0.5, 100.5, -3.0]), None)
  assert extremes.tolist() == [
    event_codes.UNDER, event_codes.OVER, event_codes.UNDER,
  ]  # fmt: skip
  for place in range(len(code.samples)):
    inside = x_E[:160][ids_E[:-2] == code.first + place]
    median = code.decode(np.array([code.first + place]), None)[0].as_py()
    assert abs(median - np.median(inside)) <= 1
    assert len(inside)
  gaps = event_codes.Bins.fitted(
    np.array([1.0, 2, 4, 8, 1000]), bins=10, logarithmic=True
  )
  assert len(gaps.samples) == 5


def test_recent_values():
  column = pa.array(['a', 'b', 'a', 'a', 'c', 'a', 'b', None, 'b'])
  first_E = np.array([0, 0, 0, 0, 0, 5, 5, 5, 5])
  code = event_codes.Recents(depth=2)
  ids_E = code.encode(column, first_E)
  new = event_codes.NEW
  assert ids_E.tolist() == [
    new, new, new + 2, new + 1, new, new, new, event_codes.NULL, new + 2,
  ]  # fmt: skip
  assert code.decode(ids_E[:4], None).to_pylist() == [
    'NEW', 'NEW', '2 ago', '1 ago',
  ]  # fmt: skip
  fitted = event_codes.Recents.fitted(column, first_E, depth=2)
  assert fitted == event_codes.Recents(2, ('a', 'b', 'c', 'a', 'b'))
  rng, history = np.random.default_rng(0), ['b', 'a', None]
  assert fitted.value(history, new + 2, rng) == 'a'
  assert fitted.value(history, event_codes.NULL, rng) is None
  assert fitted.value(history, new) is None
  # Those of the last two events would be no new ones.
  for number, past in ((new, history), (new + 2, ['a'])):
    drawn = {fitted.value(past, number, rng) for _ in range(50)}
    assert drawn == {'b', 'c'}


def test_ids_are_cut_by_count_and_number(stream):
  table = pa.table(
    {
      'user': ['u'] * 12,
      'time': pa.array(range(12)),
      'merchant': ['a'] * 5 + ['b'] * 4 + ['c'] * 2 + ['d'],
    }
  )
  field = stream.schema.fields[0]

  def code(kind='id', **limits):
    schema = dataclasses.replace(
      stream.schema,
      fields=(dataclasses.replace(field, kind=kind, values=()),),
      derived=(),
    )
    fitted = event_tokens.fit(schema, table, event_tokens.Limits(**limits))
    return fitted.columns[0].code

  assert code(min_count=4).words == ('a', 'b')
  assert code(min_count=1, max_words=2) == event_codes.Recents(
    16, ('a', 'b', 'c', 'd')
  )
  # With one word of five rows of twelve most would be unknown.
  assert isinstance(code(min_count=5), event_codes.Recents)
  assert code(min_count=4, max_words=2).words == ('a', 'b')
  # What came once is as unknown as what will come; of few words none is.
  assert code('category').words == ('a', 'b', 'c')
  assert code('bool').words == ('a', 'b', 'c', 'd')
  # Of two classes the rarer one is positive, a yes always.
  assert code('label').words == ('a', 'b', 'c', 'd')
  for some, words in (
    (['a'] * 9 + ['b'] * 3, ('a', 'b')),
    (['b'] * 9 + ['a'] * 3, ('b', 'a')),
    (['Yes'] * 9 + ['No'] * 3, ('No', 'Yes')),
  ):
    table = table.set_column(2, 'merchant', [some])
    assert code('label').words == words


def test_errors_of_streams(stream):
  with pytest.raises(ValueError, match=r"split_by='user' is unknown; choose"):
    dataclasses.replace(stream, split_by='user')
  with pytest.raises(ValueError, match=r'kappa=1\.5 is a probability'):
    _ = dataclasses.replace(stream, kappa=1.5).world
  with pytest.raises(ValueError, match="split 'dev' is unknown"):
    stream.open('dev')
  with pytest.raises(ValueError, match=r'data\.users=2'):
    event_source.CardStream(users=2)
  assert stream.world == card_world.World()
