import csv
import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import event_files
from data import event_inspect
from data import event_reader
from data import event_schema
from tests.data import small_events


def prepare_error(
  tmp_path,
  lines,
  header=small_events.HEADER,
  schema=small_events.SCHEMA,
  **fields,
):
  path = small_events.write(tmp_path / 'events.csv', lines, header)
  made = small_events.source(tmp_path, path, schema, **fields)
  with pytest.raises(ValueError) as error:
    made.prepare()
  # Nothing partial is left.
  left = [p for p in (tmp_path / 'cache').glob('*') if p.suffix != '.lock']
  assert not left
  return str(error.value).replace(str(path), 'FILE')


def with_labels(*values):
  """The schema with a list of the label's values."""
  label = event_schema.Field('bad', 'label', values)
  return dataclasses.replace(
    small_events.SCHEMA, fields=(*small_events.FIELDS[:-1], label)
  )


def in_folders(tmp_path):
  """prepare_error that is given a folder of its own every time."""

  def error(*arguments, **fields):
    folder = tmp_path / f'{len(list(tmp_path.iterdir()))}'
    folder.mkdir()
    return prepare_error(folder, *arguments, **fields)

  return error


def spoiled(tmp_path):
  """A file of 600 rows of which 8 are bad in eight ways, with its lines."""
  lines = small_events.rows(users=50)
  lines[3] = lines[3][:-1]
  lines[10][3] = '1,5'
  lines[20][3] = 'inf'
  lines[30][1] = '2020-13-01'
  lines[40][1] = '1850-01-01'
  lines[50][0] = ''
  lines[70][1] = 'NA'
  path = small_events.write(tmp_path / 'events.csv', lines)
  data = path.read_bytes().split(b'\r\n')
  data[61] = data[61].replace(b',s', b',\xff', 1)
  path.write_bytes(b'\r\n'.join(data))
  return path, data


def test_bad_rows_are_an_error(tmp_path):
  path, _ = spoiled(tmp_path)
  with pytest.raises(ValueError) as error:
    small_events.source(tmp_path, path).prepare()
  assert str(error.value) == (
    f'{path}: 8 of 600 rows are bad and none may be (1 ragged row, 1 no'
    ' number, 1 infinite number, 1 unparsable time, 1 time outside 1900-2100,'
    ' 1 no entity, 1 undecodable bytes, 1 no time); the first: line 5: '
    "'7 values' where 8 values should be (ragged row); line 12, column"
    " 'amount': '1,5' where a number should be (no number); line 22, column"
    " 'amount': 'inf' where a finite number should be (infinite number);"
    " line 32, column 'when': '2020-13-01' where a time of format 'iso' should"
    " be (unparsable time); line 42, column 'when': '1850-01-01' where a year"
    ' from 1900 to 2100 should be (time outside 1900-2100); correct the file'
    ' or the schema, or set data.on_bad to drop or quarantine and'
    ' data.max_bad_fraction to what you can spare.'
  )
  for on_bad in ('drop', 'quarantine'):
    with pytest.raises(
      ValueError, match=r'8 of 600 rows are bad and data\.max'
    ):
      small_events.source(tmp_path, path, on_bad=on_bad).prepare()


@pytest.mark.parametrize('on_bad', ['drop', 'quarantine'])
def test_bad_rows_are_left_out_and_kept_apart(tmp_path, on_bad, caplog):
  path, data = spoiled(tmp_path)
  made = small_events.source(
    tmp_path, path, on_bad=on_bad, max_bad_fraction=0.02
  )
  folder = made.prepare()
  metadata = json.loads((folder / 'metadata.json').read_text())
  assert metadata['rows'] == 600 and sum(metadata['bad'].values()) == 8
  assert sum(s['events'] for s in metadata['splits'].values()) == 592
  quarantine = folder / 'quarantine.csv'
  assert '8 of 600 rows are left out (1 ragged row' in caplog.text
  assert (str(quarantine) in caplog.text) == (on_bad == 'quarantine')
  assert quarantine.exists() == (on_bad == 'quarantine')
  if on_bad == 'quarantine':
    text = quarantine.read_text(errors='surrogateescape')
    found = list(csv.DictReader(text.splitlines(keepends=True)))
    assert [int(row['line']) for row in found] == [
      5, 12, 22, 32, 42, 52, 62, 72,
    ]  # fmt: skip
    for row in found:
      kept = row['text'].encode('utf-8', 'surrogateescape').strip()
      assert kept == data[int(row['line']) - 1]


