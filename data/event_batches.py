"""Rows of events for training and scoring: histories cut, packed and masked.

Array names end in their axes: N entities, E events, C columns, R events of a
row, T = R C cells of a row.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple, Protocol

import numpy as np

from data import event_codes


class Corpus(Protocol):
  """Events by entity and time, as data.event_corpus.EventCorpus."""

  ids_EC: np.ndarray
  values_EC: np.ndarray
  offsets_N1: np.ndarray
  scored_E: np.ndarray
  tokenizer: Any


class Pieces(NamedTuple):
  """Events [start, stop) of a corpus, those before `fresh` read once more."""

  start: np.ndarray
  stop: np.ndarray
  fresh: np.ndarray


@dataclasses.dataclass(frozen=True)
class EventRows:
  """How histories become rows, for Config.rows.

  shuffle: probability that a row's events are read in orders of columns of
    their own, drawn anew whenever a row is read; else from first to last.
  keep_last: probability that a shuffled event keeps its last column, which is
    the label if there is one, at the end.
  mask_all: probability that a row shows none of its labels; mask_some: that a
    row of the others shows only a random part of them. Hidden labels are
    targets all the same.
  context: events that a row reads again where it goes on with a history.
  """

  shuffle: float = 0.0
  keep_last: float = 0.5
  mask_all: float = 1.0
  mask_some: float = 0.0
  context: int = 0

  def __post_init__(self) -> None:
    for name in ('shuffle', 'keep_last', 'mask_all', 'mask_some'):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(
          f'rows.{name}={getattr(self, name)} is a probability; choose it in'
          ' [0, 1].'
        )
    if self.context < 0:
      raise ValueError(f'rows.context={self.context} must not be negative.')

  def __call__(
    self, corpus: Corpus, row_length: int, stored: Any = None
  ) -> 'Rows':
    """The rows of a split, each of at most `row_length` cells."""
    if stored:
      raise ValueError('rows of events take nothing stored beside them.')
    if self.mask_all < 1 and _of_entities(corpus):
      raise ValueError(
        f'the label {corpus.tokenizer.label.name!r} is the same in all events'
        ' of every entity, so that an earlier one tells it; train with'
        ' configs/events_entity.py, which has rows.mask_all=1.'
      )
    return Rows(corpus, row_length, self)


class Rows:
  """Random access to rows of whole events, several entities to a row.

  A row is a dictionary of arrays [T]:
    ids, targets: int32, global ids of the cells; those of hidden labels differ.
    documents: int32, which entity of the row, from 1; 0 is padding.
    mask: float32, 1 for cells to predict: of scored events that no row before
      has, and no missing labels.
    label: float32, 1 for cells of the label column.
    value: float32 numbers, NaN where there is none.
    rank: int32, with shuffled columns: the place of each cell in its event.

  Every event is to be predicted in exactly one row.
  """

  def __init__(
    self,
    corpus: Corpus,
    row_length: int,
    how: EventRows,
    *,
    entities: int | None = None,
  ) -> None:
    tokenizer = corpus.tokenizer
    self._corpus, self._how = corpus, how
    self._count = len(tokenizer.columns)
    self.events = row_length // self._count
    if self.events < 1:
      raise ValueError(
        f'row_length={row_length} is less than one event of {self._count}'
        f' columns; raise it to a multiple of {self._count}.'
      )
    if how.context >= self.events:
      raise ValueError(
        f'rows.context={how.context} must leave room for new events in rows of'
        f' {self.events}; lower it or raise row_length.'
      )
    self._first_C = np.asarray(tokenizer.offsets_C, np.int32)
    self._label = tokenizer.label
    offsets_N1 = np.asarray(corpus.offsets_N1)
    if entities is not None:
      offsets_N1 = offsets_N1[: entities + 1]
    self._pieces = cut(offsets_N1, self.events, how.context)
    self._rows = pack(self._pieces.stop - self._pieces.start, self.events)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """The row with all labels shown, or none if `mask_all` is 1."""
    event_R, document_R, fresh_R = self.places(index)
    real_R1 = document_R[:, None] > 0
    ids_RC = np.asarray(self._corpus.ids_EC[event_R]).astype(np.int32)
    value_RC = np.asarray(self._corpus.values_EC[event_R], np.float32)
    counts_R = fresh_R & np.asarray(self._corpus.scored_E[event_R])
    mask_RC = np.repeat(counts_R[:, None], self._count, 1)
    label_RC = np.zeros_like(mask_RC)
    if self._label is not None:
      label_RC[:, -1] = True
      mask_RC[:, -1] &= ids_RC[:, -1] >= self._label.code.first
    ids_RC = np.where(real_R1, ids_RC + self._first_C, 0)
    row = {
      'ids': ids_RC,
      'targets': ids_RC,
      'documents': np.repeat(document_R[:, None], self._count, 1),
      'mask': mask_RC.astype(np.float32),
      'label': label_RC.astype(np.float32),
      'value': np.where(real_R1, value_RC, np.float32(np.nan)),
    }
    if self._label is not None and self._how.mask_all == 1:
      row['ids'] = self._hide(ids_RC, np.ones(self.events, bool))
    return {name: x.reshape(-1) for name, x in row.items()}

  def vary(
    self, row: dict[str, np.ndarray], rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    """The row with labels hidden and columns put in order by chance."""
    how, row = self._how, dict(row)
    if self._label is not None and how.mask_all < 1:
      kind, part = rng.random(2)
      hidden_R = np.full(self.events, kind < how.mask_all)
      if (
        how.mask_all
        <= kind
        < how.mask_all + (1 - how.mask_all) * (how.mask_some)
      ):
        hidden_R = rng.random(self.events) < part
      ids_RC = row['ids'].reshape(self.events, -1)
      row['ids'] = self._hide(ids_RC, hidden_R).reshape(-1)
    if how.shuffle:
      key_RC = rng.random((self.events, self._count))
      key_RC[rng.random(self.events) < how.keep_last, -1] = 1.0
      # The place of each column where they are sorted by these keys.
      rank_RC = np.argsort(np.argsort(key_RC, axis=1), axis=1)
      if rng.random() >= how.shuffle:
        rank_RC[:] = np.arange(self._count)
      row['rank'] = rank_RC.astype(np.int32).reshape(-1)
    return row

  def places(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a row's events: number in the corpus, entity from 1, is it new.

    Padding is event 0 of entity 0.
    """
    if not 0 <= index < len(self):
      raise IndexError(f'row {index} of {len(self)}')
    event_R = np.zeros(self.events, np.int64)
    document_R = np.zeros(self.events, np.int32)
    fresh_R = np.zeros(self.events, bool)
    place = 0
    for number, piece in enumerate(self._rows[index], start=1):
      start, stop, fresh = (int(x[piece]) for x in self._pieces)
      there = slice(place, place + stop - start)
      event_R[there] = np.arange(start, stop)
      document_R[there] = number
      fresh_R[there] = event_R[there] >= fresh
      place = there.stop
    return event_R, document_R, fresh_R

  def _hide(self, ids_RC: np.ndarray, hidden_R: np.ndarray) -> np.ndarray:
    """Global ids with MASK for hidden labels."""
    ids_RC = ids_RC.copy()
    hidden = self._first_C[-1] + event_codes.MASK
    ids_RC[:, -1] = np.where(hidden_R, hidden, ids_RC[:, -1])
    return ids_RC


