"""Rows of events spread over partitions by a hash of their entity."""

import csv
import hashlib
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data import event_reader
from data import event_rows
from data import event_schema

# Columns beside the schema's: the entity's hash; is the row of the test file.
KEY, GIVEN = ':key', ':given'


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
    return self

  def __exit__(self, *error: object) -> None:
    if self._path:
      self._file.close()

  def add(self, path: str, bad: list[event_rows.Bad]) -> None:
    """Writes rows where they are kept."""
    if self._path:
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
