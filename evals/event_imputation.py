"""How well each column is foreseen from the past and the rest of its event."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from data import card_world
from evals import card_filter
from evals import event_scores

# Columns of cards by what the filter calls them.
_CARDS = {'time:gap': 'gap'} | {name: name for name in card_world.COLUMNS}


@dataclasses.dataclass(frozen=True)
class EventImputation:
  """Nats of each column that is read after all others of its event.

  For models of shuffled columns; labels are hidden, and stay last. Of card
  users also the excess over the exact posterior, `regret`: what a query in one
  pass loses, not what the model lacks, since probabilities of the whole event
  with every value in turn, divided by their sum, say it, too
  (bench.event_gaps).

  entities: at most so many are scored; window, context: events.
  """

  entities: int = 100
  window: int = 128
  context: int = 96

  def run(
    self,
    apply: Callable[..., jax.Array],
    params: Any,
    corpus: Any,
    *,
    max_bytes: int | None = None,
  ) -> dict[str, float]:
    """Of every column but the label and what follows from the time.

    max_bytes: of a part of a corpus nothing is scored, since it takes a
    forward pass for every column.
    """
    if max_bytes is not None:
      return {}
    scores = event_scores.EventScores(window=self.window, context=self.context)
    count = min(self.entities, len(corpus))
    columns, report = corpus.tokenizer.columns, {}
    for c, column in enumerate(columns):
      if column.kind in ('hour', 'weekday', 'label'):
        continue
      order = sorted(
        range(len(columns)), key=lambda i: (columns[i].kind == 'label', i == c)
      )
      found = scores.score(
        apply, params, corpus, entities=count, rank_C=np.argsort(order)
      )
      nats_E = found.nats_EC[:, c].astype(np.float64)
      best_E = exact(corpus, c, len(nats_E))
      for name, x_E in (
        ('nats', nats_E),
        ('regret', None if best_E is None else nats_E - best_E),
      ):
        if x_E is not None:
          name = f'impute/{name}_of_{column.name}'
          report |= event_scores.mean(name, corpus, x_E)
    return report


def exact(corpus: Any, c: int, events: int) -> np.ndarray | None:
  """Nats of what column c is by the exact posterior, for the first events.

  None where nothing is known; NaN for the gap of a first event.
  """
  column = corpus.tokenizer.columns[c]
  stream, name = getattr(corpus, 'stream', None), _CARDS.get(column.name)
  in_memory = getattr(corpus, 'path', None) is None
  if not hasattr(stream, 'cards') or name is None or in_memory:
    return None
  cards, _ = stream.cards(corpus.split)
  users, length = cards.gap.shape
  if corpus.num_events != users * length:
    return None
  cards = type(cards)(*(x[: -(-events // length)] for x in cards))
  edges_V1 = None
  if name == 'amount':
    cents = np.ceil(100 * np.array(column.code.edges[1:-1]) - 1e-6)
    edges_V1 = np.concatenate([[1.0], cents, [np.inf]])
  p_NTV = card_filter.impute(stream.world, cards, name, edges_V1=edges_V1)
  same_NTV = _same(cards, name, column, edges_V1, p_NTV.shape)
  p_NT = np.sum(p_NTV * same_NTV, axis=2)
  if name == 'gap':
    p_NT[:, 0] = np.nan
  return -np.log(np.maximum(p_NT, 1e-300)).reshape(-1)[:events]


def _same(
  cards: card_world.Cards,
  name: str,
  column: Any,
  edges_V1: np.ndarray | None,
  shape: tuple[int, ...],
) -> np.ndarray:
  """Which of the filter's values are what the model says: bool [N, T, V]."""
  values_V = np.arange(shape[2])
  if name == 'amount':
    truth_NT = np.searchsorted(edges_V1, cards.cents, side='right') - 1
  elif name == 'gap':
    seconds = pa.array(3600.0 * values_V)
    bins_V = column.code.encode(seconds, np.zeros(0, int))
    return bins_V[None, None] == bins_V[cards.gap][..., None]
  else:
    truth_NT = getattr(cards, name).astype(int)
    if name == 'city':
      truth_NT = np.where(truth_NT < 0, shape[2] - 1, truth_NT)
  return truth_NT[..., None] == values_V

