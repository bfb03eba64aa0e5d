"""Rows of CSV and Parquet files as they are: columns of cells, not yet cast."""

import csv
import gzip
import io
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data import event_schema

_CHUNK = 2**16
_DELIMITERS = ',;\t|'


class Bad(NamedTuple):
  """A row that is not read: where, why, and its text."""

  line: int
  reason: str
  column: str
  value: str
  expected: str
  text: str


class Raw(NamedTuple):
  """Cells as they came; text(i) is the whole row i."""

  columns: dict[str, pa.Array]
  line_E: np.ndarray
  texts: list[str] | None
  bad: list[Bad]


def header(path: str | pathlib.Path, delimiter: str = ',') -> list[str]:
  """The names of a file's columns; ValueError where they cannot be used."""
  path = pathlib.Path(path).expanduser()
  if is_parquet(path):
    names = _parquet(path).schema_arrow.names
  else:
    with _opened(path) as file:
      try:
        names = next(csv.reader(file, delimiter=delimiter), [])
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
  for name in names:
    if not name:
      raise ValueError(
        f'{path} has a column without a name in {names}; name it.'
      )
    if names.count(name) > 1:
      raise ValueError(
        f'{path} has {names.count(name)} columns named {name!r}; rename all'
        ' but one.'
      )
  return names


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


def _parquet(path: pathlib.Path) -> pq.ParquetFile:
  try:
    return pq.ParquetFile(path)
  except pa.ArrowInvalid as error:
    raise ValueError(f'{path} is damaged ({error}); write it anew.') from error


def _parquet_chunks(path: pathlib.Path, names: Sequence[str]) -> Iterator[Raw]:
  file = _parquet(path)
  for name in names:
    kind = file.schema_arrow.field(name).type
    if pa.types.is_nested(kind):
      raise ValueError(
        f'{path}: column {name!r} is nested ({kind}); write one plain column'
        ' per value, or take it out of the schema.'
      )
  first = 1
  for batch in file.iter_batches(_CHUNK, columns=list(names)):
    columns = {}
    for name in names:
      column = batch.column(name)
      if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
      columns[name] = column
    line_E = np.arange(first, first + len(batch), dtype=np.int64)
    yield Raw(columns, line_E, None, [])
    first += len(batch)


def _csv_chunks(
  path: pathlib.Path, chosen: Sequence[str], delimiter: str
) -> Iterator[Raw]:
  with _opened(path) as file:
    lines = _Lines(file)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names = next(reader)
    places = {name: names.index(name) for name in chosen}
    lines.take()
    rows, starts, texts, bad = [], [], [], []
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
      if fault and row != []:
        reason, value, expected = fault
        bad.append(Bad(begin, reason, '', value, expected, text))
      elif row:
        rows.append(row)
        starts.append(begin)
        texts.append(text)
      begin = reader.line_num + 1
      if len(rows) == _CHUNK:
        yield _decoded(rows, starts, texts, bad, places)
        rows, starts, texts, bad = [], [], [], []
    if rows or bad:
      yield _decoded(rows, starts, texts, bad, places)


class _Lines:
  """Lines of a file that remembers those it gave since it was asked."""

  def __init__(self, file: Iterator[str]) -> None:
    self._file = file
    self._given: list[str] = []

  def __iter__(self) -> '_Lines':
    return self

  def __next__(self) -> str:
    line = next(self._file)
    self._given.append(line)
    return line

  def take(self) -> str:
    """The lines given since the last call."""
    given, self._given = self._given, []
    return given[0] if len(given) == 1 else ''.join(given)


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
  opener = gzip.open if path.suffix == '.gz' else open
  file = opener(path, 'rb')
  return io.TextIOWrapper(
    file, encoding='utf-8-sig', errors='surrogateescape', newline=''
  )
