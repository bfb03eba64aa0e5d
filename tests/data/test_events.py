"""What `python -m data.events inspect` refuses, in one sentence each."""

import pytest

from data import events
from tests.data import small_events


@pytest.fixture
def inspect(tmp_path, capsys):
  """Runs it on the small table; returns status and what was said."""
  path = small_events.write(
    tmp_path / 'events.csv', small_events.rows(users=60)
  )

  def inspect(*arguments, file=path, out='schema.json'):
    given = ['inspect', str(file), f'--out={tmp_path / out}', *arguments]
    status = events.main(given)
    said = capsys.readouterr()
    text = said.err or said.out
    return status, text.replace(str(tmp_path), 'HERE')

  return inspect


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (
      ['--entity=usr'],
      "HERE/events.csv has no column 'usr'; choose one of ['user', 'when',"
      " 'shop', 'amount', 'zip', 'online', 'bad', 'note'].",
    ),
    (
      ['--time=zip'],
      "Column 'zip' of HERE/events.csv is no time in any known format;"
      " candidates are ['when'], or leave --time out and write `time` and"
      ' `time_format` into the schema.',
    ),
    (
      ['--entity=when', '--time=when', '--label=bad'],
      '--entity=when is a column of --time, too; name another one.',
    ),
    (
      ['--entity=user', '--time=when', '--label=user'],
      '--label=user is a column of --entity, too; name another one.',
    ),
    (
      ['--entity=user', '--time=when', '--label=when'],
      '--label=when is a column of --time, too; name another one.',
    ),
    (
      ['--delimiter=ab'],
      "delimiter='ab' must be one sign that is no quote and ends no line, as"
      " ',' or '\\t'.",
    ),
    (
      ['--delimiter='],
      "delimiter='' must be one sign that is no quote and ends no line, as ','"
      " or '\\t'.",
    ),
  ],
)
def test_choices_that_cannot_be_are_named(
  inspect, tmp_path, arguments, message
):
  assert inspect(*arguments) == (1, f'Error: {message}\n')
  assert not (tmp_path / 'schema.json').exists()


def test_label_may_not_be_a_part_of_the_time(inspect, tmp_path):
  path = tmp_path / 'parts.csv'
  lines = [
    [i % 7, 2000 + i % 3, i % 12 + 1, i % 28 + 1, i % 2] for i in range(99)
  ]
  small_events.write(path, lines, ['User', 'Year', 'Month', 'Day', 'x'])
  given = ['--entity=User', '--time=Year+Month+Day', '--label=Year']
  assert inspect(*given, file=path) == (
    1, 'Error: --label=Year is a column of --time, too; name another one.\n',
  )  # fmt: skip
  given = ['--entity=Day', '--time=Year+Month+Day']
  assert inspect(*given, file=path) == (
    1, 'Error: --entity=Day is a column of --time, too; name another one.\n',
  )  # fmt: skip


def test_tabs_may_be_written_as_in_python(inspect, tmp_path):
  path = tmp_path / 'tabs.csv'
  path.write_text((tmp_path / 'events.csv').read_text().replace(',', '\t'))
  assert inspect(r'--delimiter=\t', file=path)[0] == 0
  assert r'"delimiter": "\t"' in (tmp_path / 'schema.json').read_text()


def test_no_edited_schema_is_overwritten(inspect, tmp_path):
  chosen = '--entity=user', '--time=when', '--label=bad'
  out = tmp_path / 'schema.json'
  # What a first look proposed is complete in a second one.
  for arguments in ((), (), chosen, chosen):
    assert inspect(*arguments)[0] == 0
  edited = out.read_text().replace('"category"', '"id"', 1)
  for text in (edited, ''):
    out.write_text(text)
    assert inspect(*chosen) == (
      1,
      'Error: HERE/schema.json holds something else, perhaps a schema that you'
      ' edited; move it away, or give another --out.\n',
    )
    assert out.read_text() == text
  assert inspect(*chosen, out='other.json')[0] == 0


def test_files_that_are_not_there_are_named(inspect, tmp_path):
  assert inspect(file=tmp_path / 'none.csv') == (
    1,
    'Error: HERE/none.csv cannot be read (No such file or directory); give the'
    ' path of a CSV or Parquet file.\n',
  )
