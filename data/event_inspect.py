"""Looks at a file of events and proposes a schema, saying why."""

import collections
import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import event_cells
from data import event_reader
from data import event_rows
from data import event_schema
from data import event_times
from data import parquet_files

# A column is of a kind if this share of its values is.
_ENOUGH = 0.999
_ROWS = 10**6
_HEAD = 200
_FEW, _MANY, _CLASSES = 50, 1000, 10
_EXACT = 2**53
_FORMATS = (
  event_schema.ISO,
  '%d%b%y:%H:%M:%S',
  '%Y/%m/%d',
  '%Y/%m/%d %H:%M:%S',
  '%m/%d/%Y',
  '%m/%d/%Y %H:%M',
  '%d.%m.%Y',
  '%d.%m.%Y %H:%M:%S',
  '%y%m%d',
)
_EPOCH_YEARS = 600_000_000, 2_500_000_000  # 1989 to 2049, in seconds
_CODES = re.compile(r'(^|_|\b)(id|code|mcc|zip|type)(\b|_|$)|id$', re.I)
_ENTITIES = re.compile(
  r'user|client|customer|account|card|member|patient|reviewer|cl_id', re.I
)
_LABELS = re.compile(
  r'label|target|fraud|churn|default|^is|status|overall', re.I
)
_PARTS = ('year', 'month', 'day', 'time')


@dataclasses.dataclass(frozen=True)
class Found:
  """One column: how many values, how many distinct ones, and what it may be.

  kind: of event_schema.KINDS, 'time', or 'drop'; why: the reason in words.
  """

  name: str
  values: int
  missing: int
  distinct: int
  kind: str
  why: str
  time_format: str = ''


@dataclasses.dataclass(frozen=True)
class Proposal:
  """What a file looks like; entity and label are candidates, never choices.

  whole: whether all rows were looked at. times: names of columns and format.
  bad: what is wrong with rows that cannot be read, in words.
  """

  path: pathlib.Path
  rows: int
  whole: bool
  columns: tuple[Found, ...]
  entities: tuple[str, ...]
  times: tuple[tuple[tuple[str, ...], str], ...]
  labels: tuple[str, ...]
  delimiter: str
  bad: str = ''

  def report(self) -> str:
    """What was found, as lines of text."""
    extent = 'all' if self.whole else 'the first'
    lines = [f'{self.path}: {extent} {self.rows} rows']
    if self.bad:
      lines.append(f'  {self.bad}')
    for found in self.columns:
      lines.append(
        f'  {found.name}: {found.kind} ({found.why}; {found.distinct} distinct,'
        f' {found.missing} missing)'
      )
    times = [f'{"+".join(names)} as {form!r}' for names, form in self.times]
    for what, names in (
      ('entity', self.entities),
      ('time', times),
      ('label', self.labels),
    ):
      lines.append(f'candidates for the {what}: {", ".join(names) or "none"}')
    return '\n'.join(lines)

  def to_json(self, entity: str = '', time: str = '', label: str = '') -> str:
    """A schema to edit; what was not named stays empty, with candidates."""
    names = [found.name for found in self.columns]
    for name in (entity, label):
      if name and name not in names:
        raise ValueError(
          f'{self.path} has no column {name!r}; choose one of {names}.'
        )
    chosen = self._time(time)
    used = {entity, *chosen.get('time_columns', ()), chosen['time']}
    fields = []
    for found in self.columns:
      if found.name in used:
        continue
      if found.name == label:
        fields.append({'name': found.name, 'kind': 'label'})
      elif found.kind not in ('drop', 'time'):
        fields.append({'name': found.name, 'kind': found.kind})
    stored = {
      'version': event_schema.VERSION,
      'entity': entity,
      **chosen,
      'fields': fields,
      'derived': list(event_schema.DERIVED),
      'delimiter': self.delimiter,
      'candidates': {
        'entity': list(self.entities),
        'time': ['+'.join(names) for names, _ in self.times],
        'label': list(self.labels),
      },
    }
    return json.dumps(stored, indent=2, ensure_ascii=False) + '\n'

  def _time(self, time: str) -> dict[str, Any]:
    for names, time_format in self.times:
      if time in ('+'.join(names), 'time') and len(names) > 1:
        return {
          'time': 'time',
          'time_columns': list(names),
          'time_format': time_format,
        }
      if names == (time,):
        return {'time': time, 'time_format': time_format}
    if time:
      candidates = ['+'.join(names) for names, _ in self.times]
      raise ValueError(
        f'Column {time!r} of {self.path} is no time in any known format;'
        f' candidates are {candidates}, or leave --time out and write `time`'
        ' and `time_format` into the schema.'
      )
    return {'time': ''}


