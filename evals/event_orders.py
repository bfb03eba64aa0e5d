"""Whether a model says the same of an event in whatever order it is read."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from evals import event_scores


@dataclasses.dataclass(frozen=True)
class EventOrders:
  """Differences between orders of columns, for models of shuffled ones.

  The probability of an event is the product of those of its cells, in any
  order; a model that is consistent gives every order the same one. Labels are
  hidden and stay last. What follows from the time stays behind the gap, whose
  exact number says it: the model reads that number, but its bin is scored, so
  that even the exact law gives a row with the hour first another probability.

  orders: drawn ones, all others than the columns' own.
  entities: at most so many are scored; window, context: events.
  """

  orders: int = 2
  entities: int = 100
  window: int = 128
  context: int = 96
  seed: int = 0

  def run(
    self,
    apply: Callable[..., jax.Array],
    params: Any,
    corpus: Any,
    *,
    max_bytes: int | None = None,
  ) -> dict[str, float]:
    """How far apart the orders are.

    max_bytes: of a part of a corpus nothing is scored, since it takes a
    forward pass for every order.

    Returns orders/nats_per_event of the own order and orders/excess of drawn
    ones; orders/difference, the mean distance of an event's nats in a drawn
    order from those in its own, over the mean nats; of a label the mean
    distance of the probability of its last value, orders/label_difference,
    and that over the mean probability, orders/label_share.
    """
    tokenizer, rng = corpus.tokenizer, np.random.default_rng(self.seed)
    free = len(tokenizer.columns) - (tokenizer.label is not None)
    kinds = np.array([column.kind for column in tokenizer.columns])
    (time_T,) = np.nonzero(np.isin(kinds, ('gap', 'hour', 'weekday')))
    if max_bytes is not None or free < 2 or free == len(time_T):
      return {}
    scores = event_scores.EventScores(window=self.window, context=self.context)
    count = min(self.entities, len(corpus))
    columns, found = len(tokenizer.columns), []
    for number in range(self.orders + 1):
      rank_C = np.arange(columns)
      while number and (np.diff(rank_C) == 1).all():
        rank_C[:free] = rng.permutation(free)
        rank_C[time_T] = np.sort(rank_C[time_T])
      found.append(
        scores.score(apply, params, corpus, entities=count, rank_C=rank_C)
      )
    nats_OE = np.stack([np.nansum(f.nats_EC, 1, float) for f in found])
    scored_E = np.isfinite(found[0].nats_EC).any(1)
    nats_OE = nats_OE[:, scored_E]
    mean = nats_OE[0].mean()
    distance = float(np.abs(nats_OE[1:] - nats_OE[0]).mean())
    report = {
      'orders/nats_per_event': float(mean),
      'orders/excess': float(nats_OE[1:].mean() - mean),
      'orders/difference': distance / float(mean),
    }
    if tokenizer.label is not None:
      values = len(tokenizer.label.code.words)
      last_K = np.arange(values) == values - 1
      p_OE = np.stack(
        [event_scores.consolidate(f.log_p_EK[scored_E], last_K) for f in found]
      )
      distance = float(np.abs(p_OE[1:] - p_OE[0]).mean())
      report['orders/label_difference'] = distance
      report['orders/label_share'] = distance / float(p_OE[0].mean())
    return report
