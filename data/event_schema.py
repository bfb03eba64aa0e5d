"""What the columns of a table of events are: a schema, kept as JSON."""

import dataclasses
import difflib
import json
import pathlib
from collections.abc import Iterable
from typing import Any

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


@dataclasses.dataclass(frozen=True)
class Field:
  """A column of the file that the model reads, and its kind.

  values: all values of a category, as text, where they are known; by default
    they are those of the training entities.
  """

  name: str
  kind: str
  values: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise ValueError(
        f'Column {self.name!r} has kind {self.kind!r}; choose one of {KINDS}.'
      )
    if self.values and self.kind == 'number':
      raise ValueError(
        f'Column {self.name!r} is a number and cannot have a list of values;'
        " leave it empty, or make it a 'category'."
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
        raise ValueError(f'derived={part!r} is unknown; choose of {DERIVED}.')
    names = [field.name for field in self.fields]
    for name in (self.entity, self.time, *names):
      if not name:
        raise ValueError('A column of the schema has no name; give it one.')
    twice = [name for name in names if names.count(name) > 1]
    if twice:
      raise ValueError(
        f'Column {twice[0]!r} is named twice in the schema; keep one.'
      )
    if self.entity in names or self.time in names:
      name = self.entity if self.entity in names else self.time
      raise ValueError(
        f'Column {name!r} is the entity or the time and cannot be a field,'
        ' too; take it out of the fields.'
      )
    labels = [field.name for field in self.fields if field.kind == 'label']
    if len(labels) > 1:
      raise ValueError(
        f'Columns {labels} are all labels; one may be, make the others'
        " 'category' or 'bool'."
      )
    if not self.fields:
      raise ValueError('The schema has no field; name at least one column.')

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
    for name in self.sources:
      if name not in header:
        close = difflib.get_close_matches(name, header, 3, 0.5) or header
        raise ValueError(
          f'{where} has no column {name!r}; the closest are'
          f' {", ".join(map(repr, close[:10]))}: correct the schema.'
        )

  def to_json(self) -> str:
    """The schema as text to edit; `from_json` is its inverse."""
    stored = dataclasses.asdict(self) | {'version': VERSION}
    return json.dumps(stored, indent=2, ensure_ascii=False) + '\n'

  @classmethod
  def from_json(cls, text: str, where: str = 'The schema') -> 'Schema':
    """What `to_json` was given, perhaps edited; ValueError names mistakes."""
    try:
      stored = json.loads(text)
    except json.JSONDecodeError as error:
      raise ValueError(
        f'{where} is no JSON ({error}); write it anew with `python -m'
        ' data.events inspect FILE`.'
      ) from error
    if stored.pop('version', VERSION) != VERSION:
      raise ValueError(
        f'{where} is of another version; this code reads version {VERSION}.'
      )
    candidates = stored.pop('candidates', {})
    known = {field.name for field in dataclasses.fields(cls)}
    for name in stored:
      if name not in known:
        raise ValueError(
          f'{where} has an entry {name!r}; choose of {sorted(known)}.'
        )
    for name in ('entity', 'time', 'fields'):
      if not stored.get(name):
        found = candidates.get(name) or ['none found']
        raise ValueError(
          f'{where} names no {name}, and it is never guessed; put one of its'
          f' candidates there: {", ".join(map(str, found))}.'
        )
    fields = tuple(Field(**_field(entry, where)) for entry in stored['fields'])
    lists = {
      name: tuple(stored[name])
      for name in ('time_columns', 'derived')
      if name in stored
    }
    return cls(**(stored | lists | {'fields': fields}))

  @classmethod
  def load(cls, path: str | pathlib.Path) -> 'Schema':
    """A schema that was saved as JSON."""
    path = pathlib.Path(path).expanduser()
    try:
      text = path.read_text('utf-8')
    except OSError as error:
      raise ValueError(
        f'The schema {path} cannot be read ({error.strerror}); make one with'
        ' `python -m data.events inspect FILE`.'
      ) from error
    return cls.from_json(text, str(path))


def _field(entry: Any, where: str) -> dict[str, Any]:
  if not isinstance(entry, dict) or set(entry) | {'values'} != {
    'name', 'kind', 'values',
  }:  # fmt: skip
    raise ValueError(
      f'{where} has a field {entry!r}; write {{"name": ..., "kind": ...}}.'
    )
  return entry | {'values': tuple(entry.get('values', ()))}
