"""Tables of events as rows of small integers, fitted on training entities.

A table is a pyarrow.Table sorted by (entity, time): the entity, the time in
microseconds of UTC (timestamp or int64), then the columns. Letters: E events,
C columns of a row, N entities.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import event_cells
from data import event_codes
from data import event_schema
from data import json_text

VERSION = 1
_MICROSECONDS = 10**6
_HOURS = tuple(map(str, range(24)))
_WEEKDAYS = tuple(map(str, range(7)))


@dataclasses.dataclass(frozen=True)
class Column:
  """One column of a row; the names of derived ones are 'TIME:gap' and so on.

  kind: one of event_schema.KINDS, or of event_schema.DERIVED.
  """

  name: str
  kind: str
  code: event_codes.Code

  @property
  def size(self) -> int:
    """Number of local ids, the special ones included."""
    return self.code.size

  @property
  def is_binned(self) -> bool:
    """Whether ids are of bins of a number, in order."""
    return isinstance(self.code, event_codes.Bins)


class Limits(NamedTuple):
  """What fitting may spend.

  bins: of a number, and of gaps.
  min_count: rows of a value of an id column that is to have its own id.
  max_words: values of a column that may have their own ids. Of categories the
    most frequent ones do that came more than once; an id column with more is
    coded by `recents`, and so is one whose values with ids of their own fill
    less than half of the rows.
  recents: how many events such a column looks back.
  """

  bins: int = 32
  min_count: int = 5
  max_words: int = 60_000
  recents: int = 16


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """What turns tables into ids; the label is the last column of a row.

  fitted_on: SHA-256 of the ids of the training events.
  """

  entity: str
  time: str
  columns: tuple[Column, ...]
  fitted_on: str
  version: int = VERSION

  @functools.cached_property
  def sizes_C(self) -> np.ndarray:
    """Number of local ids of every column."""
    return np.array([column.size for column in self.columns], np.int64)

  @functools.cached_property
  def offsets_C(self) -> np.ndarray:
    """Global id = offset of the column + local id."""
    return np.cumsum(self.sizes_C) - self.sizes_C

  @property
  def vocabulary(self) -> int:
    """Number of global ids."""
    return int(self.sizes_C.sum())

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(column.name for column in self.columns)

  @property
  def digest(self) -> str:
    """SHA-256 of the tokenizer itself."""
    return hashlib.sha256(self.to_json().encode()).hexdigest()

  @property
  def label(self) -> Column | None:
    """The label column; None where the schema names none."""
    last = self.columns[-1]
    return last if last.kind == 'label' else None

  def encode(self, table: pa.Table) -> np.ndarray:
    """Local ids (int32) of every event and column."""
    with_derived = derived(table, self.entity, self.time)
    first_E = _first(offsets(table, self.entity))
    ids_EC = np.empty((len(table), len(self.columns)), np.int32)
    for index, column in enumerate(self.columns):
      array = _array(with_derived, column.name)
      ids_EC[:, index] = column.code.encode(array, first_E)
    return ids_EC

  def values(self, table: pa.Table) -> np.ndarray:
    """Standardised numbers (float32), NaN in columns that are none."""
    with_derived = derived(table, self.entity, self.time)
    values_EC = np.full((len(table), len(self.columns)), np.nan, np.float32)
    for index, column in enumerate(self.columns):
      if isinstance(column.code, event_codes.Bins):
        array = _array(with_derived, column.name)
        values_EC[:, index] = column.code.values(array)
    return values_EC

  def decode(
    self, ids_EC: np.ndarray, rng: np.random.Generator | None = None
  ) -> pa.Table:
    """The columns of a table, without entity and time; derived ones stay.

    A binned number becomes the median of its bin's train values, or one drawn
    from them where there is an rng. Gaps are in seconds.
    """
    if ids_EC.ndim != 2 or ids_EC.shape[1] != len(self.columns):
      raise ValueError(
        f'ids of shape {ids_EC.shape} are no rows of {len(self.columns)}'
        f' columns {self.names}.'
      )
    arrays = [
      column.code.decode(ids_EC[:, index].astype(np.int64), rng)
      for index, column in enumerate(self.columns)
    ]
    return pa.table(dict(zip(self.names, arrays, strict=True)))

  def to_json(self) -> str:
    """The whole tokenizer as text; `from_json` is its inverse."""
    columns = [
      {'name': c.name, 'kind': c.kind, **event_codes.to_json(c.code)}
      for c in self.columns
    ]
    stored = dataclasses.asdict(self) | {'columns': columns}
    return json.dumps(stored, ensure_ascii=False)

  @classmethod
  def from_json(
    cls, text: str | bytes, where: str = 'The tokenizer'
  ) -> 'Tokenizer':
    """What `to_json` was given; ValueError for anything else."""
    stored = json_text.parse(text, where, 'prepare the data again')
    version = stored.get('version') if isinstance(stored, dict) else None
    if type(version) is not int or version != VERSION:
      raise ValueError(
        f'{where} has version {str(version)[:20]}, and this code reads'
        f' version {VERSION}; prepare the data again.'
      )
    entries = stored.pop('columns', None)
    names = {field.name for field in dataclasses.fields(cls)} - {'columns'}
    texts = [stored.get(name) for name in names - {'version'}]
    is_whole = stored.keys() == names and isinstance(entries, list) and entries
    if not is_whole or not all(isinstance(value, str) for value in texts):
      raise ValueError(
        f'{where} lacks its columns or some of {sorted(names)}; prepare the'
        ' data again.'
      )
    try:
      columns = tuple(_column(entry) for entry in entries)
    except ValueError as error:
      raise ValueError(f'{where}: {error}; prepare the data again.') from error
    return cls(columns=columns, **stored)

  def check(self, other: 'Tokenizer') -> None:
    """ValueError unless data made by `other` has this tokenizer's ids."""
    if self.digest != other.digest:
      raise ValueError(
        f'The data has ids of tokenizer {other.digest[:12]} (columns'
        f' {list(other.names)}), the model those of {self.digest[:12]}'
        f' (columns {list(self.names)}); encode the data with the'
        " checkpoint's tokenizer, or train on this data."
      )


