import dataclasses
import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import builder
from data import event_cells
from data import event_corpus
from data import event_files
from data import event_inspect
from data import event_reader
from data import event_schema
from data import events
from tests.data import small_events


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A corpus of a CSV file, with its source and the lines of the file."""
  tmp_path = tmp_path_factory.mktemp('events')
  lines = small_events.rows()
  made = small_events.source(
    tmp_path, small_events.write(tmp_path / 'events.csv', lines), bins=8
  )
  made.prepare()
  return made, lines


def test_every_row_is_in_one_split_in_order(prepared):
  made, lines = prepared
  seen, users = [], []
  for split in ('train', 'validation', 'test'):
    corpus = made.open(split)
    table = corpus.table.to_pydict()
    assert len(corpus.ids_EC) == len(table['user']) == corpus.offsets_N1[-1]
    for start, stop in zip(
      corpus.offsets_N1[:-1], corpus.offsets_N1[1:], strict=True
    ):
      assert len(set(table['user'][start:stop])) == 1
      users.append(table['user'][start])
      assert (np.diff(corpus.times_E[start:stop]) >= 0).all()
    for row, line in enumerate(table[event_reader.LINE]):
      seen.append(line)
      # Line 1 is the header.
      text = lines[line - 2]
      assert table['user'][row] == text[0]
      assert table['when'][row].isoformat(' ') == f'{text[1]}+00:00'
      assert table['amount'][row] == float(text[3].strip('$'))
      assert table['zip'][row] == text[4]
  assert sorted(seen) == list(range(2, len(lines) + 2))
  assert len(users) == len(set(users)) == 40


def test_ids_decode_to_what_was_read(prepared):
  made, _ = prepared
  corpus = made.open('train')
  tokenizer, table = corpus.tokenizer, corpus.table
  assert tokenizer.names == (
    'when:gap', 'when:hour', 'when:weekday', 'shop', 'amount', 'zip',
    'online', 'bad',
  )  # fmt: skip
  decoded = tokenizer.decode(np.asarray(corpus.ids_EC))
  for name in ('shop', 'zip', 'online', 'bad'):
    expected = table[name].to_pylist()
    if name in ('zip', 'shop'):
      words = set(tokenizer.columns[tokenizer.names.index(name)].code.words)
      expected = [word if word in words else None for word in expected]
    assert decoded[name].to_pylist() == expected
  # Within the bin: the same bin again, and between its edges.
  code = tokenizer.columns[4].code
  again = code.encode(decoded['amount'].combine_chunks(), None)
  np.testing.assert_array_equal(again, corpus.ids_EC[:, 4])
  hours = [when.hour for when in table['when'].to_pylist()]
  assert decoded['when:hour'].to_pylist() == [str(hour) for hour in hours]
  days = [when.weekday() for when in table['when'].to_pylist()]
  assert decoded['when:weekday'].to_pylist() == [str(day) for day in days]
  drawn = tokenizer.decode(np.asarray(corpus.ids_EC), np.random.default_rng(0))
  assert set(drawn['amount'].to_pylist()) <= set(table['amount'].to_pylist())
  assert len(set(drawn['amount'].to_pylist())) > len(code.samples)


@pytest.mark.parametrize('split_by', ['entity', 'both'])
def test_partitions_leave_no_trace(tmp_path, split_by, monkeypatch):
  path = small_events.write(
    tmp_path / 'events.csv', small_events.rows(users=24)
  )
  monkeypatch.setattr('data.event_corpus._GROUP', 100)
  found = []
  for partitions, rows in ((1, 2**16), (4, 50)):
    monkeypatch.setattr('data.event_rows._CHUNK', rows)
    made = small_events.source(
      tmp_path, path, split_by=split_by, partitions=partitions
    )
    made = dataclasses.replace(made, directory=str(tmp_path / f'{partitions}'))
    found.append(small_events.files_of(made.prepare()))
  assert sorted(found[0]) == sorted(found[1])
  assert len(found[0]) > 20
  for name in found[0]:
    assert found[0][name] == found[1][name], name


def test_parquet_is_csv(tmp_path):
  lines = small_events.rows(users=20)
  columns = dict(
    zip(small_events.HEADER, zip(*lines, strict=True), strict=True)
  )
  table = pa.table(
    columns
    | {
      'amount': [float(x.strip('$')) for x in columns['amount']],
      'when': pa.array(columns['when']).cast(pa.timestamp('s')),
      'shop': pa.array(columns['shop']).dictionary_encode(),
    }
  )
  pq.write_table(table, tmp_path / 'events.parquet')
  nested = table.append_column('tags', pa.array([['a']] * len(table)))
  pq.write_table(nested, tmp_path / 'nested.parquet')
  proposal = event_inspect.propose(tmp_path / 'nested.parquet')
  assert 'tags: drop (its values are no plain ones' in proposal.report()
  assert [f.kind for f in proposal.columns[:2]] == ['category', 'time']
  path = small_events.write(tmp_path / 'events.csv', lines)
  packed = tmp_path / 'events.csv.gz'
  packed.write_bytes(gzip.compress(path.read_bytes()))
  csv_ids, gz_ids, parquet_ids = (
    np.asarray(small_events.source(tmp_path, p).open('train').ids_EC)
    for p in (path, packed, tmp_path / 'events.parquet')
  )
  np.testing.assert_array_equal(csv_ids, parquet_ids)
  np.testing.assert_array_equal(csv_ids, gz_ids)


def test_cells_of_parquet_become_the_words_of_csv():
  codes = pa.array([5411.0, None, float('nan'), 0.5, 1e300])
  assert event_cells.words(codes).to_pylist() == [
    '5411', None, None, '0.5', '1e+300',
  ]  # fmt: skip
  ids = pa.array([2**60 + 1, -(2**53) - 1])
  assert event_cells.words(ids).to_pylist() == [
    '1152921504606846977', '-9007199254740993',
  ]  # fmt: skip
  flags = pa.array([True, None, False])
  found, (problem,) = event_cells.bools(flags, 'flag')
  assert found.to_pylist() == ['true', None, 'false']
  assert not problem.bad_E.any()
  numbers, problems = event_cells.numbers(pa.array([1, None, 3]), 'n')
  assert numbers.to_pylist() == [1.0, None, 3.0]
  assert not any(problem.bad_E.any() for problem in problems)
  texts = pa.array(['1e3', ' 7', '-$5.00', '1,234', '1,5', '1_0', 'inf'])
  numbers, (bad, infinite) = event_cells.numbers(texts, 'n')
  assert numbers.to_pylist()[:4] == [1000.0, 7.0, -5.0, 1234.0]
  assert np.flatnonzero(bad.bad_E).tolist() == [4, 5]
  assert np.flatnonzero(infinite.bad_E).tolist() == [6]


def test_tokenizer_knows_nothing_of_other_splits(tmp_path):
  lines = small_events.rows()
  one = small_events.source(
    tmp_path, small_events.write(tmp_path / 'one.csv', lines)
  )
  train = set(one.open('train').table['user'].to_pylist())
  more = next(
    u for u in (f'v{i}' for i in range(99)) if not small_events.trains(u)
  )
  extra = [[more, '1999-01-01', 's1', '10', '99999', 'No', 'no', '']] * 7
  extra += [[r[0], r[1], 'new', '99999', '1', 'No', 'no', '']
            for r in lines if r[0] not in train]  # fmt: skip
  two = small_events.source(
    tmp_path, small_events.write(tmp_path / 'two.csv', lines + extra)
  )
  assert one.tokenizer == two.tokenizer
  stored = one.prepare() / 'tokenizer.json'
  assert stored.read_bytes() == (two.prepare() / 'tokenizer.json').read_bytes()
  code = one.tokenizer.columns[4].code
  ids_EC = two.open('test').ids_EC
  assert code.encode(pa.array([99999.0, -5.0, 0.0, None]), None).tolist() == [
    2, 1, 3, 0,
  ]  # fmt: skip
  assert len(ids_EC)
  other = dataclasses.replace(one, bins=4)
  with pytest.raises(ValueError) as error:
    dataclasses.replace(other, fitted=one.tokenizer.to_json()).open('train')
  names = list(one.tokenizer.names)
  assert str(error.value) == (
    f'The data has ids of tokenizer {other.tokenizer.digest[:12]} (columns'
    f' {names}), the model those of {one.tokenizer.digest[:12]} (columns'
    f" {names}); encode the data with the checkpoint's tokenizer, or train on"
    ' this data.'
  )
  folder = one.prepare()
  with pytest.raises(ValueError) as error:
    event_corpus.EventCorpus.load(folder / 'train', other.tokenizer)
  assert str(error.value) == (
    f'{folder / "train"} was encoded by tokenizer {one.tokenizer.digest[:12]}'
    f' and is opened with {other.tokenizer.digest[:12]}; remove {folder} to'
    ' have it prepared again.'
  )


def test_by_time_the_past_is_history_only(tmp_path):
  path = small_events.write(tmp_path / 'events.csv', small_events.rows())
  made = small_events.source(tmp_path, path, split_by='time')
  train, validation, test = (
    made.open(split) for split in ('train', 'validation', 'test')
  )
  assert train.scored_E.all() and len(test.ids_EC) == 480
  first = validation.times_E[validation.scored_E].min()
  second = test.times_E[test.scored_E].min()
  assert train.times_E.max() < first <= validation.times_E.max() < second
  scored = sum(c.scored_E.sum() for c in (train, validation, test))
  assert scored == 480
  both = dataclasses.replace(made, split_by='both')
  users = [set(both.open(s).table['user'].to_pylist())
           for s in ('train', 'test')]  # fmt: skip
  assert not users[0] & users[1]
  corpus = both.open('test')
  np.testing.assert_array_equal(corpus.scored_E, corpus.times_E >= second)


def test_missing_values_and_times_in_other_forms(tmp_path):
  lines = small_events.rows()
  for row, word in zip(lines, ('', 'NA', 'NaN', 'null', 'None', 'nan') * 9,
                       strict=False):  # fmt: skip
    row[4], row[3], row[6] = word, word, word
  made = small_events.source(
    tmp_path, small_events.write(tmp_path / 'events.csv', lines)
  )
  table = pa.concat_tables(
    [made.open(s).table for s in ('train', 'validation', 'test')]
  )
  for name in ('zip', 'amount', 'bad'):
    assert table[name].null_count == 54
  reader = event_reader.Reader
  for form, text in (
    ('epoch_s', '1577869200'),
    ('epoch_ms', '1577869200000'),
    ('epoch_us', '1577869200000000'),
    ('epoch_ns', '1577869200000000000'),
    ('iso', '2020-01-01T10:00:00+01:00'),
    ('iso', '2020-01-01T09:00:00Z'),
    ('%y%m%d %H', '200101 9'),
    ('%d%b%y:%H:%M:%S', '01JAN20:09:00:00'),
  ):
    path = small_events.write(tmp_path / 'time.csv', [['u', text, '(1,234.5)']],
                 ['user', 'when', 'amount'])  # fmt: skip
    schema = event_schema.Schema(
      'user', 'when', small_events.FIELDS[1:2], time_format=form
    )
    (chunk,) = reader(path, schema).chunks()
    assert chunk.table['when'][0].as_py().isoformat() == (
      '2020-01-01T09:00:00+00:00'
    )
    assert chunk.table['amount'][0].as_py() == -1234.5


def test_inspect_proposes_and_never_guesses(tmp_path, capsys):
  path = small_events.write(
    tmp_path / 'events.csv', small_events.rows(users=60)
  )
  out = tmp_path / 'schema.json'
  assert events.main(['inspect', str(path), f'--out={out}']) == 0
  printed = capsys.readouterr().out
  assert "when: time (a time of format 'iso'" in printed
  assert 'note: drop (it never changes' in printed
  assert 'No label is named: a model' in printed
  assert printed.endswith('Left out: when, note.\n')
  with pytest.raises(ValueError, match='names no entity, and it is never'):
    event_schema.Schema.load(out)
  arguments = ['--entity=user', '--time=when', '--label=bad']
  assert events.main(['inspect', str(path), f'--out={out}', *arguments]) == 0
  schema = event_schema.Schema.load(out)
  assert [(f.name, f.kind) for f in schema.fields] == [
    ('shop', 'category'), ('amount', 'number'), ('zip', 'category'),
    ('online', 'bool'), ('bad', 'label'),
  ]  # fmt: skip
  assert event_schema.Schema.from_json(schema.to_json()) == schema
  given = ['tfds', str(path), f'--schema={out}', f'--out={tmp_path / "tfds"}']
  capsys.readouterr()
  assert events.main(given) == 0
  folder = capsys.readouterr().out.split("'")[1]
  directory = str(tmp_path / 'tfds' / 'prepared')
  made = event_files.Events(str(path), str(out), directory=directory)
  ids_EC = np.concatenate([e['ids'] for e in builder.read(folder, 'test')])
  np.testing.assert_array_equal(ids_EC, made.open('test').ids_EC)
  trained = made.trained()
  out.unlink()  # The config holds everything.
  assert trained.open('test').tokenizer == trained.tokenizer


def test_inspect_reads_times_by_magnitude_and_in_parts(tmp_path):
  path = tmp_path / 'parts.csv'
  lines = [
    [
      i % 7, 2000 + i % 3, i % 12 + 1, i % 28 + 1, f'{i % 24:02d}:30',
      1_500_000_000_000 + i, f'{i % 40:05d}', 2**62 + i % 70,
      2**60 + i % 70,
    ]
    for i in range(200)
  ]  # fmt: skip
  header = [
    'User', 'Year', 'Month', 'Day', 'Time', 'stamp', 'zip', 'shop', 'card_id',
  ]  # fmt: skip
  small_events.write(path, lines, header)
  proposal = event_inspect.propose(path)
  assert proposal.times == (
    (('stamp',), 'epoch_ms'),
    (('Year', 'Month', 'Day', 'Time'), '%Y %m %d %H:%M'),
  )
  assert 'User' in proposal.entities
  # Numbers that float64 would confuse are names, not amounts or nanoseconds.
  assert [f.kind for f in proposal.columns[-2:]] == ['category'] * 2
  schema = event_schema.Schema.from_json(
    proposal.to_json('User', 'Year+Month+Day+Time')
  )
  assert schema.time_columns == ('Year', 'Month', 'Day', 'Time')
  (chunk,) = event_reader.Reader(path, schema).chunks()
  first = chunk.table['time'][0].as_py()
  assert first.isoformat() == '2000-01-01T00:30:00+00:00'
