"""Encoded events of many entities, mapped from disk or in memory."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data import arrays
from data import event_tokens
from data import json_text
from data import text

_SECOND = 10**6
# Rows of a group of the table's Parquet file.
_GROUP = 2**16


@dataclasses.dataclass(frozen=True, eq=False)
class EventCorpus:
  """Events sorted by (entity, time, row of the file).

  ids_EC: local ids, uint16 or int32.
  values_EC: standardised numbers in float32, NaN where a column has none.
  offsets_N1: int64; entity i is events offsets[i] to offsets[i + 1].
  times_E: int64, seconds of UTC since 1970.
  scored_E: bool; the others are history only, as the past in a split by time.
  path: the folder it is in, None in memory.
  stream: the source of these events; a synthetic one knows their ceiling.
  """

  tokenizer: event_tokens.Tokenizer
  split: str
  ids_EC: np.ndarray
  values_EC: np.ndarray
  offsets_N1: np.ndarray
  times_E: np.ndarray
  scored_E: np.ndarray
  path: pathlib.Path | None = None
  stream: Any = None

  def __len__(self) -> int:
    """Number of entities."""
    return len(self.offsets_N1) - 1

  @property
  def num_events(self) -> int:
    return len(self.ids_EC)

  @property
  def bytes_per_id(self) -> float:
    """Events per id: rates that are bytes of text elsewhere are events."""
    return 1 / len(self.tokenizer.columns)

  @functools.cached_property
  def metadata(self) -> dict[str, Any]:
    """What was prepared, with 'content_sha256' and the name of the split."""
    if self.path is None:
      counts = {'entities': len(self), 'events': self.num_events}
      stored = {'splits': {self.split: counts}}
      stored['content_sha256'] = self.tokenizer.digest
    else:
      stored = _read_json(self.path.parent / 'metadata.json')
    return stored | {'split': self.split}

  @functools.cached_property
  def table(self) -> pa.Table:
    """The events as they were read, row by row those of `ids_EC`."""
    if self.path is None:
      raise ValueError(
        f'Split {self.split!r} lives in memory and keeps no table; open a'
        ' prepared split.'
      )
    return pq.read_table(self.path / 'table.parquet')

  @classmethod
  def encoded(
    cls,
    table: pa.Table,
    tokenizer: event_tokens.Tokenizer,
    split: str,
    scored_E: np.ndarray | None = None,
  ) -> 'EventCorpus':
    """A sorted table in memory; all its events are scored by default."""
    if scored_E is None:
      scored_E = np.ones(len(table), bool)
    return cls(
      tokenizer,
      split,
      tokenizer.encode(table).astype(_id_type(tokenizer)),
      tokenizer.values(table),
      event_tokens.offsets(table, tokenizer.entity),
      event_tokens.microseconds(table, tokenizer.time) // _SECOND,
      scored_E,
    )

  @classmethod
  def load(
    cls, path: pathlib.Path, tokenizer: event_tokens.Tokenizer
  ) -> 'EventCorpus':
    """A split that a Writer has written; ValueError where it is damaged."""
    made_by = _read_json(path / 'corpus.json').get('tokenizer')
    if made_by != tokenizer.digest:
      raise ValueError(
        f'{path} was encoded by tokenizer {str(made_by)[:12]} and is'
        f' opened with {tokenizer.digest[:12]}; remove {path.parent} to have'
        ' it prepared again.'
      )
    offsets_N1 = arrays.offsets(path / 'offsets.npy')
    events, columns = int(offsets_N1[-1]), len(tokenizer.columns)
    maps = {}
    for name, dtype, shape in (
      ('ids', _id_type(tokenizer), (events, columns)),
      ('values', np.float32, (events, columns)),
      ('times', np.int64, (events,)),
      ('scored', np.bool_, (events,)),
    ):
      flat = text.mapped(path / f'{name}.bin', dtype)
      if flat.size != np.prod(shape, dtype=int):
        raise ValueError(
          f'{path / name}.bin is damaged: {flat.size} values where its index'
          f' says {np.prod(shape, dtype=int)}; remove {path.parent} to have it'
          ' prepared again.'
        )
      maps[name] = flat.reshape(shape)
    return cls(
      tokenizer, path.name, maps['ids'], maps['values'], offsets_N1,
      maps['times'], maps['scored'], path,
    )  # fmt: skip


class Writer:
  """Writes a split to a folder part by part; entities are never cut."""

  def __init__(
    self, folder: pathlib.Path, tokenizer: event_tokens.Tokenizer
  ) -> None:
    folder.mkdir(parents=True)
    self._folder, self._tokenizer = folder, tokenizer
    self._offsets = [np.zeros(1, np.int64)]
    self._files = {
      name: (folder / f'{name}.bin').open('wb')
      for name in ('ids', 'values', 'times', 'scored')
    }
    self._digests = {name: hashlib.sha256() for name in self._files}
    self._table: pq.ParquetWriter | None = None
    self._pending: list[pa.Table] = []

  def add(self, table: pa.Table, scored_E: np.ndarray | None = None) -> None:
    """Writes whole entities of a sorted table."""
    part = EventCorpus.encoded(table, self._tokenizer, '', scored_E)
    for name, array in (
      ('ids', part.ids_EC),
      ('values', part.values_EC),
      ('times', part.times_E),
      ('scored', part.scored_E.astype(np.bool_)),
    ):
      array = np.ascontiguousarray(array)
      array.tofile(self._files[name])
      self._digests[name].update(array)
    self._offsets.append(part.offsets_N1[1:] + self._offsets[-1][-1])
    self._pending.append(table)
    if sum(map(len, self._pending)) >= _GROUP:
      self._write_table(whole_groups=True)

  def close(self) -> dict[str, Any]:
    """Completes the folder; returns numbers of entities and events, digest."""
    for file in self._files.values():
      file.close()
    if self._pending:
      self._write_table(whole_groups=False)
    if self._table is not None:
      self._table.close()
    offsets_N1 = np.concatenate(self._offsets)
    np.save(self._folder / 'offsets.npy', offsets_N1)
    counts = {
      'entities': len(offsets_N1) - 1,
      'events': int(offsets_N1[-1]),
      'sha256': {n: d.hexdigest() for n, d in self._digests.items()},
    }
    stored = counts | {'tokenizer': self._tokenizer.digest}
    (self._folder / 'corpus.json').write_text(json.dumps(stored), 'utf-8')
    return counts

  def _write_table(self, *, whole_groups: bool) -> None:
    """Writes row groups of one size, so that parts leave no trace."""
    table = pa.concat_tables(self._pending)
    stop = len(table) - len(table) % _GROUP if whole_groups else len(table)
    if self._table is None:
      path = self._folder / 'table.parquet'
      self._table = pq.ParquetWriter(path, table.schema)
    self._table.write_table(table[:stop].combine_chunks(), _GROUP)
    self._pending = [table[stop:]] if stop < len(table) else []


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  way_out = f'remove {path.parent} to have it prepared again'
  return json_text.load(path, dict, way_out)


def _id_type(tokenizer: event_tokens.Tokenizer) -> type:
  return np.uint16 if tokenizer.sizes_C.max() <= 2**16 else np.int32
