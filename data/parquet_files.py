"""Columns of Parquet files that nobody vouches for, in pieces.

A few bytes of such a file may stand for any number of rows, and for the same
long text in each; what is taken into memory is bounded before it is made.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Rows per byte of file, and bytes of text in a piece.
_DENSEST, _SPARE = 4096, 2**20
_LARGEST = 2**30
_DENSEST_TEXT = 1000  # bytes of text per byte of file, beyond those


def names(path: pathlib.Path) -> list[str]:
  """Of all columns; ValueError for a file that is damaged."""
  return list(_opened(path).schema_arrow.names)


def kinds(path: pathlib.Path) -> dict[str, pa.DataType]:
  """Types of the columns that `pieces` can read."""
  schema = _opened(path).schema_arrow
  return {field.name: field.type for field in schema if _is_plain(field.type)}


def pieces(
  path: pathlib.Path, columns: Sequence[str], rows: int
) -> Iterator[list[pa.Array]]:
  """Some columns, so many rows at a time: numbers, bools, times and text.

  Raises ValueError naming the file where it is damaged or larger than it could
  be, and the column where it has values of another kind.
  """
  schema, texts = _opened(path).schema_arrow, []
  for name in columns:
    if not _is_plain(schema.field(name).type):
      kind = schema.field(name).type
      what = 'nested' if pa.types.is_nested(kind) else 'of a rare kind'
      raise ValueError(
        f'{path}: column {name!r} is {what} ({str(kind)[:80]}); write one plain'
        ' column per value, or take it out of the schema.'
      )
    if _is_text(schema.field(name).type):
      texts.append(name)
  file = _opened(path, texts)
  size, claimed = path.stat().st_size, file.metadata.num_rows
  if not 0 <= claimed <= _SPARE + _DENSEST * size:
    raise ValueError(
      f'{path} of {size} bytes claims {claimed} rows; it is damaged or made to'
      ' fill the memory, so write it anew.'
    )
  room = _LARGEST + _DENSEST_TEXT * size
  for batch in _batches(path, file, columns, rows):
    made = {}
    for name in columns:
      found = batch.column(name)
      _check(path, name, found)
      room -= _written_out(path, name, found)
      made[name] = _plain(found)
    if room < 0:
      raise ValueError(
        f'{path} of {size} bytes holds more than {_DENSEST_TEXT} times as much'
        ' text; if it is what you think, write it as several files.'
      )
    yield [made[name] for name in columns]


def _opened(path: pathlib.Path, texts: Sequence[str] = ()) -> pq.ParquetFile:
  """texts: columns of which equal values are kept once."""
  try:
    file = pq.ParquetFile(
      path, read_dictionary=list(texts), page_checksum_verification=True
    )
    _ = file.schema_arrow, file.metadata.num_rows
  except Exception as error:  # Arrow raises those of Python as well as its own.
    raise _damage(path, error) from error
  return file


def _batches(
  path: pathlib.Path, file: pq.ParquetFile, columns: Sequence[str], rows: int
) -> Iterator[pa.RecordBatch]:
  with file:
    try:
      yield from file.iter_batches(rows, columns=list(columns))
    except GeneratorExit:
      raise
    except Exception as error:
      raise _damage(path, error) from error


def _damage(path: pathlib.Path, error: Exception) -> Exception:
  if isinstance(error, FileNotFoundError | PermissionError):
    return error
  reason = ' '.join(str(error).split())[:200]
  return ValueError(
    f'{path} is damaged or no Parquet file ({reason}); write it anew.'
  )


def _is_text(kind: pa.DataType) -> bool:
  return pa.types.is_string(kind) or pa.types.is_binary(kind)


def _is_plain(kind: pa.DataType) -> bool:
  if pa.types.is_dictionary(kind):
    kind = kind.value_type
  tests = (
    pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating,
    pa.types.is_decimal, pa.types.is_string, pa.types.is_large_string,
    pa.types.is_binary, pa.types.is_large_binary, pa.types.is_date,
    pa.types.is_timestamp, pa.types.is_null,
  )  # fmt: skip
  return any(test(kind) for test in tests)


def _check(path: pathlib.Path, name: str, column: pa.Array) -> None:
  """ValueError for text that is no UTF-8, and places beyond a dictionary."""
  try:
    column.validate(full=True)
  except pa.ArrowInvalid as error:
    reason = ' '.join(str(error).split())[:200]
    raise ValueError(
      f'{path}: column {name!r} is damaged or no UTF-8 ({reason}); write it'
      ' anew.'
    ) from error


def _plain(column: pa.Array) -> pa.Array:
  """The column without a dictionary, and half floats as floats."""
  if pa.types.is_dictionary(column.type):
    column = column.dictionary_decode()
  if pa.types.is_float16(column.type):
    return column.cast(pa.float32())
  return column


def _written_out(path: pathlib.Path, name: str, column: Any) -> int:
  """Bytes of a column's text; ValueError where it is too much at once."""
  is_shared = pa.types.is_dictionary(column.type)
  if not is_shared or not len(column.dictionary):
    return 0
  values = column.dictionary
  if pa.types.is_primitive(values.type) or pa.types.is_decimal(values.type):
    return 0
  lengths = pc.fill_null(pc.binary_length(values), 0)
  lengths = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
  indices = column.indices.drop_null().to_numpy(zero_copy_only=False)
  total = int(lengths[indices].sum())
  if total > _LARGEST:
    raise ValueError(
      f'{path}: column {name!r} holds {total} bytes of text in {len(column)}'
      f' rows; at most {_LARGEST} are read at once, so write shorter values.'
    )
  return total
