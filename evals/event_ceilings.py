"""What is best possible on synthetic events, whose laws are known."""

from typing import Any, NamedTuple

import numpy as np

from evals import card_filter
from evals import rating_filter

# Columns that the filters read as models do; others are in bins.
_CARDS = ('merchant', 'channel', 'city', 'error', 'fraud')
_RATINGS = ('item', 'rating')


class Ceiling(NamedTuple):
  """Exact probabilities of every value of the label, and nats of columns."""

  p_EK: np.ndarray
  nats: dict[str, np.ndarray]


def exact(corpus: Any, events: int, *, revealed: bool) -> Ceiling | None:
  """The exact filter's word on the first events; None where there is none.

  revealed: whether the labels of the past are known. A split by time that
  keeps only a part of its users' events has no ceiling.
  """
  stream = getattr(corpus, 'stream', None)
  if not hasattr(stream, 'drawn') or getattr(corpus, 'path', None) is None:
    return None
  drawn, _ = stream.drawn(corpus.split)
  users, length = drawn[0].shape
  if corpus.num_events != users * length:
    return None
  drawn = type(drawn)(*(x[: -(-events // length)] for x in drawn))
  if hasattr(drawn, 'fraud'):
    found = card_filter.run(stream.world, drawn, revealed=revealed)
    names, all_names = _CARDS, card_filter.COLUMNS
    p_NTK = np.stack([1 - found.fraud_NT, found.fraud_NT], axis=2)
  else:
    found = rating_filter.run(stream.world, drawn, revealed=revealed)
    names, all_names = _RATINGS, rating_filter.COLUMNS
    p_NTK = found.rating_NTR
  nats_EK = found.nats_NTK.reshape(-1, len(all_names))[:events]
  return Ceiling(
    p_NTK.reshape(-1, p_NTK.shape[2])[:events],
    {name: nats_EK[:, all_names.index(name)] for name in names},
  )
