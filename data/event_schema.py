"""What the columns of a table of events are: a schema, kept as JSON."""

import collections
import dataclasses
import difflib
import json
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from data import json_text

# id: a category of any number of values, of which rare ones share an id.
KINDS = ('category', 'number', 'bool', 'id', 'label')
DERIVED = ('gap', 'hour', 'weekday')
# Time formats beside those of strptime: ISO 8601, and units since 1970.
ISO = 'iso'
EPOCHS = {
  'epoch_s': 1,
  'epoch_ms': 10**3,
  'epoch_us': 10**6,
  'epoch_ns': 10**9,
}
VERSION = 1
MAX_NAME = 1000  # letters
# Arrow ends the process over an empty one.
_STRPTIME = re.compile(r'[^%\0]{0,99}(%[-_0^#EO]?[A-Za-z%][^%\0]{0,99}){1,30}')
_DIRECTIVE = re.compile(r'%[-_0^#EO]?([A-Za-z%])')
# Columns that reading and sorting add to those of a file.
_ADDED = (':line', ':key', ':given')
# Letters of a name, and names, that a message shows or compares.
_NAME, _COMPARED = 80, 1000


@dataclasses.dataclass(frozen=True)
class Field:
  """A column of the file that the model reads, and its kind.

  values: all values of a category, as text, where they are known; by default
    they are those of the training entities. A label may have no other.
  """

  name: str
  kind: str
  values: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise ValueError(
        f'Column {self.name[:_NAME]!r} has kind {self.kind[:_NAME]!r};'
        f' choose one of {KINDS}.'
      )
    if self.values and self.kind == 'number':
      raise ValueError(
        f'Column {self.name[:_NAME]!r} is a number and cannot have a list of'
        " values; leave it empty, or make it a 'category'."
      )
    value = twice(self.values)
    if value is not None:
      raise ValueError(
        f'Column {self.name[:_NAME]!r} has {value[:_NAME]!r} twice in its'
        ' "values"; keep one.'
      )


@dataclasses.dataclass(frozen=True)
class Schema:
  """The columns of a table; what is not named is not read.

  entity: the column whose equal values make one entity; it is never an input.
  time: the name of the time of the prepared table.
  fields: the columns in the order of a row; at most one label.
  time_columns: the columns of the file that make up the time, joined by a
    space; none means the one named by `time`.
  time_format: 'iso' (ISO 8601), one of EPOCHS, or a format of strptime.
  derived: of DERIVED, what the row says of the time.
  delimiter: between the values of a line of CSV.
  """

  entity: str
  time: str
  fields: tuple[Field, ...]
  time_columns: tuple[str, ...] = ()
  time_format: str = ISO
  derived: tuple[str, ...] = DERIVED
  delimiter: str = ','

  def __post_init__(self) -> None:
    for part in self.derived:
      if part not in DERIVED:
        raise ValueError(
          f'derived={part[:_NAME]!r} is unknown; choose of {DERIVED}.'
        )
    is_known = self.time_format == ISO or self.time_format in EPOCHS
    if not is_known and not _STRPTIME.fullmatch(self.time_format):
      raise ValueError(
        f'time_format={self.time_format[:_NAME]!r} must be {ISO!r}, one of'
        f" {', '.join(EPOCHS)} or a format of strptime, as '%Y-%m-%d'."
      )
    if 'Z' in directives(self.time_format):
      raise ValueError(
        f'time_format={self.time_format[:_NAME]!r} has %Z, the name of a time'
        ' zone, which would be read as UTC; write offsets, as +01:00, into the'
        ' file and %z into the format.'
      )
    check_delimiter(self.delimiter)
    self._check_names()
    labels = [field.name for field in self.fields if field.kind == 'label']
    if len(labels) > 1:
      raise ValueError(
        f'Columns {labels[:3]} are all labels; one may be, make the others'
        " 'category' or 'bool'."
      )
    if not self.fields:
      raise ValueError('The schema has no field; name at least one column.')

  def _check_names(self) -> None:
    """ValueError for columns that cannot be told apart."""
    names = [field.name for field in self.fields]
    for name in (self.entity, self.time, *names, *self.time_columns):
      if not name:
        raise ValueError('A column of the schema has no name; give it one.')
      if len(name) > MAX_NAME:
        raise ValueError(
          f'The column {name[:_NAME]!r}... has a name of {len(name)} letters;'
          f' at most {MAX_NAME} are read.'
        )
    name = twice(names)
    if name is not None:
      raise ValueError(
        f'Column {name!r} is named twice in the schema; keep one.'
      )
    if self.entity == self.time:
      raise ValueError(
        f'Column {self.entity!r} is both the entity and the time; name another'
        ' column for one of them.'
      )
    added = _ADDED + tuple(f'{self.time}:{part}' for part in DERIVED)
    for name in (self.entity, self.time, *names):
      if name in added:
        raise ValueError(
          f'Column {name!r} has the name of one that is made here; rename it in'
          ' the file and the schema.'
        )
    if self.entity in names or self.time in names:
      name = self.entity if self.entity in names else self.time
      raise ValueError(
        f'Column {name!r} is the entity or the time and cannot be a field,'
        ' too; take it out of the fields.'
      )

  @property
  def label(self) -> str | None:
    """The name of the label column."""
    return next((f.name for f in self.fields if f.kind == 'label'), None)

  @property
  def row(self) -> tuple[Field, ...]:
    """The fields with the label last."""
    return tuple(sorted(self.fields, key=lambda f: f.kind == 'label'))

  @property
  def sources(self) -> tuple[str, ...]:
    """Every column of the file that is read, once."""
    names = (self.entity, *(self.time_columns or (self.time,)))
    names += tuple(field.name for field in self.fields)
    return tuple(dict.fromkeys(names))

  def check(self, header: Iterable[str], where: str) -> None:
    """ValueError where the header lacks a column, with the closest names."""
    header = list(header)
    there = set(header)
    for name in self.sources:
      if name not in there:
        near = [known[:_NAME] for known in header[:_COMPARED]]
        close = difflib.get_close_matches(name[:_NAME], near, 3, 0.5) or near
        raise ValueError(
          f'{where} has no column {name!r}; the closest are'
          f' {", ".join(map(repr, close[:10]))}: correct the schema.'
        )

  def to_json(self) -> str:
    """The schema as text to edit; `from_json` is its inverse."""
    stored = dataclasses.asdict(self) | {'version': VERSION}
    return json.dumps(stored, indent=2, ensure_ascii=False) + '\n'

  @classmethod
  def from_json(cls, text: str | bytes, where: str = 'The schema') -> 'Schema':
    """What `to_json` was given, perhaps edited; ValueError names mistakes."""
    stored = json_text.parse(
      text, where, 'write it anew with `python -m data.events inspect FILE`'
    )
    if not isinstance(stored, dict):
      raise ValueError(
        f'{where} is no JSON object; write it anew with `python -m data.events'
        ' inspect FILE`.'
      )
    if stored.pop('version', VERSION) != VERSION:
      raise ValueError(
        f'{where} is of another version; this code reads version {VERSION}.'
      )
    candidates = stored.pop('candidates', {})
    known = {field.name for field in dataclasses.fields(cls)}
    for name in stored:
      if name not in known:
        raise ValueError(
          f'{where} has an entry {name[:_NAME]!r}; choose of {sorted(known)}.'
        )
    for name in ('entity', 'time', 'fields'):
      if not stored.get(name):
        found = candidates.get(name) if isinstance(candidates, dict) else None
        found = found if isinstance(found, list) and found else ['none found']
        listed = ', '.join(str(x)[:_NAME] for x in found[:10])
        raise ValueError(
          f'{where} names no {name}, and it is never guessed; put one of its'
          f' candidates there: {listed}.'
        )
    try:
      return cls(**_checked(stored))
    except ValueError as error:
      raise ValueError(f'{where}: {error}') from error

  @classmethod
  def load(cls, path: str | pathlib.Path) -> 'Schema':
    """A schema that was saved as JSON."""
    path = pathlib.Path(path).expanduser()
    try:
      text = path.read_bytes()
    except OSError as error:
      raise ValueError(
        f'The schema {path} cannot be read ({error.strerror}); make one with'
        ' `python -m data.events inspect FILE`.'
      ) from error
    return cls.from_json(text, str(path))


