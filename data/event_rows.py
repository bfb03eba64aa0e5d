"""Rows of CSV and Parquet files as they are: columns of cells, not yet cast."""

import collections
import csv
import io
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data import event_schema
from data import parquet_files
from data import unpacked

_CHUNK = 2**16
_DELIMITERS = ',;\t|'
# Letters of a row, and of the rows that are held; columns of a table.
_LONGEST_ROW, _HELD, _MOST_COLUMNS = 2**22, 2**26, 10_000


class Bad(NamedTuple):
  """A row that is not read: where, why, and its text (of CSV)."""

  line: int
  reason: str
  column: str
  value: str
  expected: str
  text: str


class Raw(NamedTuple):
  """Cells as they came; texts (of CSV) are the whole rows."""

  columns: dict[str, pa.Array]
  line_E: np.ndarray
  texts: list[str] | None
  bad: list[Bad]


def header(path: str | pathlib.Path, delimiter: str = ',') -> list[str]:
  """The names of a file's columns; ValueError where they cannot be used."""
  path = pathlib.Path(path).expanduser()
  event_schema.check_delimiter(delimiter)
  if is_parquet(path):
    names = parquet_files.names(path)
  else:
    with _opened(path) as file:
      try:
        lines = _Lines(file, path)
        names = _first(csv.reader(lines, delimiter=delimiter, strict=True))
      except csv.Error as error:
        raise ValueError(
          f'{path} cannot be read as CSV ({error}); check its delimiter and'
          ' quotes.'
        ) from error
    if not names:
      raise ValueError(f'{path} is empty; give a file with a header and rows.')
    other = [sign for sign in _DELIMITERS if sign in names[0]]
    if len(names) == 1 and other:
      raise ValueError(
        f'{path} has the one column {names[0]!r} between {delimiter!r}; set'
        f' delimiter to {other[0]!r} in the schema, or --delimiter.'
      )
  _check_names(path, names)
  return names


def _check_names(path: pathlib.Path, names: list[str]) -> None:
  """ValueError for a header that no schema could name the columns of."""
  if len(names) > _MOST_COLUMNS:
    raise ValueError(
      f'{path} has {len(names)} columns; at most {_MOST_COLUMNS} are read, so'
      ' check its delimiter.'
    )
  shown = ', '.join(map(repr, names))[:200]
  counts = collections.Counter(names)
  for name, count in counts.items():
    if not name:
      raise ValueError(
        f'{path} has a column without a name in [{shown}]; name it.'
      )
    if len(name) > event_schema.MAX_NAME or not _is_text(name):
      raise ValueError(
        f'{path} has a column of {len(name)} letters, {name[:40]!r}...; names'
        f' are UTF-8 and have at most {event_schema.MAX_NAME}, so rename it.'
      )
    if count > 1:
      raise ValueError(
        f'{path} has {count} columns named {name!r}; rename all but one.'
      )


def is_parquet(path: pathlib.Path) -> bool:
  """Whether a file is Parquet, by its first bytes; ValueError without it."""
  try:
    with path.open('rb') as file:
      return file.read(4) == b'PAR1'
  except OSError as error:
    raise ValueError(
      f'{path} cannot be read ({error.strerror}); give the path of a CSV or'
      ' Parquet file.'
    ) from error


def chunks(path: pathlib.Path, schema: event_schema.Schema) -> Iterator[Raw]:
  """The columns of the schema, some rows at a time."""
  schema.check(header(path, schema.delimiter), str(path))
  yield from cells(path, schema.sources, schema.delimiter)


def cells(
  path: pathlib.Path, names: Sequence[str], delimiter: str
) -> Iterator[Raw]:
  """The columns of these names."""
  if is_parquet(path):
    yield from _parquet_chunks(path, names)
  else:
    yield from _csv_chunks(path, names, delimiter)


def _parquet_chunks(path: pathlib.Path, names: Sequence[str]) -> Iterator[Raw]:
  first = 1
  for arrays in parquet_files.pieces(path, names, _CHUNK):
    rows = len(arrays[0])
    line_E = np.arange(first, first + rows, dtype=np.int64)
    columns = {
      name: _as_text(path, name, array)
      for name, array in zip(names, arrays, strict=True)
    }
    yield Raw(columns, line_E, None, [])
    first += rows


class Whole:
  """Rows of Parquet with all their columns, as lines of CSV."""

  def __init__(self, path: pathlib.Path) -> None:
    self._names, kinds = parquet_files.names(path), parquet_files.kinds(path)
    self._plain = [name for name in self._names if name in kinds]
    self._pieces = parquet_files.pieces(path, self._plain, _CHUNK)
    self._arrays: list[pa.Array] = []
    self._first, self._after = 1, 1

  def text(self, line: int) -> str:
    """A row at or after the one that was asked for last."""
    while line >= self._after:
      self._arrays = next(self._pieces)
      self._first, self._after = self._after, self._after + len(self._arrays[0])
    cells = {
      name: _written(array[line - self._first])
      for name, array in zip(self._plain, self._arrays, strict=True)
    }
    file = io.StringIO(newline='')
    csv.writer(file, lineterminator='').writerow(
      cells.get(name, '(nested)') for name in self._names
    )
    return file.getvalue()


