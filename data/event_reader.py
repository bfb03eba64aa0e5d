"""Files of events as typed chunks: every row is read or its fault is named.

CSV is read as text and cast column by column to what the schema says, so that
'01234' stays what it is; Parquet keeps its types where they fit.
"""

import collections
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import event_cells
from data import event_rows
from data import event_schema
from data import event_times

# The physical line where a row begins (CSV) or its number from 1 (Parquet).
LINE = ':line'
_EXAMPLES = 5
_SHOWN = 200  # letters of a bad value
_TRAINED = (
  'or set data.on_bad to drop or quarantine and data.max_bad_fraction to what'
  ' you can spare'
)


class Chunk(NamedTuple):
  """Rows of a file: the good ones as a table, and the bad ones."""

  table: pa.Table
  bad: list[event_rows.Bad]


class Reader:
  """Reads a file by a schema and keeps count of what it met.

  counts: bad rows by reason; rows: all rows so far; examples: the first bad
  ones; filled: number of values by column; zones: which of 'zone', 'no zone'
  times have.
  """

  def __init__(
    self, path: str | pathlib.Path, schema: event_schema.Schema
  ) -> None:
    self.path = pathlib.Path(path).expanduser()
    self.schema = schema
    self.counts: collections.Counter[str] = collections.Counter()
    self.rows = 0
    self.examples: list[event_rows.Bad] = []
    self.filled: collections.Counter[str] = collections.Counter()
    self.zones: set[str] = set()

  def chunks(self) -> Iterator[Chunk]:
    """Tables of entity (text), time (microseconds of UTC), the fields, LINE.

    ValueError names what is wrong with the file as a whole.
    """
    for raw in event_rows.chunks(self.path, self.schema):
      try:
        chunk = self._typed(raw)
      except pa.ArrowException as error:
        reason = ' '.join(str(error).split())[:200]
        raise ValueError(
          f'{self.path}: rows from line {raw.line_E[:1]} on hold values that'
          f' cannot be read ({reason}); write them as plain text or numbers.'
        ) from error
      self.rows += len(chunk.table) + len(chunk.bad)
      self.counts.update(bad.reason for bad in chunk.bad)
      self.examples += chunk.bad[: _EXAMPLES - len(self.examples)]
      yield chunk
    if not self.rows:
      raise ValueError(
        f'{self.path} has a header and no row; give a file with events.'
      )

  def check(
    self, max_bad_fraction: float = 0.0, way_out: str = _TRAINED
  ) -> None:
    """ValueError where too many rows were bad; it says the way out."""
    bad = sum(self.counts.values())
    if bad > max_bad_fraction * self.rows:
      raise ValueError(self._complaint(bad, max_bad_fraction, way_out))

  def check_filled(self) -> None:
    """ValueError where a column is all missing, and nothing to learn from."""
    for field in self.schema.fields:
      if not self.filled[field.name]:
        raise ValueError(
          f'{self.path}: column {field.name!r} has no value in any row; take'
          ' it out of the schema.'
        )

  def _complaint(self, bad: int, max_bad_fraction: float, way_out: str) -> str:
    counts = ', '.join(f'{n} {reason}' for reason, n in self.counts.items())
    examples = '; '.join(described(example) for example in self.examples)
    limit = 'none may be'
    if max_bad_fraction:
      limit = f'data.max_bad_fraction={max_bad_fraction} of them may be'
    return (
      f'{self.path}: {bad} of {self.rows} rows are bad and {limit} ({counts});'
      f' the first: {examples}; correct the file or the schema, {way_out}.'
    )

  def _typed(self, raw: event_rows.Raw) -> Chunk:
    schema = self.schema
    entity = event_cells.words(raw.columns[schema.entity])
    none_E = pc.is_null(entity).to_numpy(zero_copy_only=False)
    problems = [
      event_cells.Problem('no entity', schema.entity, 'a name', none_E)
    ]
    names = schema.time_columns or (schema.time,)
    parts = [raw.columns[name] for name in names]
    time, found, zones = event_times.read(
      parts, ' '.join(names), schema.time_format
    )
    self._check_zones(zones)
    problems += found
    arrays = {schema.entity: entity, schema.time: time}
    for field in schema.fields:
      arrays[field.name], found = _cast(field, raw.columns[field.name])
      problems += found
    good_E = np.ones(len(raw.line_E), bool)
    bad = list(raw.bad)
    for problem in problems:
      for row in np.flatnonzero(problem.bad_E & good_E):
        bad.append(_bad_row(raw, row, problem, names))
      good_E &= ~problem.bad_E
    table = pa.table(arrays | {LINE: raw.line_E})
    table = table.filter(pa.array(good_E))
    for field in schema.fields:
      column = table[field.name]
      self.filled[field.name] += len(column) - column.null_count
    return Chunk(table, sorted(bad, key=lambda row: row.line))

  def _check_zones(self, zones: set[str]) -> None:
    self.zones |= zones
    if len(self.zones) > 1:
      raise ValueError(
        f'{self.path}: some times of {self.schema.time!r} have a time zone and'
        ' some have none; write all with one (as 2020-01-31T12:00:00Z) or all'
        ' without.'
      )


def _cast(
  field: event_schema.Field, column: pa.Array
) -> tuple[pa.Array, list[event_cells.Problem]]:
  if field.kind == 'number':
    return event_cells.numbers(column, field.name)
  if field.kind == 'bool':
    return event_cells.bools(column, field.name)
  return event_cells.words(column), []


def _bad_row(
  raw: event_rows.Raw,
  row: int,
  problem: event_cells.Problem,
  time: tuple[str, ...],
) -> event_rows.Bad:
  names = (problem.column,) if problem.column in raw.columns else time
  value = ' '.join(event_rows.cell(raw.columns[name][row]) for name in names)
  text = '' if raw.texts is None else raw.texts[row]
  return event_rows.Bad(
    int(raw.line_E[row]), problem.reason, problem.column, value,
    problem.expected, text,
  )  # fmt: skip


def described(bad: event_rows.Bad) -> str:
  """Where a bad row is and what is wrong with it."""
  column = f', column {bad.column!r}' if bad.column else ''
  return (
    f'line {bad.line}{column}: {bad.value[:_SHOWN]!r} where {bad.expected}'
    f' should be ({bad.reason})'
  )
