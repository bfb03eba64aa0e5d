"""Training rows that never repeat: users of a stream beyond all its splits."""

import dataclasses
import functools
import threading
from typing import Any

import numpy as np

from data import event_batches

# Users drawn at a time, as the stream draws them.
_BLOCK = 512
_LENGTH = 2**31


@dataclasses.dataclass(frozen=True)
class FreshRows(event_batches.EventRows):
  """As EventRows, of new users every time; for a data.event_source.CardStream.

  The train split itself only fits the tokenizer.
  """

  def __call__(
    self, corpus: event_batches.Corpus, row_length: int, stored: Any = None
  ) -> 'Endless':
    """Rows without end; ValueError for data that has an end."""
    del stored
    stream = getattr(corpus, 'stream', None)
    if not hasattr(stream, 'fresh'):
      raise ValueError(
        'rows=FreshRows() needs data=event_source.CardStream(), which draws as'
        ' many users as are asked for; use EventRows() for files.'
      )
    return Endless(stream, row_length, self)


class Endless:
  """Row i of an endless row of users, as event_batches.Rows gives them."""

  # New users are in no order.
  shuffled = False

  def __init__(
    self, stream: Any, row_length: int, how: event_batches.EventRows
  ) -> None:
    self._stream, self._row_length, self._how = stream, row_length, how
    self._lock = threading.Lock()
    self._made = functools.lru_cache(maxsize=4)(self._make)
    first = self._block(0)
    # Of every block: all users have as many events.
    self._rows = len(first)
    self.vary = first.vary

  def __len__(self) -> int:
    return _LENGTH

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    block, row = divmod(index, self._rows)
    return self._block(block)[row]

  def _block(self, block: int) -> event_batches.Rows:
    with self._lock:  # Threads that need the same block wait for it.
      return self._made(block)

  def _make(self, block: int) -> event_batches.Rows:
    corpus = self._stream.fresh(block * _BLOCK, _BLOCK)
    return event_batches.Rows(corpus, self._row_length, self._how)
