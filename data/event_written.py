"""Tables of events as their users wrote them, and new values in their manner.

What a model says goes back into the columns of the file: their names, order
and types, and of CSV the spelling of times; where their offsets from UTC
differ, new ones are in UTC.
"""

import dataclasses
import logging
import pathlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import event_cells
from data import event_rows
from data import event_schema
from data import event_times
from data import parquet_files

_DAY = '%Y-%m-%d'
_CLOCKS = ('T%H:%M', ' %H:%M', 'T%H:%M:%S', ' %H:%M:%S')
_ISO = (_DAY, *(f'{_DAY}{clock}' for clock in _CLOCKS))
_ZONED = f'{_DAY}T%H:%M:%S'
_OFFSET = r'(?P<offset>Z|[+-]\d\d(?::?\d\d)?)$'
_LOCAL = f'{_DAY} %H:%M:%S'


@dataclasses.dataclass(frozen=True, eq=False)
class Written:
  """All columns of a file, row by row: text of CSV, of Parquet its types."""

  table: pa.Table
  schema: event_schema.Schema

  @classmethod
  def read(
    cls, path: str | pathlib.Path, schema: event_schema.Schema
  ) -> 'Written':
    """The whole file; ValueError where a row cannot be read.

    Columns beside the schema's that are nested are left out, with a warning.
    """
    path = pathlib.Path(path).expanduser()
    names = event_rows.header(path, schema.delimiter)
    kinds = None
    if event_rows.is_parquet(path):
      kinds = parquet_files.kinds(path)
      plain = [n for n in names if n in schema.sources or n in kinds]
      if len(plain) < len(names):
        logging.getLogger('absl').warning(
          '%s: nested columns are left out: %s', path,
          ', '.join(n for n in names if n not in plain),
        )  # fmt: skip
      names = plain
    parts = []
    for raw in event_rows.cells(path, names, schema.delimiter):
      if raw.bad:
        first = raw.bad[0]
        raise ValueError(
          f'{path}: line {first.line} cannot be read ({first.reason} in column'
          f' {first.column!r}); correct it.'
        )
      parts.append(pa.table(raw.columns))
    table = pa.concat_tables(parts).combine_chunks()
    for place, name in enumerate(names):
      column = table.column(place)
      if kinds is None:
        column = pc.if_else(pc.equal(column, ''), None, column)
      elif not pa.types.is_float16(kinds[name]):
        column = column.cast(kinds[name])
      table = table.set_column(place, name, column)
    return cls(table, schema)

  def typed(self, table: pa.Table) -> 'Written':
    """The same with the columns of another table of the same rows."""
    own, parts = self.table, self.schema.time_columns
    for place, name in enumerate(own.column_names):
      if name in table.column_names and name not in parts:
        own = own.set_column(place, name, table[name])
    return dataclasses.replace(self, table=own)

  def like(self, name: str, values: pa.Array) -> pa.Array:
    """Values in the type of the file's column; as they are if there is none."""
    if name not in self.table.column_names:
      return values
    known = _whole(self.table[name])
    return _priced(_fitted(values, known.type), values.type, known)

  def filled(
    self, name: str, empty_E: np.ndarray, values: pa.Array
  ) -> pa.Array:
    """The file's column with values in place of its empty cells."""
    known = _whole(self.table[name])
    values = _priced(_fitted(values, known.type), values.type, known)
    if values.type != known.type:
      known = known.cast(pa.string())
    plain = known.type
    if pa.types.is_dictionary(plain):
      known, values = known.dictionary_decode(), values.dictionary_decode()
    column = pc.if_else(pa.array(empty_E), values, known)
    return column if column.type == plain else column.cast(plain)

  def times(self, time_E: np.ndarray) -> dict[str, pa.Array]:
    """Times (int64, microseconds of UTC) in the columns that the file has."""
    schema = self.schema
    names = schema.time_columns or (schema.time,)
    formats = [schema.time_format]
    if len(names) > 1:
      formats = schema.time_format.split(' ')
    if len(names) != len(formats) or set(names) - set(self.table.column_names):
      stamps = pa.array(time_E).cast(pa.timestamp('us', 'UTC'))
      return {schema.time: stamps}
    return {
      name: _spelled(time_E, _whole(self.table[name]), form)
      for name, form in zip(names, formats, strict=True)
    }


def _whole(column: pa.ChunkedArray) -> pa.Array:
  column = column.combine_chunks()
  if isinstance(column, pa.ChunkedArray):
    column = pa.concat_arrays(column.chunks)
  return column


