"""What a practitioner gives to trees: the row, and its past in numbers.

Every lag feature of an event is made of strictly earlier events of its entity.
Letters: E events, C columns, F features.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data import event_codes
from data import event_corpus

LAGS = (1, 2, 3, 5, 8)
WINDOWS = (3, 5, 10, 20)
_HOUR = 3600
_SPANS = {'1h': _HOUR, '24h': 24 * _HOUR, '7d': 168 * _HOUR}
# Entities whose features are made at a time, which bounds the memory.
_ENTITIES = 1000


class Features(NamedTuple):
  """x_EF (float32, NaN where there is no value), names and which are codes."""

  x_EF: np.ndarray
  names: tuple[str, ...]
  is_code_F: np.ndarray


class _Past:
  """Earlier events of the same entity, for all events at once."""

  def __init__(self, offsets_N1: np.ndarray) -> None:
    counts_N = np.diff(offsets_N1)
    self.first_E = np.repeat(offsets_N1[:-1], counts_N)
    self.entity_E = np.repeat(np.arange(len(counts_N)), counts_N)
    self.place_E = np.arange(offsets_N1[-1])
    self.index_E = self.place_E - self.first_E

  def shift(self, x_E: np.ndarray, ago: int) -> np.ndarray:
    """The value of so many events ago, NaN where there was none."""
    shifted_E = np.full(len(x_E), np.nan)
    shifted_E[ago:] = x_E[:-ago] if ago else x_E
    shifted_E[self.index_E < ago] = np.nan
    return shifted_E

  def total(self, x_E: np.ndarray, window: int | None = None) -> np.ndarray:
    """Sum over the last events before this one; all of them by default."""
    sums_E = np.concatenate([[0.0], np.cumsum(x_E)])
    begin_E = self.first_E
    if window is not None:
      begin_E = np.maximum(self.place_E - window, begin_E)
    return sums_E[self.place_E] - sums_E[begin_E]

  def mean_and_spread(
    self, x_E: np.ndarray, window: int | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Of the values that are there."""
    there_E = ~np.isnan(x_E)
    known_E = np.where(there_E, x_E, 0.0)
    count_E = self.total(there_E, window)
    with np.errstate(divide='ignore', invalid='ignore'):
      mean_E = self.total(known_E, window) / count_E
      square_E = self.total(known_E**2, window) / count_E
    return mean_E, np.sqrt(np.maximum(square_E - mean_E**2, 0))

  def recently(self, times_E: np.ndarray, span: int) -> np.ndarray:
    """How many earlier events lie within so many seconds."""
    period = times_E.max() - times_E.min() + span + 1
    key_E = self.entity_E * period + times_E - times_E.min()
    return self.place_E - np.maximum(
      np.searchsorted(key_E, key_E - span), self.first_E
    )

  def same(self, code_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of the last event of the same code (-1: none); their count."""
    order_E = np.lexsort((self.place_E, code_E, self.entity_E))
    code_O, entity_O = code_E[order_E], self.entity_E[order_E]
    again_O = np.zeros(len(order_E), bool)
    again_O[1:] = (code_O[1:] == code_O[:-1]) & (entity_O[1:] == entity_O[:-1])
    last_E = np.full(len(order_E), -1)
    last_E[order_E[1:]] = np.where(again_O[1:], order_E[:-1], -1)
    place_O = np.arange(len(order_E))
    start_O = np.maximum.accumulate(np.where(again_O, 0, place_O))
    count_E = np.empty(len(order_E), np.int64)
    count_E[order_E] = place_O - start_O
    return last_E, count_E


def features(
  corpus: event_corpus.EventCorpus,
  *,
  lags: bool,
  label_E: np.ndarray | None = None,
) -> Features:
  """Features of every event.

  lags: what came before, too. label_E: labels whose past is to be seen.
  """
  offsets_N1 = np.asarray(corpus.offsets_N1)
  x_EF = None
  for first in range(0, len(corpus), _ENTITIES):
    last = min(first + _ENTITIES, len(corpus))
    there = slice(int(offsets_N1[first]), int(offsets_N1[last]))
    shown_E = None if label_E is None else label_E[there]
    made, codes = _make(part(corpus, first, last), lags, shown_E)
    if x_EF is None:
      x_EF = np.empty((corpus.num_events, len(made)), np.float32)
    x_EF[there] = np.stack(list(made.values()), 1)
  return Features(x_EF, tuple(made), np.isin(tuple(made), codes))


def part(
  corpus: event_corpus.EventCorpus, first: int, last: int
) -> event_corpus.EventCorpus:
  """Entities first ... last - 1 of a corpus."""
  offsets_N1 = np.asarray(corpus.offsets_N1)[first : last + 1]
  there = slice(int(offsets_N1[0]), int(offsets_N1[-1]))
  return dataclasses.replace(
    corpus,
    offsets_N1=offsets_N1 - offsets_N1[0],
    **{
      name: getattr(corpus, name)[there]
      for name in ('ids_EC', 'values_EC', 'times_E', 'scored_E')
    },
  )


def _make(
  corpus: event_corpus.EventCorpus, lags: bool, label_E: np.ndarray | None
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Features by name, and the names of codes."""
  made: dict[str, np.ndarray] = {}
  codes = []
  past = _Past(np.asarray(corpus.offsets_N1))
  times_E = np.asarray(corpus.times_E)
  since_E = np.log1p(times_E - past.shift(times_E, 1))
  numbers: dict[str, np.ndarray] = {}
  words: dict[str, np.ndarray] = {}
  for index, column in enumerate(corpus.tokenizer.columns):
    if column.kind == 'label':
      continue
    if isinstance(column.code, event_codes.Bins):
      numbers[column.name] = corpus.values_EC[:, index].astype(float)
    else:
      words[column.name] = np.asarray(corpus.ids_EC[:, index]).astype(int)
      codes.append(column.name)
  made |= numbers | words
  if lags:
    _add_lags(made, past, numbers, words)
    for name, span in _SPANS.items():
      made[f'events in {name}'] = past.recently(times_E, span)
    for window in WINDOWS:
      gaps_E = np.nan_to_num(times_E - past.shift(times_E, 1))
      made[f'seconds of {window}'] = np.log1p(past.total(gaps_E, window))
    made['index'] = past.index_E
    made['since'] = since_E
    for name, code_E in words.items():
      _add_same(made, past, name, code_E, numbers, times_E)
  if lags and label_E is not None:
    _add_labels(made, past, label_E, times_E)
  return made, codes


def labels(
  corpus: event_corpus.EventCorpus, positive: Sequence[str] = ()
) -> np.ndarray:
  """1 for the positive values of the label, 0 for others, NaN for missing.

  positive: by default the last value in the order of the tokenizer.
  """
  column = corpus.tokenizer.label
  if column is None:
    raise ValueError('The data has no label; name one in the schema.')
  words = column.code.words
  members_K = np.isin(words, positive or words[-1:])
  class_E = np.asarray(corpus.ids_EC[:, -1]).astype(int) - column.code.first
  return np.where(class_E < 0, np.nan, members_K[np.maximum(class_E, 0)])


def score_features(
  score_E: np.ndarray, offsets_N1: np.ndarray
) -> dict[str, np.ndarray]:
  """The past of a model's own log-odds: lags, moving averages, the highest."""
  past = _Past(np.asarray(offsets_N1))
  logit_E = np.log(score_E + 1e-7) - np.log1p(1e-7 - score_E)
  made = {'score': logit_E}
  for ago in LAGS:
    made[f'score {ago} ago'] = past.shift(logit_E, ago)
  for window in WINDOWS:
    made[f'mean score of {window}'], _ = past.mean_and_spread(logit_E, window)
  for rate in (0.3, 0.1):
    made[f'smooth score {rate}'] = _smooth(score_E, past.index_E, rate)
  made['highest score'] = _highest(logit_E, past.index_E)
  return made


def _add_lags(
  made: dict[str, np.ndarray],
  past: _Past,
  numbers: dict[str, np.ndarray],
  words: dict[str, np.ndarray],
) -> None:
  for name, x_E in (numbers | words).items():
    for ago in LAGS:
      made[f'{name} {ago} ago'] = past.shift(x_E.astype(float), ago)
  for name, x_E in numbers.items():
    for window in (*WINDOWS, None):
      mean_E, spread_E = past.mean_and_spread(x_E, window)
      extent = window or 'all'
      made[f'{name} mean of {extent}'] = mean_E
      made[f'{name} spread of {extent}'] = spread_E
    made[f'{name} above mean'] = x_E - made[f'{name} mean of all']


def _add_same(
  made: dict[str, np.ndarray],
  past: _Past,
  name: str,
  code_E: np.ndarray,
  numbers: dict[str, np.ndarray],
  times_E: np.ndarray,
) -> None:
  """What is known of earlier events of the same word."""
  last_E, count_E = past.same(code_E)
  none_E = last_E < 0
  made[f'{name} count'] = count_E
  made[f'{name} share'] = count_E / np.maximum(past.index_E, 1)
  last_E = np.where(none_E, past.place_E, last_E)
  made[f'{name} rows since'] = np.where(none_E, np.nan, past.place_E - last_E)
  since_E = np.log1p(times_E - times_E[last_E])
  made[f'{name} seconds since'] = np.where(none_E, np.nan, since_E)
  for number, x_E in numbers.items():
    change_E = x_E - x_E[last_E]
    made[f'{number} change at {name}'] = np.where(none_E, np.nan, change_E)


def _add_labels(
  made: dict[str, np.ndarray],
  past: _Past,
  label_E: np.ndarray,
  times_E: np.ndarray,
) -> None:
  for ago in LAGS:
    made[f'label {ago} ago'] = past.shift(label_E, ago)
  known_E = np.nan_to_num(label_E)
  for window in (*WINDOWS, None):
    made[f'labels of {window or "all"}'] = past.total(known_E, window)
  place_E = np.where(known_E > 0, past.place_E, -1)
  # The last positive before each event, if it is of the same entity.
  last_E = np.concatenate([[-1], np.maximum.accumulate(place_E)[:-1]])
  none_E = last_E < past.first_E
  last_E = np.where(none_E, past.place_E, last_E)
  made['rows since label'] = np.where(none_E, np.nan, past.place_E - last_E)
  since_E = np.log1p(times_E - times_E[last_E])
  made['seconds since label'] = np.where(none_E, np.nan, since_E)


def _smooth(x_E: np.ndarray, index_E: np.ndarray, rate: float) -> np.ndarray:
  """Exponential average of earlier values, 0 before the first event."""
  order_E = np.argsort(index_E, kind='stable')
  bounds = np.searchsorted(index_E[order_E], np.arange(index_E.max() + 2))
  result_E = np.zeros(len(x_E))
  # Event t of all entities at once; the one before is in the place before.
  for start, stop in itertools.pairwise(bounds[1:]):
    now_A = order_E[start:stop]
    before_A = now_A - 1
    result_E[now_A] = (1 - rate) * result_E[before_A] + rate * x_E[before_A]
  return result_E


def _highest(x_E: np.ndarray, index_E: np.ndarray) -> np.ndarray:
  """The highest of the earlier values, NaN before the first event."""
  order_E = np.argsort(index_E, kind='stable')
  bounds = np.searchsorted(index_E[order_E], np.arange(index_E.max() + 2))
  result_E = np.full(len(x_E), np.nan)
  for start, stop in itertools.pairwise(bounds[1:]):
    now_A = order_E[start:stop]
    result_E[now_A] = np.fmax(result_E[now_A - 1], x_E[now_A - 1])
  return result_E
