"""Strict casts of the cells of a column: what does not fit is named, not bent.

Every function takes a column of text (or, from Parquet, of its own type) and
gives the cast column, null where a cell is missing or bad, with the bad cells.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import event_schema

MISSING = ('', 'NA', 'NaN', 'nan', 'null', 'None')
BOOLS = ('yes', 'no', 'true', 'false', '0', '1')
_TIME = pa.timestamp('us')
_UTC = pa.timestamp('us', 'UTC')
_YEARS = np.array(['1900', '2101'], 'datetime64[us]').astype(np.int64)
_ZONE = r'\d[T ]\d.*(Z|[+-]\d\d(:?\d\d)?)$'


class Problem(NamedTuple):
  """Bad cells of one column: why, and what should have been there."""

  reason: str
  column: str
  expected: str
  bad_E: np.ndarray


def words(column: pa.Array) -> pa.Array:
  """Text as it is, null where it says that nothing is there."""
  text = column.cast(pa.string())
  if pa.types.is_floating(column.type):
    # Codes that became floats where some were missing: 5411.0 is '5411'.
    is_whole = pc.equal(pc.floor(column), column)
    is_whole = pc.and_(is_whole, pc.less(pc.abs(column), 2.0**53))
    whole = pc.if_else(is_whole, column, pa.scalar(None, column.type))
    text = pc.if_else(is_whole, whole.cast(pa.int64()).cast(pa.string()), text)
  absent = pc.is_in(text, value_set=pa.array(MISSING))
  return pc.if_else(absent, pa.scalar(None, pa.string()), text)


def bools(column: pa.Array, name: str) -> tuple[pa.Array, list[Problem]]:
  """Text of BOOLS in any case."""
  text = words(column)
  known = pc.is_in(pc.utf8_lower(text), value_set=pa.array(BOOLS))
  bad_E = _mask(pc.and_(pc.is_valid(text), pc.invert(known)))
  expected = f'one of {", ".join(BOOLS)}'
  return _without(text, bad_E), [Problem('no bool', name, expected, bad_E)]


def numbers(column: pa.Array, name: str) -> tuple[pa.Array, list[Problem]]:
  """Float64; '$', spaces, thousands commas and '(x)' for -x are understood."""
  if not _is_text(column):
    text = column
    numeric = pa.types.is_integer(column.type) or pa.types.is_floating(
      column.type
    )
    numeric = numeric or pa.types.is_decimal(column.type)
    if not numeric:
      text = column.cast(pa.string())
    if numeric:  # The nearest one, as of numbers that are written out.
      found = text.cast(pa.float64(), safe=False)
    else:
      found = _cast(text, pa.float64())
  else:
    text = words(column)
    found = _cast(_plain_numbers(text), pa.float64())
  # Other spellings of NaN say that nothing is there, too.
  nan = pc.fill_null(pc.is_nan(found), False)
  bad_E = _mask(pc.and_(pc.is_valid(text), pc.is_null(found)))
  infinite_E = _mask(pc.fill_null(pc.is_inf(found), False))
  found = _without(found, _mask(nan) | infinite_E)
  return found, [
    Problem('no number', name, 'a number', bad_E),
    Problem('infinite number', name, 'a finite number', infinite_E),
  ]


def times(
  columns: Sequence[pa.Array], name: str, time_format: str
) -> tuple[pa.Array, list[Problem], set[str]]:
  """Timestamps in microseconds of UTC, and which of 'zone', 'no zone' occur.

  Several columns are joined by a space. What has no zone is taken as UTC.
  """
  text, kinds = columns[0], set()
  if len(columns) > 1:
    parts = [words(column) for column in columns]
    text = pc.binary_join_element_wise(*parts, ' ')
  if pa.types.is_temporal(text.type):
    kinds = {'zone' if getattr(text.type, 'tz', None) else 'no zone'}
    found = text.cast(pa.timestamp('us', getattr(text.type, 'tz', None)), False)
    text = found.cast(pa.int64())
    found = text.cast(_TIME)
  elif time_format in event_schema.EPOCHS:
    text, (found, kinds) = words(text), (_epoch(text, time_format), set())
  elif time_format == event_schema.ISO:
    text = words(text)
    found, kinds = _iso(text)
  else:
    text = words(text)
    found = pc.strptime(text, format=time_format, unit='us', error_is_null=True)
  missing_E = _mask(pc.is_null(text))
  unread_E = _mask(pc.and_(pc.is_valid(text), pc.is_null(found)))
  stamp_E = _integers(found)
  inside_E = (stamp_E >= _YEARS[0]) & (stamp_E < _YEARS[1])
  outside_E = ~inside_E & ~missing_E & ~unread_E
  return (
    _without(found, outside_E).cast(pa.int64()).cast(_UTC),
    [
      Problem('no time', name, 'a time', missing_E),
      Problem(
        'unparsable time', name, f'a time of format {time_format!r}', unread_E
      ),
      Problem(
        'time outside 1900-2100', name, 'a year from 1900 to 2100', outside_E
      ),
    ],
    kinds,
  )


def _iso(text: pa.Array) -> tuple[pa.Array, set[str]]:
  zone = pc.fill_null(pc.match_substring_regex(text, _ZONE), False)
  aware = _cast(pc.if_else(zone, text, pa.scalar(None, pa.string())), _UTC)
  naive = pc.if_else(zone, pa.scalar(None, pa.string()), text)
  naive = _cast(naive, _TIME)
  kinds = set()
  if aware.null_count < len(aware):
    kinds.add('zone')
  if naive.null_count < len(naive):
    kinds.add('no zone')
  found = pc.coalesce(aware.cast(pa.int64()), naive.cast(pa.int64()))
  return found.cast(_TIME), kinds


def _epoch(column: pa.Array, time_format: str) -> pa.Array:
  """Timestamps of numbers since 1970, fractions of a microsecond dropped."""
  numeric = column
  if _is_text(column):
    numeric = _cast(words(column), pa.int64())
    real = _cast(words(column), pa.float64())
    if numeric.null_count > real.null_count:
      numeric = real
  per_second = event_schema.EPOCHS[time_format]
  if pa.types.is_integer(numeric.type):
    values_E = _integers(numeric)
    if per_second > 10**6:
      stamp_E = values_E // (per_second // 10**6)
    else:
      factor = 10**6 // per_second
      limit = np.iinfo(np.int64).max // factor
      stamp_E = np.clip(values_E, -limit, limit) * factor
  else:
    values_E = pc.fill_null(numeric, 0.0).to_numpy(zero_copy_only=False)
    stamp_E = np.clip(values_E * (10**6 / per_second), -9e18, 9e18)
    stamp_E = np.nan_to_num(np.floor(stamp_E)).astype(np.int64)
  return pa.array(stamp_E, mask=_mask(pc.is_null(numeric))).cast(_TIME)


def _plain_numbers(text: pa.Array) -> pa.Array:
  """Numbers as programs write them, where people wrote money."""
  marked = pc.match_substring_regex(text, r'[$,( ]|^\+')
  if not pc.any(pc.fill_null(marked, False)).as_py():
    return text
  plain = pc.replace_substring_regex(text, r'[$\s]', '')
  plain = pc.replace_substring_regex(plain, r'^\((.*)\)$', r'-\1')
  # A comma is taken out between thousands only: '1,5' is no 15.
  grouped = pc.match_substring_regex(plain, r'^[+-]?\d{1,3}(,\d{3})+(\.\d*)?$')
  without = pc.replace_substring(plain, ',', '')
  return pc.if_else(grouped, without, plain)


def _cast(column: pa.Array, to: pa.DataType) -> pa.Array:
  """A cast that leaves null where a value has no counterpart."""
  try:
    return column.cast(to)
  except pa.ArrowInvalid:
    if len(column) == 1:
      return pa.nulls(1, to)
  middle = len(column) // 2
  halves = _cast(column[:middle], to), _cast(column[middle:], to)
  return pa.concat_arrays(halves)


def _is_text(column: pa.Array) -> bool:
  return pa.types.is_string(column.type) or pa.types.is_large_string(
    column.type
  )


def _integers(column: pa.Array) -> np.ndarray:
  """Int64 with 0 where there is none."""
  filled = pc.fill_null(column.cast(pa.int64()), 0)
  return filled.to_numpy(zero_copy_only=False)


def _mask(column: pa.Array) -> np.ndarray:
  return pc.fill_null(column, False).to_numpy(zero_copy_only=False)


def _without(column: pa.Array, bad_E: np.ndarray) -> pa.Array:
  """The column with null in place of bad cells."""
  if not bad_E.any():
    return column
  return pc.if_else(pa.array(bad_E), pa.scalar(None, column.type), column)