def _fitted(values: pa.Array, kind: pa.DataType) -> pa.Array:
  """Values of a type; as text where some are not of it."""
  if isinstance(values, pa.ChunkedArray):
    values = _whole(values)
  if pa.types.is_dictionary(values.type):
    values = values.dictionary_decode()
  if pa.types.is_integer(kind) and pa.types.is_floating(values.type):
    values = pc.round(values)
  text = pa.types.is_binary(kind) or pa.types.is_dictionary(kind)
  try:
    if text and values.type != kind:
      values = values.cast(pa.string())
    return values.cast(kind)
  except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
    return values.cast(pa.string())


def _priced(text: pa.Array, kind: pa.DataType, known: pa.Array) -> pa.Array:
  """Numbers with the dollar sign that all of the file's have."""
  if not pa.types.is_floating(kind) or not pa.types.is_string(known.type):
    return text
  marked = pc.all(pc.starts_with(known, '$'), min_count=1).as_py()
  return pc.binary_join_element_wise('$', text, '') if marked else text


def _spelled(time_E: np.ndarray, known: pa.Array, time_format: str) -> pa.Array:
  """Times as a column has them whose format is known."""
  kind, stamps = known.type, pa.array(time_E).cast(pa.timestamp('us'))
  if pa.types.is_temporal(kind):
    if getattr(kind, 'tz', None):
      return pa.array(time_E).cast(pa.timestamp('us', 'UTC')).cast(kind)
    return stamps.cast(kind, safe=False)
  if time_format in event_schema.EPOCHS:
    unit = event_schema.EPOCHS[time_format]
    count_E = time_E * 1000 if unit > 10**6 else time_E // (10**6 // unit)
    return _fitted(pa.array(count_E), kind)
  examples, shift = event_cells.words(known).drop_null(), 0
  if time_format == event_schema.ISO:
    time_format, shift = _iso_style(examples)
  elif 'z' in event_schema.directives(time_format):
    offset = _offset(examples, _OFFSET) if time_format.endswith('%z') else 'Z'
    time_format, shift = _with(time_format, offset), _seconds(offset)
  seconds = pa.array(time_E // 10**6 + shift).cast(pa.timestamp('s'))
  text = pc.strftime(seconds, format=time_format)
  if len(examples) and examples[0].as_py().isupper():
    text = pc.utf8_upper(text)
  padded = pc.any(pc.match_substring_regex(examples, r'^0\d')).as_py()
  if time_format in ('%m', '%d', '%H') and not padded:
    text = pc.replace_substring_regex(text, r'^0(\d)', r'\1')
  return _fitted(text, kind)


def _iso_style(examples: pa.Array) -> tuple[str, int]:
  """The strftime format of ISO times, and how many seconds they are ahead.

  To the second if there is no other; in UTC if zones are not all the same.
  """
  if not len(examples):
    return _LOCAL, 0
  longest = pc.max(pc.utf8_length(examples))
  example = examples.filter(pc.equal(pc.utf8_length(examples), longest))[:1]
  found, _, zones = event_times.read([example], '', event_schema.ISO)
  offset = ''
  if 'zone' in zones:
    offset = _offset(examples, f'[T ]\\d\\d:.*{_OFFSET}')
  shift = _seconds(offset)
  stamp = pc.add(found.cast(pa.int64()), shift * 10**6)
  stamp = stamp.cast(pa.timestamp('us')).cast(pa.timestamp('s'), safe=False)
  for style in _ISO:
    text = pc.strftime(stamp, format=style + offset)[0].as_py()
    if text == example[0].as_py():
      return style + offset, shift
  return (_ZONED + offset if offset else _LOCAL), shift


def _offset(examples: pa.Array, pattern: str) -> str:
  """The offset from UTC that all times end in; Z if they differ."""
  found = pc.struct_field(pc.extract_regex(examples, pattern), 'offset')
  offsets = pc.unique(found).to_pylist()
  return offsets[0] if len(offsets) == 1 and offsets[0] else 'Z'


def _with(time_format: str, offset: str) -> str:
  """A format of strptime with an offset in place of %z."""
  written = offset.replace('Z', '+0000')
  return re.sub(
    r'%[-_0^#EO]?[A-Za-z%]',
    lambda found: written if found[0].endswith('z') else found[0],
    time_format,
  )


def _seconds(offset: str) -> int:
  """Of an offset from UTC, as +01:00."""
  digits = offset.strip('Z+-').replace(':', '').ljust(4, '0')
  seconds = 3600 * int(digits[:2]) + 60 * int(digits[2:])
  return -seconds if offset.startswith('-') else seconds