def _column(entry: Any) -> Column:
  """A column of a stored tokenizer; ValueError says what is wrong with it."""
  entry = dict(entry) if isinstance(entry, dict) else {}
  name, kind = entry.pop('name', None), entry.pop('kind', None)
  if not isinstance(name, str) or kind not in (
    *event_schema.KINDS, *event_schema.DERIVED,
  ):  # fmt: skip
    raise ValueError(
      f'a column has name={str(name)[:40]!r} and kind={str(kind)[:40]!r}'
    )
  try:
    return Column(name, kind, event_codes.from_json(entry))
  except ValueError as error:
    raise ValueError(f'column {name[:40]!r}: {error}') from error


class Selectable(Protocol):
  """A table, or files that read some columns of one."""

  def select(self, columns: list[str]) -> pa.Table: ...


def fit(
  schema: event_schema.Schema, table: Selectable, limits: Limits | None = None
) -> Tokenizer:
  """The tokenizer of a table that holds the training entities and no others.

  Columns: those derived from the time, the schema's, the label. They are read
  one at a time.
  """
  limits = limits or Limits()
  keys = [schema.entity, schema.time]
  columns, digest = [], hashlib.sha256()
  for name, kind, values in [
    *((f'{schema.time}:{part}', part, ()) for part in schema.derived),
    *((f.name, f.kind, f.values) for f in schema.row),
  ]:
    part = table.select(keys if kind in event_schema.DERIVED else [*keys, name])
    array = _array(derived(part, *keys), name)
    first_E = _first(offsets(part, schema.entity))
    code = _code(kind, array, first_E, limits)
    if values:
      code = event_codes.Words(values, masked=kind == 'label')
    ids_E = code.encode(array, first_E)
    digest.update(np.ascontiguousarray(ids_E, '<i4').tobytes())
    columns.append(Column(name, kind, code))
  return Tokenizer(
    schema.entity, schema.time, tuple(columns), digest.hexdigest()
  )


def offsets(table: pa.Table, entity: str) -> np.ndarray:
  """Entity i is events [offsets[i], offsets[i + 1]) of a sorted table."""
  column = _array(table, entity)
  if not len(column):
    return np.zeros(1, np.int64)
  if pa.types.is_dictionary(column.type):
    column = column.indices
  changed = pc.not_equal(column[1:], column[:-1])
  starts = np.flatnonzero(changed.to_numpy(zero_copy_only=False)) + 1
  return np.concatenate([[0], starts, [len(column)]]).astype(np.int64)