def _of_entities(corpus: Corpus) -> bool:
  """Whether labels differ, but not among the events of one entity."""
  label = corpus.tokenizer.label
  if label is None:
    return False
  id_E = np.asarray(corpus.ids_EC[:, -1])
  known_E = id_E >= label.code.first
  entity_E = np.repeat(
    np.arange(len(corpus.offsets_N1) - 1), np.diff(corpus.offsets_N1)
  )[known_E]
  id_E = id_E[known_E]
  changes = (np.diff(id_E) != 0) & (np.diff(entity_E) == 0)
  repeats = np.diff(entity_E) == 0
  return bool(repeats.any() and len(np.unique(id_E)) > 1 and not changes.any())


def cut(offsets_N1: np.ndarray, room: int, context: int) -> Pieces:
  """Histories in pieces of at most `room` events, each event new in one.

  All but an entity's first piece begin with `context` events of the one
  before, its last with as many as there is room for if `context` is not 0.
  """
  starts, stops, fresh = [], [], []
  for first, last in itertools.pairwise(offsets_N1.tolist()):
    done = first
    while done < last:
      stop = min(done + room - (context if done > first else 0), last)
      begin = done
      if done > first and context:
        begin = max(stop - room, first)
      starts.append(begin)
      stops.append(stop)
      fresh.append(done)
      done = stop
  return Pieces(*(np.array(x, np.int64) for x in (starts, stops, fresh)))


def pack(sizes_N: np.ndarray, room: int) -> list[list[int]]:
  """First-fit decreasing: rows of pieces whose sizes sum to at most `room`."""
  rows: list[list[int]] = []
  open_rows: list[list[int]] = [[] for _ in range(room + 1)]
  for piece in np.argsort(-sizes_N, kind='stable').tolist():
    size = int(sizes_N[piece])
    free = next((r for r in range(size, room + 1) if open_rows[r]), None)
    if free is None:
      rows.append([])
      number, free = len(rows) - 1, room
    else:
      number = open_rows[free].pop()
    rows[number].append(piece)
    if free > size:
      open_rows[free - size].append(number)
  return rows