def propose(path: str | pathlib.Path, delimiter: str = ',') -> Proposal:
  """Looks at up to a million rows; ValueError for a file without any."""
  path = pathlib.Path(path).expanduser()
  names = event_rows.header(path, delimiter)
  nested = []
  if event_rows.is_parquet(path):
    kinds = parquet_files.kinds(path)
    nested = [name for name in names if name not in kinds]
    names = [name for name in names if name in kinds]
  parts: dict[str, list[pa.Array]] = {name: [] for name in names}
  rows, whole = 0, True
  counts: collections.Counter[str] = collections.Counter()
  bad = []
  for raw in event_rows.cells(path, names, delimiter):
    for name, column in raw.columns.items():
      parts[name].append(column)
    rows += len(raw.line_E)
    counts.update(row.reason for row in raw.bad)
    bad += [event_reader.described(row) for row in raw.bad[: 1 - len(bad)]]
    if rows >= _ROWS:
      whole = False
      break
  if bad:
    reasons = ', '.join(f'{n} {reason}' for reason, n in counts.items())
    bad = [f'{counts.total()} rows cannot be read ({reasons}): {bad[0]}']
  if not rows:
    raise ValueError(
      f'{path} has a header and no row; {(*bad, "give a file with events")[0]}.'
    )
  columns = {name: pa.concat_arrays(part) for name, part in parts.items()}
  found = tuple(_look(name, column) for name, column in columns.items())
  found += tuple(
    Found(name, 0, 0, 0, 'drop', 'its values are no plain ones')
    for name in nested
  )
  return Proposal(
    path, rows, whole, found, _entities(found, rows), _times(columns, found),
    _labels(found), delimiter, *bad,
  )  # fmt: skip


def _look(name: str, column: pa.Array) -> Found:
  text = event_cells.words(column)
  values = len(text) - text.null_count
  distinct = len(text.drop_null().unique())
  kind, why, form = _kind(name, column, text, values, distinct)
  return Found(name, values, len(text) - values, distinct, kind, why, form)


def _kind(
  name: str, column: pa.Array, text: pa.Array, values: int, distinct: int
) -> tuple[str, str, str]:
  if distinct < 2:
    return 'drop', 'it never changes' if values else 'it has no value', ''
  coded = bool(_CODES.search(name))
  form = _time_format(column, text, values, coded=coded)
  if form:
    return 'time', f'a time of format {form!r}', form
  _, (problem,) = event_cells.bools(text, name)
  if distinct == 2 and not problem.bad_E.any():
    return 'bool', 'two words of a bool', ''
  numeric = _share(event_cells.numbers(text.drop_null()[:_HEAD], '')[0]) > 0.5
  if numeric:
    found, _ = event_cells.numbers(column, name)
    numeric = len(found) - found.null_count >= _ENOUGH * values
    # Numbers that float64 cannot tell apart are names.
    numeric = numeric and pc.max(pc.abs(found)).as_py() < _EXACT
  if numeric and distinct > _FEW and not coded:
    return 'number', 'numbers of many values', ''
  if distinct == values:
    return 'drop', 'every value is another one', ''
  if distinct > _MANY:
    return 'id', 'more values than can be learned one by one', ''
  return 'category', 'words or codes of few values', ''


def _time_format(
  column: pa.Array, text: pa.Array, values: int, *, coded: bool
) -> str:
  """The format of nearly all values; empty where there is none.

  coded: whether the column has the name of a code, whose numbers are no times.
  """
  if pa.types.is_temporal(column.type):
    return event_schema.ISO
  # What most of the first values are not, the column is not.
  head = text.drop_null()[:_HEAD]
  for form in _FORMATS:
    if _share(event_times.read([head], '', form)[0]) < 0.5:
      continue
    found, _, _ = event_times.read([text], '', form)
    if len(found) - found.null_count >= _ENOUGH * values:
      return form
  if coded or _share(event_cells.numbers(head, '')[0]) < 0.5:
    return ''
  numbers, _ = event_cells.numbers(column, '')
  known = numbers.drop_null().to_numpy(zero_copy_only=False)
  if len(known) < _ENOUGH * values:
    return ''
  for form, unit in event_schema.EPOCHS.items():
    low, high = (year * unit for year in _EPOCH_YEARS)
    inside = np.mean((known >= low) & (known < high))
    if inside >= _ENOUGH:
      return form
  return ''


def _share(column: pa.Array) -> float:
  """Of the values that are there."""
  return 1 - column.null_count / max(len(column), 1)


def _times(
  columns: dict[str, pa.Array], found: tuple[Found, ...]
) -> tuple[tuple[tuple[str, ...], str], ...]:
  """Columns that may be the time, alone or as Year, Month, Day and Time."""
  result = [((f.name,), f.time_format) for f in found if f.kind == 'time']
  by_name = {name.lower(): name for name in columns}
  if all(part in by_name for part in _PARTS[:3]):
    names = tuple(by_name[part] for part in _PARTS if part in by_name)
    for form in ('%Y %m %d %H:%M', '%Y %m %d %H:%M:%S', '%Y %m %d'):
      if len(form.split()) != len(names):
        continue
      times, _, _ = event_times.read([columns[n] for n in names], '', form)
      if len(times) - times.null_count >= _ENOUGH * len(times):
        result.append((names, form))
        break
  return tuple(result)


def _entities(found: tuple[Found, ...], rows: int) -> tuple[str, ...]:
  """Columns whose values come back, those named like one first."""
  names = [
    f.name
    for f in found
    if f.kind in ('category', 'id', 'number') and 2 * f.distinct <= rows
    and not f.missing
  ]  # fmt: skip
  likely = [n for n in names if _ENTITIES.search(n)]
  coded = [n for n in names if n not in likely and _CODES.search(n)]
  return tuple(likely + coded) or tuple(names)


def _labels(found: tuple[Found, ...]) -> tuple[str, ...]:
  """Columns of few values, those named like a label first."""
  names = [f.name for f in found if 2 <= f.distinct <= _CLASSES]
  likely = [name for name in names if _LABELS.search(name)]
  return tuple(likely + [name for name in names if name not in likely])
