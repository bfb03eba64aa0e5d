"""What is kept and told of rows on their way to the splits."""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.data import small_events


def test_quarantine_keeps_whole_rows_of_parquet(tmp_path, monkeypatch):
  monkeypatch.setattr('data.event_rows._CHUNK', 50)
  lines = small_events.rows()
  lines[5][3], lines[70][3], lines[71][1] = 'oo,ps', 'x "y"', None
  lines[71][7] = None
  columns = dict(
    zip(small_events.HEADER, map(list, zip(*lines, strict=True)), strict=True)
  )
  table = pa.table(columns).append_column('tags', pa.array([['a']] * 480))
  numbers = pa.array(np.arange(480, dtype=np.int64) * 10**9)
  more = {
    'stamp': numbers.cast(pa.timestamp('ns')),
    'raw': pa.array([b'\xff'] * 480),
  }
  for name, column in more.items():
    table = table.append_column(name, column)
  path = tmp_path / 'events.parquet'
  pq.write_table(table, path, row_group_size=60)
  made = small_events.source(
    tmp_path, path, on_bad='quarantine', max_bad_fraction=0.02
  )
  text = (made.prepare() / 'quarantine.csv').read_text()
  found = list(csv.DictReader(io.StringIO(text, newline='')))
  assert [int(row['line']) for row in found] == [6, 71, 72]
  assert {row['file'] for row in found} == {str(path)}
  for row in found:
    place = int(row['line']) - 1
    kept = next(csv.reader([row['text']]))
    assert kept[:8] == [cell or '' for cell in lines[place]]
    time = f'1970-01-01 00:0{place // 60}:{place % 60:02d}.000000000'
    assert kept[8:] == ['(nested)', time, "b'\\xff'"]


def test_share_of_ties_is_told(tmp_path, caplog):
  lines = small_events.rows(users=40)
  # Three events of one user at one time: two have that of the one before.
  for row in [row for row in lines if row[0] == 'u7'][:3]:
    row[1] = '2020-06-01'
  path = small_events.write(tmp_path / 'events.csv', lines)
  with caplog.at_level('INFO', 'absl'):
    folder = small_events.source(tmp_path, path).prepare()
  assert (
    f'2 of 480 events of {path} (0.42%) have the time of the one before; they'
    ' stay in the order of the file.'
  ) in caplog.messages
  assert json.loads((folder / 'metadata.json').read_text())['tied'] == 2


def test_single_events_are_warned_of(tmp_path, caplog):
  lines = [
    *small_events.rows(users=20),
    ['lone', '2020-01-01', 's1', '1', '1', 'No', 'no', ''],
  ]
  path = small_events.write(tmp_path / 'events.csv', lines)
  small_events.source(tmp_path, path).prepare()
  assert (
    f'1 of 21 entities of {path} have a single event, so no history.'
  ) in caplog.messages
