"""Schemas as their users edit them, and what is said of mistakes."""

import json

import pytest

from data import event_schema

GOOD = {
  'entity': 'a',
  'time': 't',
  'fields': [{'name': 'b', 'kind': 'id'}],
}


def error(tmp_path, text):
  path = tmp_path / 'schema.json'
  path.write_text(text)
  with pytest.raises(ValueError) as error:
    event_schema.Schema.load(path)
  return str(error.value).replace(str(path), 'SCHEMA')


def label(*values):
  field = {'name': 'b', 'kind': 'label', 'values': list(values)}
  return {'fields': [field]}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'fields': [{'name': 'b'}]},
      'SCHEMA: it has a field {\'name\': \'b\'}; write {"name": ..., "kind":'
      ' ...}.',
    ),
    (
      {'x': 1},
      "SCHEMA has an entry 'x'; choose of ['delimiter', 'derived', 'entity',"
      " 'fields', 'time', 'time_columns', 'time_format'].",
    ),
    (
      {'fields': []},
      'SCHEMA names no fields, and it is never guessed; put one of its'
      ' candidates there: none found.',
    ),
    (
      {'time': ''},
      'SCHEMA names no time, and it is never guessed; put one of its'
      ' candidates there: none found.',
    ),
    (
      {'time': '', 'candidates': {'time': ['when', 'Year+Month']}},
      'SCHEMA names no time, and it is never guessed; put one of its'
      ' candidates there: when, Year+Month.',
    ),
    (
      {'entity': '', 'candidates': {'entity': ['user', 'card'], 'time': []}},
      'SCHEMA names no entity, and it is never guessed; put one of its'
      ' candidates there: user, card.',
    ),
    (
      {'fields': [{'name': 'b', 'kind': 'c'}]},
      "SCHEMA: Column 'b' has kind 'c'; choose one of ('category', 'number',"
      " 'bool', 'id', 'label').",
    ),
    (
      {'entity': 'b'},
      "SCHEMA: Column 'b' is the entity or the time and cannot be a field, too;"
      ' take it out of the fields.',
    ),
    (
      {'time': 'b', **label('x', 'y')},
      "SCHEMA: Column 'b' is the entity or the time and cannot be a field, too;"
      ' take it out of the fields.',
    ),
    (
      {'entity': 't'},
      "SCHEMA: Column 't' is both the entity and the time; name another column"
      ' for one of them.',
    ),
    (
      label('no', 'yes', 'no'),
      "SCHEMA: Column 'b' has 'no' twice in its \"values\"; keep one.",
    ),
    (
      {'fields': [{'name': 't:gap', 'kind': 'id'}]},
      "SCHEMA: Column 't:gap' has the name of one that is made here; rename it"
      ' in the file and the schema.',
    ),
    (
      {'fields': [{'name': ':line', 'kind': 'id'}]},
      "SCHEMA: Column ':line' has the name of one that is made here; rename it"
      ' in the file and the schema.',
    ),
    (
      {'delimiter': 'ab'},
      "SCHEMA: delimiter='ab' must be one sign that is no quote and ends no"
      " line, as ',' or '\\t'.",
    ),
  ],
)
def test_errors_of_schemas(tmp_path, changes, message):
  assert error(tmp_path, json.dumps(GOOD | changes)) == message


def test_errors_of_text_that_is_no_schema(tmp_path):
  found = error(tmp_path, '{')
  assert found.startswith('SCHEMA is no JSON')
  assert found.endswith(
    'write it anew with `python -m data.events inspect FILE`.'
  )
  assert error(tmp_path, '[]') == (
    'SCHEMA is no JSON object; write it anew with `python -m data.events'
    ' inspect FILE`.'
  )
  assert error(tmp_path, json.dumps(GOOD | {'version': 2})) == (
    'SCHEMA is of another version; this code reads version 1.'
  )