def test_inspect_tells_of_rows_that_it_cannot_read(tmp_path):
  path, _ = spoiled(tmp_path)
  proposal = event_inspect.propose(path)
  assert proposal.rows == 598
  assert proposal.report().splitlines()[1] == (
    '  2 rows cannot be read (1 ragged row, 1 undecodable bytes): line 5: '
    "'7 values' where 8 values should be (ragged row)"
  )
  path.write_bytes('user,when\nü,2020\nü,2021\n'.encode('latin-1'))
  with pytest.raises(ValueError) as error:
    event_inspect.propose(path)
  assert str(error.value) == (
    f'{path} has a header and no row; 2 rows cannot be read (2 undecodable'
    " bytes): line 2, column 'user': '\\\\xfc' where UTF-8 should be"
    ' (undecodable bytes).'
  )


def test_lines_that_a_quote_runs_over_are_all_counted(tmp_path):
  lines = small_events.rows(users=50)
  path = small_events.write(tmp_path / 'events.csv', lines)
  data = path.read_text().split('\n')
  # Two are closed by the quotes of the next row, and the last one by none.
  for row in (7, 598, 600):
    data[row] = data[row].replace('"', '').replace('$', '"$', 1)
  path.write_text('\n'.join(data))
  made = small_events.source(
    tmp_path, path, on_bad='quarantine', max_bad_fraction=0.02
  )
  folder = made.prepare()
  metadata = json.loads((folder / 'metadata.json').read_text())
  assert metadata['rows'] == 600 and metadata['bad'] == {'broken quotes': 5}
  kept = list(csv.DictReader((folder / 'quarantine.csv').open(newline='')))
  for row in kept:
    assert row['text'].rstrip('\n') == data[int(row['line']) - 1]
  seen = {int(row['line']) for row in kept}
  for split in metadata['splits']:
    seen |= set(made.open(split).table[event_reader.LINE].to_pylist())
  assert seen == set(range(2, 602))


def test_errors_of_files(tmp_path):
  error = in_folders(tmp_path)
  lines = small_events.rows(users=30)
  assert error([], header=[]) == (
    'FILE is empty; give a file with a header and rows.'
  )
  assert error([]) == ('FILE has a header and no row; give a file with events.')
  header = ['user', 'when', 'shop', 'amoumt', 'zip', 'online', 'bad', 'note']
  assert error(lines, header=header) == (
    "FILE has no column 'amount'; the closest are 'amoumt': correct the schema."
  )
  assert error(lines, header=[*small_events.HEADER[:-1], 'zip']) == (
    "FILE has 2 columns named 'zip'; rename all but one."
  )
  assert error(lines, header=[*small_events.HEADER[:-1], '']) == (
    "FILE has a column without a name in ['user', 'when', 'shop', 'amount',"
    " 'zip', 'online', 'bad', '']; name it."
  )
  assert error(lines, header=[';'.join(small_events.HEADER)]) == (
    "FILE has the one column 'user;when;shop;amount;zip;online;bad;note'"
    " between ','; set delimiter to ';' in the schema, or --delimiter."
  )
  zones = [list(row) for row in lines]
  zones[7][1] = '2020-01-01T00:00:00Z'
  assert error(zones) == (
    "FILE: some times of 'when' have a time zone and some have none; write all"
    ' with one (as 2020-01-31T12:00:00Z) or all without.'
  )
  empty = [[*row[:4], '', *row[5:]] for row in lines]
  assert error(empty) == (
    "FILE: column 'zip' has no value in any row; take it out of the schema."
  )


