"""New values in the columns of a file, by the spelling and types it has."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import event_schema
from data import event_written

# 2020-01-01T09:00:00, and a second before 1970.
TIMES = np.array([1_577_869_200_000_000, -1_000_000])


def schema(time='when', **fields):
  return event_schema.Schema(
    'user', time, (event_schema.Field('x', 'category'),), **fields
  )


@pytest.mark.parametrize(
  'form, text, expected',
  [
    ('iso', '2021-12-31', ['2020-01-01', '1969-12-31']),
    ('iso', '2021-12-31T10:00Z', ['2020-01-01T09:00Z', '1969-12-31T23:59Z']),
    (
      'iso', '2021-12-31 10:00:00.25',
      ['2020-01-01 09:00:00', '1969-12-31 23:59:59'],
    ),
    (
      'iso', '2021-12-31T10:00:00-05:00',
      ['2020-01-01T04:00:00-05:00', '1969-12-31T18:59:59-05:00'],
    ),
    (
      'iso', '2021-12-31 10:00+0530',
      ['2020-01-01 14:30+0530', '1970-01-01 05:29+0530'],
    ),
    (
      'iso', '2021-12-31T10:00:00.5+01',
      ['2020-01-01T10:00:00+01', '1970-01-01T00:59:59+01'],
    ),
    (
      'iso', '20211231T100000Z',
      ['2020-01-01T09:00:00Z', '1969-12-31T23:59:59Z'],
    ),
    (
      '%d.%m.%Y %H:%M:%S %z', '31.12.2021 10:00:00 +0100',
      ['01.01.2020 10:00:00 +0100', '01.01.1970 00:59:59 +0100'],
    ),
    (
      '%z %d.%m.%Y', '+0100 31.12.2021',
      ['+0000 01.01.2020', '+0000 31.12.1969'],
    ),
    ('epoch_s', '5', ['1577869200', '-1']),
    ('epoch_ns', '5', ['1577869200000000000', '-1000000000']),
    (
      '%d%b%y:%H:%M:%S', '31DEC21:10:00:00',
      ['01JAN20:09:00:00', '31DEC69:23:59:59'],
    ),
  ],
)  # fmt: skip
def test_times_of_csv_are_spelled_as_the_file_spells_them(
  tmp_path, form, text, expected
):
  path = tmp_path / 'a.csv'
  path.write_text(f'when,x\n{text},\n,"a,b"\n')
  written = event_written.Written.read(path, schema(time_format=form))
  assert written.table.to_pydict() == {
    'when': [text, None], 'x': [None, 'a,b'],
  }  # fmt: skip
  found = written.times(TIMES)
  assert {name: x.to_pylist() for name, x in found.items()} == {
    'when': expected
  }


@pytest.mark.parametrize(
  ('form', 'ends', 'expected'),
  [
    ('iso', ('+01:00', '+02:00'), 'T09:00:00Z'),
    ('iso', ('Z', '+02:00'), 'T09:00:00Z'),
    ('%Y-%m-%dT%H:%M:%S%z', ('+01:00', '+02:00'), 'T09:00:00+0000'),
  ],
)
def test_times_of_several_offsets_are_in_utc(tmp_path, form, ends, expected):
  path = tmp_path / 'a.csv'
  lines = [f'2021-12-31T10:00:00{end},a\n' for end in ends]
  path.write_text(''.join(['when,x\n', *lines]))
  written = event_written.Written.read(path, schema(time_format=form))
  found = written.times(TIMES[:1])['when'].to_pylist()
  assert found == [f'2020-01-01{expected}']


def test_parts_of_a_time_are_columns_again(tmp_path):
  parts = schema(
    'time',
    time_columns=('Year', 'Month', 'Day', 'Time'),
    time_format='%Y %m %d %H:%M',
  )
  path = tmp_path / 'a.csv'
  path.write_text('Year,Month,Day,Time,x\n2002,9,1,06:21,b\n')
  found = event_written.Written.read(path, parts).times(TIMES[:1])
  assert {name: x.to_pylist() for name, x in found.items()} == {
    'Year': ['2020'], 'Month': ['1'], 'Day': ['1'], 'Time': ['09:00'],
  }  # fmt: skip
  table = pa.table({'Year': [2002], 'Month': [9], 'Day': [1], 'Time': ['6:2']})
  found = event_written.Written(table, parts).times(TIMES[:1])
  assert [x.to_pylist()[0] for x in found.values()] == [2020, 1, 1, '09:00']


def test_money_keeps_its_sign(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text('when,x,y\n5,$3.10,$1\n5,,\n5,"$1,200.00",2\n')
  written = event_written.Written.read(path, schema())
  amounts = pa.array([1.0, -2.5, 7.0])
  empty_E = np.array([False, True, False])
  found = written.filled('x', empty_E, amounts).to_pylist()
  assert found == ['$3.10', '$-2.5', '$1,200.00']
  assert written.like('x', amounts).to_pylist() == ['$1', '$-2.5', '$7']
  assert written.like('y', amounts).to_pylist() == ['1', '-2.5', '7']
  words = pa.array(['a', None, 'b'])
  assert written.like('x', words).to_pylist() == ['a', None, 'b']


def test_parquet_keeps_its_types(tmp_path, caplog):
  zoned = pa.timestamp('ns', 'Europe/Berlin')
  columns = {
    'when': pa.array([datetime.datetime(2020, 1, 1), None], zoned),
    'user': pa.array([2**60 + 1, 5]),
    'word': pa.array(['a', None]).dictionary_encode(),
    'flag': pa.array([True, None]),
    'count': pa.array([1, None], pa.int16()),
    'code': pa.array([5411, None], pa.int64()),
    'day': pa.array([datetime.date(2020, 1, 1), None]),
    'bytes': pa.array([b'x', None]),
    'float': pa.array([0.5, None], pa.float32()),
    'money': pa.array([None, None], pa.decimal128(9, 2)),
  }
  table = pa.table(columns)
  path = tmp_path / 'a.parquet'
  pq.write_table(table.append_column('nested', pa.array([[1], []])), path)
  written = event_written.Written.read(path, schema())
  assert f'{path}: nested columns are left out: nested' in caplog.messages
  assert written.table.equals(table)
  empty_E = np.array([False, True])
  for name, given, expected in (
    ('word', ['x', 'y'], ['a', 'y']),
    ('flag', ['true', 'false'], [True, False]),
    ('count', [7.0, 2.6], [1, 3]),
    ('code', ['1', '5812'], [5411, 5812]),
    ('day', ['', '2020-02-03'], None),
    ('bytes', ['x', 'y'], [b'x', b'y']),
    ('float', [2.0, 0.25], [0.5, 0.25]),
    ('money', [1.0, 2.5], None),
  ):
    found = written.filled(name, empty_E, pa.array(given))
    if expected is not None:
      assert found.type == table[name].type
      assert found.to_pylist() == expected
  # What no number is makes the column text.
  found = written.filled('code', empty_E, pa.array(['1', 'A7']))
  assert found.to_pylist() == ['5411', 'A7']
  times = written.times(TIMES)['when']
  assert times.type == zoned
  assert times.cast(pa.int64()).to_pylist() == (TIMES * 1000).tolist()
  assert written.like('code', pa.array(['12'])).to_pylist() == [12]
  assert written.like('other', pa.array(['12'])).to_pylist() == ['12']


def test_rows_that_cannot_be_read_are_named(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_bytes(b'when,x,note\n5,a,b\n5,a,\xff\n')
  with pytest.raises(ValueError) as error:
    event_written.Written.read(path, schema())
  assert str(error.value) == (
    f"{path}: line 3 cannot be read (undecodable bytes in column 'note');"
    ' correct it.'
  )