def cell(scalar: pa.Scalar) -> str:
  """A value as text, also where Python has none, as for years beyond 9999."""
  try:
    return str(scalar.as_py())
  except (ValueError, OverflowError):
    return f'a {scalar.type} that Python does not know'


def _written(scalar: pa.Scalar) -> str:
  """A value as CSV has it: nothing where there is none."""
  if not scalar.is_valid:
    return ''
  try:
    return scalar.cast(pa.string()).as_py()
  except (pa.ArrowException, ValueError):
    return cell(scalar)


def _as_text(path: pathlib.Path, name: str, column: pa.Array) -> pa.Array:
  """Bytes as the UTF-8 that they are to be; other columns as they are."""
  if not (
    pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
  ):
    return column
  try:
    return column.cast(pa.string())
  except pa.ArrowInvalid as error:
    raise ValueError(
      f'{path}: column {name!r} holds bytes that are no UTF-8; write text, or'
      ' take it out of the schema.'
    ) from error


def _csv_chunks(
  path: pathlib.Path, chosen: Sequence[str], delimiter: str
) -> Iterator[Raw]:
  with _opened(path) as file:
    lines = _Lines(file, path)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names = _first(reader)
    places = {name: names.index(name) for name in chosen}
    lines.take()
    rows, starts, texts, bad, held = [], [], [], [], 0
    begin = reader.line_num + 1
    while True:
      try:
        row = next(reader)
        fault = None if len(row) == len(names) else _ragged(row, names)
      except StopIteration:
        break
      except csv.Error as error:
        row, fault = None, ('broken quotes', str(error), 'closed quotes')
      text = lines.take()
      held += len(text)
      if row is None:
        bad += _swallowed(begin, fault, text)
      elif fault and row:
        reason, value, expected = fault
        bad.append(Bad(begin, reason, '', value, expected, text))
      elif row:
        rows.append(row)
        starts.append(begin)
        texts.append(text)
      begin = reader.line_num + 1
      if len(rows) + len(bad) >= _CHUNK or held > _HELD:
        yield _decoded(rows, starts, texts, bad, places)
        rows, starts, texts, bad, held = [], [], [], [], 0
    if rows or bad:
      yield _decoded(rows, starts, texts, bad, places)


def _first(rows: Iterator[list[str]]) -> list[str]:
  """The first row that is not blank; empty where there is none."""
  return next(filter(None, rows), [])


class _Lines:
  """Lines of a file that remembers those it gave since it was asked.

  ValueError where a row, of one line or of several in quotes, is no row.
  """

  def __init__(self, file: io.TextIOWrapper, path: pathlib.Path) -> None:
    self._file, self._path = file, path
    self._given: list[str] = []
    self._size = 0

  def __iter__(self) -> '_Lines':
    return self

  def __next__(self) -> str:
    line = self._file.readline(_LONGEST_ROW + 1)
    if not line:
      raise StopIteration
    self._given.append(line)
    self._size += len(line)
    if self._size > _LONGEST_ROW:
      raise ValueError(
        f'{self._path} has a row of more than {_LONGEST_ROW} letters, which'
        f' begins {self._given[0][:40]!r}; it is damaged or no CSV.'
      )
    return line

  def take(self) -> str:
    """The lines given since the last call."""
    given, self._given, self._size = self._given, [], 0
    return given[0] if len(given) == 1 else ''.join(given)


def _swallowed(begin: int, fault: tuple[str, str, str], text: str) -> list[Bad]:
  """Every line that a quote runs over, since each may have been a row."""
  reason, value, expected = fault
  return [
    Bad(begin + i, reason, '', value, expected, line)
    for i, line in enumerate(io.StringIO(text, newline=''))
  ]


def _ragged(row: list[str], names: list[str]) -> tuple[str, str, str]:
  return 'ragged row', f'{len(row)} values', f'{len(names)} values'


def _decoded(
  rows: list[list[str]],
  starts: list[int],
  texts: list[str],
  bad: list[Bad],
  places: dict[str, int],
) -> Raw:
  """Rows as columns, those apart that are no UTF-8."""
  try:
    columns = _columns(rows, places)
  except UnicodeEncodeError:
    keep = []
    for i, row in enumerate(rows):
      broken = [name for name, p in places.items() if not _is_text(row[p])]
      if broken:
        value = row[places[broken[0]]].encode('utf-8', 'surrogateescape')
        shown = repr(value)[2:-1], 'UTF-8', texts[i]
        bad.append(Bad(starts[i], 'undecodable bytes', broken[0], *shown))
      else:
        keep.append(i)
    rows, starts, texts = (
      [kept[i] for i in keep] for kept in (rows, starts, texts)
    )
    columns = _columns(rows, places)
  return Raw(columns, np.array(starts, np.int64), texts, bad)


def _columns(
  rows: list[list[str]], places: dict[str, int]
) -> dict[str, pa.Array]:
  return {
    name: pa.array([row[place] for row in rows], pa.string())
    for name, place in places.items()
  }


def _is_text(value: str) -> bool:
  try:
    value.encode('utf-8')
  except UnicodeEncodeError:
    return False
  return True


def _opened(path: pathlib.Path) -> io.TextIOWrapper:
  """A file of UTF-8; bytes that are none come as surrogates."""
  return io.TextIOWrapper(
    unpacked.opened(path),
    encoding='utf-8-sig',
    errors='surrogateescape',
    newline='',
  )