def microseconds(table: pa.Table, time: str) -> np.ndarray:
  """The time column in int64."""
  return _array(table, time).cast(pa.int64()).to_numpy(zero_copy_only=False)


def derived(table: pa.Table, entity: str, time: str) -> pa.Table:
  """The table with the gap (seconds), hour and weekday (Monday 0) of its time.

  An entity's first event has no gap.
  """
  time_E = microseconds(table, time)
  first_N = offsets(table, entity)[:-1]
  gap_E = np.diff(time_E, prepend=0) / _MICROSECONDS
  none_E = np.zeros(len(time_E), bool)
  none_E[first_N] = True
  hour_E = time_E // (3600 * _MICROSECONDS)
  # The epoch began on a Thursday.
  weekday_E = (hour_E // 24 + 3) % 7
  gap = pa.array(gap_E, pa.float64(), mask=none_E)
  return (
    table.append_column(f'{time}:gap', gap)
    .append_column(f'{time}:hour', _coded(hour_E % 24, _HOURS))
    .append_column(f'{time}:weekday', _coded(weekday_E, _WEEKDAYS))
  )


def _coded(code_E: np.ndarray, words: Sequence[str]) -> pa.Array:
  indices = pa.array(code_E.astype(np.int8))
  return pa.DictionaryArray.from_arrays(indices, list(words))


def _first(offsets_N1: np.ndarray) -> np.ndarray:
  """Where the entity of each event begins."""
  return np.repeat(offsets_N1[:-1], np.diff(offsets_N1))


def _array(table: pa.Table, name: str) -> pa.Array:
  """One column in one piece."""
  column = table.column(name)
  if isinstance(column, pa.ChunkedArray):
    column = column.unify_dictionaries().combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # Older versions, when empty.
      column = pa.concat_arrays(column.chunks)
  return column


def _code(
  kind: str, array: pa.Array, first_E: np.ndarray, limits: Limits
) -> event_codes.Code:
  if kind == 'hour':
    return event_codes.Words(_HOURS)
  if kind == 'weekday':
    return event_codes.Words(_WEEKDAYS)
  if kind in ('number', 'gap'):
    return event_codes.Bins.fitted(
      event_codes.as_floats(array), bins=limits.bins, logarithmic=kind == 'gap'
    )
  words, count_W = _words(array)
  if kind == 'id':
    kept = int(np.sum(count_W >= limits.min_count))
    few = 2 * count_W[:kept].sum() < count_W.sum()
    if kept > limits.max_words or few:
      return event_codes.Recents.fitted(array, first_E, depth=limits.recents)
    words = words[:kept]
  if kind == 'category':
    # Once is too little to learn from, but shows how often new values come.
    words = words[: int(np.sum(count_W > 1))]
  words = words[: limits.max_words].to_pylist()
  # The last of two classes is the positive one: a yes, or else the rarer.
  known = {word.lower() for word in words} <= set(event_cells.BOOLS)
  if kind != 'label' or len(words) != 2 or known:
    words = sorted(words)
  return event_codes.Words(tuple(words), masked=kind == 'label')


def _words(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
  """Distinct values as text, the most frequent first, and their counts."""
  if pa.types.is_dictionary(array.type):
    array = array.dictionary_decode()
  found = pc.value_counts(array.cast(pa.string()).drop_null())
  words, counts = found.field('values'), found.field('counts')
  order = pc.sort_indices(
    pa.table({'word': words, 'count': counts}),
    sort_keys=[('count', 'descending'), ('word', 'ascending')],
  )
  count_W = counts.take(order).to_numpy(zero_copy_only=False)
  return words.take(order), count_W


def describe(tokenizer: Tokenizer) -> list[dict[str, Any]]:
  """One row per column: name, kind, how it is coded and number of ids."""
  return [
    {'name': c.name, 'kind': c.kind, 'code': type(c.code).__name__,
     'ids': c.size}
    for c in tokenizer.columns
  ]  # fmt: skip
