"""Events of a CSV or Parquet file: read once, sorted, split and encoded.

Rows go to partitions by a hash of their entity, so that no more than one
partition is in memory at a time. The result does not depend on how many
partitions there are.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from absl import logging

from data import event_corpus
from data import event_partitions
from data import event_reader
from data import event_schema
from data import event_source
from data import event_tokens
from data import folders

ON_BAD = ('error', 'drop', 'quarantine')
# Part of every folder's name; raised when the files below it change meaning.
_LAYOUT = 2
# Of the hashes of entities: train is below 60%, validation below 80%.
_BORDERS = int(0.6 * 2**64), int(0.8 * 2**64)
_PARTITION_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Events:
  """A file of events, split 60/20/20 by a hash of entities, by time, or both.

  path, test_path: CSV (also .gz) or Parquet; where there is a second file, its
    entities are the test split, and the first file's 75% train.
  schema: JSON file of an event_schema.Schema, or its text.
  split_by: one of event_source.SPLIT_BY.
  on_bad: one of ON_BAD: what becomes of rows that cannot be read. Those in
    quarantine are in quarantine.csv of the prepared folder.
  max_bad_fraction: of all rows, beyond which nothing is prepared.
  bins, min_count, max_words, recents: as in event_tokens.Limits.
  partitions: a power of 2; 0 chooses by the size of the file.
  fitted: the tokenizer as JSON; empty until `trained`.
  """

  path: str = ''
  schema: str = ''
  test_path: str = ''
  split_by: str = 'entity'
  on_bad: str = 'error'
  max_bad_fraction: float = 0.001
  bins: int = 32
  min_count: int = 5
  max_words: int = 60_000
  recents: int = 16
  partitions: int = 0
  directory: str = '~/.cache/patchwork'
  fitted: str = ''

  def __post_init__(self) -> None:
    event_source.check_split_by(self.split_by)
    if self.on_bad not in ON_BAD:
      raise ValueError(
        f'data.on_bad={self.on_bad!r} is unknown; choose one of {ON_BAD}.'
      )
    if not 0 <= self.max_bad_fraction <= 1:  # So is NaN.
      raise ValueError(
        f'data.max_bad_fraction={self.max_bad_fraction} must be from 0 to 1.'
      )
    for name in event_tokens.Limits._fields:
      if getattr(self, name) < 1:
        raise ValueError(
          f'data.{name}={getattr(self, name)} must be at least 1.'
        )
    if self.partitions & (self.partitions - 1) or self.partitions < 0:
      raise ValueError(
        f'data.partitions={self.partitions} must be a power of 2, or 0.'
      )
    if self.test_path and self.split_by != 'entity':
      raise ValueError(
        f'data.test_path names the test entities, so data.split_by='
        f"{self.split_by!r} cannot be; set it to 'entity' or give one file."
      )

  @functools.cached_property
  def layout(self) -> event_schema.Schema:
    """The schema itself; ValueError where there is none to read."""
    if not self.schema:
      raise ValueError(
        'data.schema names no file; propose one with `python -m data.events'
        ' inspect FILE`, edit it and set data.schema to it.'
      )
    if self.schema.lstrip().startswith('{'):
      return event_schema.Schema.from_json(self.schema, 'data.schema')
    return event_schema.Schema.load(self.schema)

  @functools.cached_property
  def tokenizer(self) -> event_tokens.Tokenizer:
    """Fitted on the training entities."""
    if self.fitted:
      return event_tokens.Tokenizer.from_json(self.fitted)
    return event_source.read_tokenizer(self.prepare())

  def trained(self) -> 'Events':
    """These events with the schema and the tokenizer in the config itself."""
    return dataclasses.replace(
      self, schema=self.layout.to_json(), fitted=self.tokenizer.to_json()
    )

  def untrained(self) -> 'Events':
    """These events without a tokenizer; the schema stays in the config."""
    return dataclasses.replace(self, schema=self.layout.to_json(), fitted='')

  def prepare(self) -> pathlib.Path:
    """Makes all splits unless they are there; returns their folder."""
    if not self.path:
      raise ValueError(
        'data.path names no file; set it to a CSV or Parquet file of events.'
      )
    identity = dataclasses.asdict(self) | {
      'layout': _LAYOUT,
      'schema': self.layout.to_json(),
      'files': [_stamp(path) for path in self._paths],
    }
    for name in ('directory', 'fitted', 'partitions', 'path', 'test_path'):
      del identity[name]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    directory = pathlib.Path(self.directory).expanduser()
    folder = directory / f'events-{key.hexdigest()[:16]}'
    return folders.make_once(folder, self._build)

  def open(self, split: str) -> event_corpus.EventCorpus:
    """One split, prepared first where needed."""
    event_source.check_split(split)
    folder = self.prepare()
    corpus = event_source.open_split(folder, split)
    if self.fitted:
      self.tokenizer.check(corpus.tokenizer)
    return dataclasses.replace(corpus, stream=self)

  @property
  def _paths(self) -> list[str]:
    return [path for path in (self.path, self.test_path) if path]

  def _build(self, folder: pathlib.Path) -> None:
    logging.info('Preparing %s in %s', self.path, folder)
    scratch = folder / 'partitions'
    scratch.mkdir()
    counted = self._distribute(folder, scratch)
    parts = sorted(scratch.glob('*.parquet'))
    found = [
      event_partitions.sort(part, self.layout, self._paths) for part in parts
    ]
    self._warn(found)
    times = None
    if self.split_by != 'entity':
      column = [pq.read_table(p, columns=[self.layout.time]) for p in parts]
      time_E = event_tokens.microseconds(
        pa.concat_tables(column), self.layout.time
      )
      times = np.quantile(time_E, [0.6, 0.8], method='lower')
    stored = _Stored(self, parts, times)
    self._check_splits(stored, found)
    self._check_label(stored)
    tokenizer = event_tokens.fit(self.layout, stored, self._limits)
    counts = {}
    for split in event_source.SPLITS:
      writer = event_corpus.Writer(folder / split, tokenizer)
      for table, scored_E in stored.parts(split):
        if len(table):
          writer.add(
            table.drop_columns([event_partitions.KEY, event_partitions.GIVEN]),
            scored_E,
          )
      counts[split] = writer.close()
    shutil.rmtree(scratch)
    metadata = counted | {'splits': counts, 'tied': sum(f.tied for f in found)}
    event_source.finish(folder, self.layout, tokenizer, metadata)

  @property
  def _limits(self) -> event_tokens.Limits:
    return event_tokens.Limits(
      self.bins, self.min_count, self.max_words, self.recents
    )

  def _distribute(
    self, folder: pathlib.Path, scratch: pathlib.Path
  ) -> dict[str, object]:
    """Writes good rows to partitions by entity, bad ones to quarantine."""
    size = sum(pathlib.Path(p).expanduser().stat().st_size for p in self._paths)
    count = self.partitions
    if not count:
      count = 1 << max(size // _PARTITION_BYTES, 0).bit_length()
    writers: dict[int, pq.ParquetWriter] = {}
    quarantine = event_partitions.Quarantine(
      folder, kept=self.on_bad == 'quarantine'
    )
    rows, bad, zones = 0, {}, set()
    with quarantine:
      for number, path in enumerate(self._paths):
        reader = event_reader.Reader(path, self.layout)
        for chunk in reader.chunks():
          quarantine.add(path, chunk.bad)
          table = chunk.table.append_column(
            event_partitions.KEY,
            event_partitions.keys(chunk.table[self.layout.entity]),
          )
          given = pa.array(np.full(len(table), number == 1))
          table = table.append_column(event_partitions.GIVEN, given)
          event_partitions.scatter(table, count, writers, scratch)
        self._check_zones(zones, reader.zones)
        zones |= reader.zones
        reader.check(0.0 if self.on_bad == 'error' else self.max_bad_fraction)
        if not number:
          reader.check_filled()
        rows += reader.rows
        for reason, n in reader.counts.items():
          bad[reason] = bad.get(reason, 0) + n
    for writer in writers.values():
      writer.close()
    if bad:
      kept = f'{folder.with_suffix("")}/quarantine.csv'
      logging.warning(
        '%d of %d rows are left out (%s)%s',
        sum(bad.values()),
        rows,
        ', '.join(f'{n} {reason}' for reason, n in bad.items()),
        f'; they are in {kept}' if self.on_bad == 'quarantine' else '',
      )
    return {'rows': rows, 'bad': bad}

  def _check_zones(self, zones: set[str], more: set[str]) -> None:
    """ValueError where times of one file alone have a zone."""
    if zones and more and zones != more:
      first = 'a time zone' if 'zone' in zones else 'no time zone'
      second = 'a time zone' if 'zone' in more else 'none'
      raise ValueError(
        f'Times of {self.layout.time!r} have {first} in {self.path} and'
        f' {second} in {self.test_path}; write all with one (as'
        ' 2020-01-31T12:00:00Z) or all without.'
      )

  def _warn(self, found: list[event_partitions.Found]) -> None:
    entities, single, tied, events = map(sum, zip(*found, strict=True))
    if tied:
      logging.info(
        '%d of %d events of %s (%.2g%%) have the time of the one before; they'
        ' stay in the order of the file.',
        tied, events, self.path, 100 * tied / events,
      )  # fmt: skip
    if single:
      logging.warning(
        '%d of %d entities of %s have a single event, so no history.',
        single, entities, self.path,
      )  # fmt: skip

  def _check_splits(
    self, stored: '_Stored', found: list[event_partitions.Found]
  ) -> None:
    """ValueError where a split has nothing to learn from, or to score."""
    entities, _, _, events = map(sum, zip(*found, strict=True))
    for split in event_source.SPLITS:
      if not len(stored.select([self.layout.time], split)):
        raise ValueError(
          f'{self.path}: split {split!r} by data.split_by={self.split_by!r} has'
          f' none of the {events} events (of {entities} entities); give a file'
          ' with more entities or times, or another data.split_by.'
        )

  def _check_label(self, stored: '_Stored') -> None:
    """ValueError where a class of a split would be unknown."""
    schema = self.layout
    if schema.label is None:
      return
    values = next(f.values for f in schema.fields if f.kind == 'label')
    seen, where = {}, f'{self.path}: label {schema.label!r}'
    for split in event_source.SPLITS:
      column = stored.select([schema.label], split)[schema.label]
      seen[split] = set(pc.unique(column.drop_null()).to_pylist())
    if len(seen['train']) < 2:
      raise ValueError(
        f'{where} has {sorted(seen["train"]) or "no value"} in all training'
        ' events, and needs two values at least; choose another label or more'
        ' entities.'
      )
    if not values and len(seen['train']) > self.max_words:
      raise ValueError(
        f'{where} has {len(seen["train"])} values in training, more than'
        f' data.max_words={self.max_words}; raise that, or choose another'
        ' label.'
      )
    for split in event_source.SPLITS:
      unseen = sorted(seen[split] - (set(values) or seen['train']))
      if unseen and values:
        raise ValueError(
          f'{where} is {unseen[0]!r} in split {split!r}, and the "values" of'
          f' that field of the schema are {list(values)[:10]}; name all values'
          ' there, or correct them.'
        )
      if unseen:
        raise ValueError(
          f'{where} is {unseen[0]!r} in split {split!r} and never in training,'
          f' where it is one of {sorted(seen["train"])[:10]}; name all values'
          ' in the "values" of that field of the schema, or correct them.'
        )


class _Stored:
  """Sorted partitions as one table that is read by split and column."""

  def __init__(
    self, events: Events, paths: list[pathlib.Path], times: np.ndarray | None
  ) -> None:
    self._events, self._paths, self._times = events, paths, times

  def select(self, columns: list[str], split: str = 'train') -> pa.Table:
    """Some columns of a split; of scored events alone beyond training."""
    names = [
      *dict.fromkeys(
        [
          *columns,
          self._events.layout.time,
          event_partitions.KEY,
          event_partitions.GIVEN,
        ]
      )
    ]
    tables = []
    for table, scored_E in self.parts(split, names):
      tables.append(table.filter(pa.array(scored_E)).select(columns))
    return pa.concat_tables(tables)

  def parts(
    self, split: str, columns: list[str] | None = None
  ) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Whole entities of a split, and which of their events are scored."""
    for path in self._paths:
      table = pq.read_table(path, columns=columns)
      if self._events.split_by != 'time':
        table = table.filter(pa.array(self._chosen(table, split)))
      yield event_source.cut(
        table, self._events.layout.time, split, self._times
      )

  def _chosen(self, table: pa.Table, split: str) -> np.ndarray:
    """Which rows are of entities of the split."""
    key_E = table[event_partitions.KEY].to_numpy()
    given_E = table[event_partitions.GIVEN].to_numpy()
    first, second = _BORDERS
    if self._events.test_path:
      # Its entities are all of the test split.
      first, second = int(0.75 * 2**64), 2**64 - 1
    split_E = (key_E >= np.uint64(first)).astype(int)
    split_E += key_E >= np.uint64(second)
    if self._events.test_path:
      split_E = np.where(given_E, 2, np.minimum(split_E, 1))
    return split_E == event_source.SPLITS.index(split)


def _stamp(path: str) -> list[object]:
  """What changes when a file does."""
  try:
    found = pathlib.Path(path).expanduser().stat()
  except OSError as error:
    raise ValueError(
      f'data.path={path!r} cannot be read ({error.strerror}); give the path of'
      ' a CSV or Parquet file.'
    ) from error
  return [pathlib.Path(path).name, found.st_size, found.st_mtime_ns]