def test_errors_of_labels(tmp_path):
  error = in_folders(tmp_path)
  lines = small_events.rows(users=30)
  single = [[*row[:6], 'no', row[7]] for row in lines]
  assert error(single) == (
    "FILE: label 'bad' has ['no'] in all training events, and needs two values"
    ' at least; choose another label or more entities.'
  )
  unseen = [
    row if small_events.trains(row[0]) else [*row[:6], 'maybe', row[7]]
    for row in lines
  ]
  assert error(unseen) == (
    "FILE: label 'bad' is 'maybe' in split 'validation' and never in training,"
    " where it is one of ['no', 'yes']; name all values in the"
    ' "values" of that field of the schema, or correct them.'
  )
  assert error(lines, schema=with_labels('no')) == (
    "FILE: label 'bad' is 'yes' in split 'train', and the \"values\" of that"
    " field of the schema are ['no']; name all values there, or correct them."
  )
  assert error(unseen, schema=with_labels('no', 'yes')) == (
    "FILE: label 'bad' is 'maybe' in split 'validation', and the \"values\" of"
    " that field of the schema are ['no', 'yes']; name all values there, or"
    ' correct them.'
  )
  assert error(lines, max_words=1) == (
    "FILE: label 'bad' has 2 values in training, more than data.max_words=1;"
    ' raise that, or choose another label.'
  )


def test_errors_of_splits(tmp_path):
  error = in_folders(tmp_path)
  lines = small_events.rows(users=30)
  few = small_events.rows(users=1)
  assert error(few) == (
    "FILE: split 'train' by data.split_by='entity' has none of the 12"
    ' events (of 1 entities); give a file with more entities or times, or'
    ' another data.split_by.'
  )
  tied = [[row[0], '2020-01-01', *row[2:]] for row in lines]
  assert error(tied, split_by='time') == (
    "FILE: split 'train' by data.split_by='time' has none of the 360 events (of"
    ' 30 entities); give a file with more entities or times, or another'
    ' data.split_by.'
  )


def test_broken_quotes_are_an_error(tmp_path):
  path = small_events.write(
    tmp_path / 'quotes.csv', small_events.rows(users=30)
  )
  path.write_text(path.read_text().replace('"x, ""y"""', '"x" y', 1))
  with pytest.raises(ValueError) as error:
    small_events.source(tmp_path, path).prepare()
  assert str(error.value) == (
    f'{path}: 1 of 360 rows are bad and none may be (1 broken quotes); the'
    r""" first: line 2: '\',\' expected after \'"\'' where closed quotes"""
    ' should be (broken quotes); correct the file or the schema, or set'
    ' data.on_bad to drop or quarantine and data.max_bad_fraction to what you'
    ' can spare.'
  )


def test_labels_may_have_values_that_never_come(tmp_path):
  path = small_events.write(tmp_path / 'events.csv', small_events.rows())
  schema = with_labels('maybe', 'yes', 'no')
  made = small_events.source(tmp_path, path, schema)
  assert made.tokenizer.label.code.words == ('maybe', 'yes', 'no')


def test_blank_lines_before_the_header_are_none(tmp_path):
  path = small_events.write(tmp_path / 'events.csv', small_events.rows())
  plain = small_events.source(tmp_path, path).open('train')
  path.write_text('\n\r\n' + path.read_text())
  found = small_events.source(tmp_path, path).open('train')
  np.testing.assert_array_equal(found.ids_EC, plain.ids_EC)
  lines, shifted = (
    corpus.table[event_reader.LINE].to_numpy() for corpus in (plain, found)
  )
  np.testing.assert_array_equal(shifted, lines + 2)
  path.write_text('\n\n')
  with pytest.raises(ValueError) as error:
    small_events.source(tmp_path, path).prepare()
  assert str(error.value) == (
    f'{path} is empty; give a file with a header and rows.'
  )


