"""Rows of events spread over partitions by a hash of their entity."""

import csv
import hashlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data import event_reader
from data import event_rows
from data import event_schema
from data import event_tokens

# Columns beside the schema's: the entity's hash; is the row of the test file.
KEY, GIVEN = ':key', ':given'
_LISTED = 5


class Found(NamedTuple):
  """Of a partition: entities, those with one event, events at equal times.

  events: all of them.
  """

  entities: int
  single: int
  tied: int
  events: int


class Quarantine:
  """quarantine.csv: every bad row with the reason and its own text."""

  def __init__(self, folder: pathlib.Path, *, kept: bool) -> None:
    self._path = folder / 'quarantine.csv' if kept else None

  def __enter__(self) -> 'Quarantine':
    if self._path:
      self._file = self._path.open(
        'w', encoding='utf-8', errors='surrogateescape', newline=''
      )
      self._writer = csv.writer(self._file)
      self._writer.writerow(['file', *event_rows.Bad._fields])
      self._whole: dict[pathlib.Path, event_rows.Whole] = {}
    return self

  def __exit__(self, *error: object) -> None:
    if self._path:
      self._file.close()

  def add(self, path: str, bad: list[event_rows.Bad]) -> None:
    """Writes rows, in the order of the file, where they are kept."""
    if not self._path or not bad:
      return
    file = pathlib.Path(path).expanduser()
    if event_rows.is_parquet(file):
      if file not in self._whole:
        self._whole[file] = event_rows.Whole(file)
      whole = self._whole[file]
      bad = [row._replace(text=whole.text(row.line)) for row in bad]
    self._writer.writerows([path, *row] for row in bad)


def scatter(
  table: pa.Table,
  count: int,
  writers: dict[int, pq.ParquetWriter],
  scratch: pathlib.Path,
) -> None:
  """Appends rows to the partitions of their keys, in the order of keys."""
  shift = np.uint64(64 - count.bit_length() + 1)
  part_E = np.zeros(len(table), np.int64)
  if count > 1:
    part_E = (table[KEY].to_numpy() >> shift).astype(np.int64)
  for part in np.unique(part_E):
    rows = table.filter(pa.array(part_E == part))
    if part not in writers:
      path = scratch / f'{part:06d}.parquet'
      writers[part] = pq.ParquetWriter(path, rows.schema)
    writers[part].write_table(rows)


def sort(
  path: pathlib.Path, schema: event_schema.Schema, files: Sequence[str]
) -> Found:
  """Sorts a partition; ValueError for an entity of both files."""
  table = ordered(pq.read_table(path), schema)
  pq.write_table(table, path)
  offsets_N1 = event_tokens.offsets(table, schema.entity)
  time_E = event_tokens.microseconds(table, schema.time)
  given_E = table[GIVEN].to_numpy().astype(int)
  first_N = offsets_N1[:-1]
  both_N = np.minimum.reduceat(given_E, first_N) != np.maximum.reduceat(
    given_E, first_N
  )
  if both_N.any():
    names = table[schema.entity].take(first_N[both_N][:_LISTED]).to_pylist()
    first, second = files
    raise ValueError(
      f'{both_N.sum()} entities of {second} are in {first}, too'
      f' (as {", ".join(map(repr, names))}), and would be trained on; take'
      ' them out of one of the files.'
    )
  same_E = np.diff(time_E) == 0
  same_E[first_N[1:] - 1] = False
  single = int((np.diff(offsets_N1) < 2).sum())
  return Found(len(first_N), single, int(same_E.sum()), len(table))


def ordered(table: pa.Table, schema: event_schema.Schema) -> pa.Table:
  """By hash of the entity, entity, time, row of the file."""
  names = KEY, schema.entity, schema.time, event_reader.LINE
  order = pc.sort_indices(table, [(name, 'ascending') for name in names])
  return table.take(order).combine_chunks()


def keys(entities: pa.ChunkedArray) -> pa.Array:
  """A hash (uint64) of every row's entity, the same on every machine."""
  coded = entities.combine_chunks().dictionary_encode()
  hashes = [
    int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'big')
    for name in coded.dictionary.to_pylist()
  ]
  key_V = np.array(hashes, np.uint64)
  return pa.array(key_V[coded.indices.to_numpy()])