def check_delimiter(delimiter: str) -> None:
  """ValueError unless CSV can have it between the values of a line."""
  if len(delimiter) != 1 or delimiter in '"\r\n\0':
    raise ValueError(
      f'delimiter={delimiter[:_NAME]!r} must be one sign that is no quote and'
      " ends no line, as ',' or '\\t'."
    )


def directives(time_format: str) -> list[str]:
  """The letters of what a format of strptime reads, without their flags."""
  return _DIRECTIVE.findall(time_format)


def twice(names: Iterable[str]) -> str | None:
  """The first name that comes more than once."""
  counts = collections.Counter(names)
  return next((name for name, count in counts.items() if count > 1), None)


def _checked(stored: dict[str, Any]) -> dict[str, Any]:
  """The fields of a Schema, each of its type."""
  found: dict[str, Any] = {}
  for name, value in stored.items():
    if name == 'fields':
      entries = _list_of(value, name)
      found[name] = tuple(Field(**_field(entry)) for entry in entries)
    elif name in ('time_columns', 'derived'):
      found[name] = tuple(_text(x, name) for x in _list_of(value, name))
    else:
      found[name] = _text(value, name)
  return found


def _field(entry: Any) -> dict[str, Any]:
  if not isinstance(entry, dict) or set(entry) | {'values'} != {
    'name', 'kind', 'values',
  }:  # fmt: skip
    raise ValueError(
      f'it has a field {str(entry)[:_NAME]}; write {{"name": ..., "kind":'
      ' ...}.'
    )
  values = _list_of(entry.get('values', []), 'values')
  return {
    'name': _text(entry['name'], 'name'),
    'kind': _text(entry['kind'], 'kind'),
    'values': tuple(_text(value, 'values') for value in values),
  }


def _list_of(value: Any, name: str) -> list[Any]:
  if not isinstance(value, list):
    raise ValueError(f'{name}={str(value)[:_NAME]} must be a list, as [...].')
  return value


def _text(value: Any, name: str) -> str:
  """Text as columns have it; ValueError for any other value."""
  try:
    if isinstance(value, str) and value.encode('utf-8') is not None:
      return value
  except UnicodeEncodeError:
    pass
  raise ValueError(f'{name}={str(value)[:_NAME]!r} must be text, as "...".')
