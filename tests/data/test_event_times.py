"""Times in the spellings that files have, with a zone or without."""

import dataclasses

import pyarrow as pa
import pytest

from data import event_inspect
from data import event_reader
from data import event_schema
from data import event_times
from tests.data import small_events


@pytest.mark.parametrize(
  ('text', 'expected', 'zones'),
  [
    ('2020-01-31T12:00:00.123456789Z', '2020-01-31T12:00:00.123456', 'zone'),
    ('2020-01-31 12:00:00.1234567', '2020-01-31T12:00:00.123456', 'no zone'),
    ('2020-01-31T12:00:00z', '2020-01-31T12:00:00', 'zone'),
    ('20200131T120000Z', '2020-01-31T12:00:00', 'zone'),
    ('20200131T120000.5+0100', '2020-01-31T11:00:00.500000', 'zone'),
    ('20200131T120000', '2020-01-31T12:00:00', 'no zone'),
    ('2020-01-31T12:00:00 +02:00', '2020-01-31T10:00:00', 'zone'),
    ('2020-01-31 12:00 -05', '2020-01-31T17:00:00', 'zone'),
    ('2020-01-31 12:00:00 UTC', '2020-01-31T12:00:00', 'zone'),
    ('2020-01-31', '2020-01-31T00:00:00', 'no zone'),
  ],
)
def test_spellings_of_iso(text, expected, zones):
  plain = '2020-01-31T12:00:00' + ('Z' if zones == 'zone' else '')
  column = pa.array([plain, text, None])
  found, problems, kinds = event_times.read([column], 'when', 'iso')
  assert found[1].as_py().isoformat() == f'{expected}+00:00'
  assert found[0].as_py().isoformat() == '2020-01-31T12:00:00+00:00'
  assert kinds == {zones}
  missing, *others = problems
  assert missing.bad_E.tolist() == [False, False, True]
  assert not any(problem.bad_E.any() for problem in others)


@pytest.mark.parametrize(
  'text',
  [
    '2020-01-31 UTC', '2020-01-31 -05', '2020-01-31T12:00:00 EST',
    '2020-01-31T12:00:00.1234567890', '20200131T12', '2020-01-31T24:00:00',
  ],
)  # fmt: skip
def test_what_might_be_several_times_is_none(text):
  found, _, kinds = event_times.read([pa.array([text])], 'when', 'iso')
  assert found.to_pylist() == [None] and not kinds


@pytest.mark.parametrize(
  ('time_format', 'text', 'zones'),
  [
    ('%Y-%m-%d %H:%M%z', '2020-01-31 12:00+01:00', {'zone'}),
    ('%Y-%m-%d %H:%M', '2020-01-31 12:00', {'no zone'}),
    ('%Y-%m-%d %%z', '2020-01-31 %z', {'no zone'}),
    ('epoch_s', '1577869200', set()),
  ],
)
def test_formats_have_a_zone_or_none(tmp_path, time_format, text, zones):
  path = small_events.write(
    tmp_path / 'events.csv', [['u', text, '1']], ['user', 'when', 'amount']
  )
  schema = event_schema.Schema(
    'user', 'when', small_events.FIELDS[1:2], time_format=time_format
  )
  reader = event_reader.Reader(path, schema)
  (chunk,) = reader.chunks()
  assert len(chunk.table) == 1
  assert reader.zones == zones


@pytest.mark.parametrize('time_format', ['%Y %Z', '%Y %EZ', '%%%Z'])
def test_names_of_zones_are_refused(time_format):
  with pytest.raises(ValueError) as error:
    dataclasses.replace(small_events.SCHEMA, time_format=time_format)
  assert str(error.value) == (
    f'time_format={time_format!r} has %Z, the name of a time zone, which would'
    ' be read as UTC; write offsets, as +01:00, into the file and %z into the'
    ' format.'
  )
  dataclasses.replace(small_events.SCHEMA, time_format='%Y %%Z')


@pytest.mark.parametrize('zoned', [True, False])
def test_times_of_both_files_have_zones_or_none(tmp_path, zoned):
  lines = small_events.rows()
  parts = [r for r in lines if r[0] < 'u3'], [r for r in lines if r[0] >= 'u3']
  for row in parts[zoned]:
    row[1] += '+05:00'
  first, second = (
    small_events.write(tmp_path / f'{i}.csv', part)
    for i, part in enumerate(parts)
  )
  with pytest.raises(ValueError) as error:
    small_events.source(tmp_path, first, test_path=str(second)).prepare()
  words = ('no time zone', 'a time zone') if zoned else ('a time zone', 'none')
  assert str(error.value) == (
    f"Times of 'when' have {words[0]} in {first} and {words[1]} in {second};"
    ' write all with one (as 2020-01-31T12:00:00Z) or all without.'
  )


def test_inspect_knows_these_spellings(tmp_path):
  path = tmp_path / 'events.csv'
  days = [f'202001{day:02}T120000Z,{day}\n' for day in range(1, 29)]
  path.write_text('when,what\n' + ''.join(days))
  found = event_inspect.propose(str(path), ',').columns[0]
  assert (found.name, found.kind) == ('when', 'time')