@pytest.mark.parametrize(
  ('name', 'value', 'rule'),
  [
    ('max_bad_fraction', float('nan'), 'from 0 to 1'),
    ('max_bad_fraction', 5.0, 'from 0 to 1'),
    ('max_bad_fraction', -1.0, 'from 0 to 1'),
    ('bins', 0, 'at least 1'),
    ('bins', -3, 'at least 1'),
    ('recents', 0, 'at least 1'),
    ('min_count', 0, 'at least 1'),
    ('max_words', 0, 'at least 1'),
    ('partitions', 3, 'a power of 2, or 0'),
  ],
)
def test_limits_are_checked_where_they_are_set(name, value, rule):
  with pytest.raises(ValueError) as error:
    event_files.Events(**{name: value})
  assert str(error.value) == f'data.{name}={value} must be {rule}.'


def test_errors_of_parquet_and_paths(tmp_path):
  path = tmp_path / 'nested.parquet'
  table = {name: ['1', '1'] for name in small_events.HEADER}
  pq.write_table(pa.table(table | {'zip': [[1], [2]]}), path)
  with pytest.raises(ValueError) as error:
    small_events.source(tmp_path, path).prepare()
  assert str(error.value) == (
    f"{path}: column 'zip' is nested (list<element: int64>); write one plain"
    ' column per value, or take it out of the schema.'
  )
  path.write_bytes(b'PAR1 and no more')
  with pytest.raises(ValueError) as error:
    small_events.source(tmp_path, path).prepare()
  before, reason = str(error.value).split(' (', 1)
  assert before == f'{path} is damaged or no Parquet file'
  assert reason.endswith('); write it anew.') and len(reason) > 30
  none = tmp_path / 'none.csv'
  with pytest.raises(ValueError) as error:
    small_events.source(tmp_path, none).prepare()
  assert str(error.value) == (
    f"data.path='{none}' cannot be read (No such file or directory); give the"
    ' path of a CSV or Parquet file.'
  )
  with pytest.raises(ValueError) as error:
    small_events.source(tmp_path, '').prepare()
  assert str(error.value) == (
    'data.path names no file; set it to a CSV or Parquet file of events.'
  )
  with pytest.raises(ValueError) as error:
    event_files.Events(str(path)).prepare()
  assert str(error.value) == (
    'data.schema names no file; propose one with `python -m data.events inspect'
    ' FILE`, edit it and set data.schema to it.'
  )
  with pytest.raises(ValueError) as error:
    small_events.source(tmp_path, path, on_bad='skip')
  assert str(error.value) == (
    "data.on_bad='skip' is unknown; choose one of ('error', 'drop',"
    " 'quarantine')."
  )


def test_test_entities_may_not_train(tmp_path):
  lines = small_events.rows()
  first = small_events.write(
    tmp_path / 'train.csv', [r for r in lines if r[0] < 'u3']
  )
  second = small_events.write(
    tmp_path / 'test.csv', [r for r in lines if r[0] >= 'u3']
  )
  made = small_events.source(tmp_path, first, test_path=str(second))
  test = made.open('test').table
  assert set(test['user'].to_pylist()) == {r[0] for r in lines if r[0] >= 'u3'}
  shared = small_events.write(
    tmp_path / 'test.csv', [r for r in lines if r[0] >= 'u29']
  )
  made = small_events.source(tmp_path, first, test_path=str(shared))
  with pytest.raises(ValueError) as error:
    made.prepare()
  assert str(error.value) == (
    f"1 entities of {shared} are in {first}, too (as 'u29'), and would be"
    ' trained on; take them out of one of the files.'
  )
