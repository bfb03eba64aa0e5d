"""A small corpus of events in memory, for tests of what reads one."""

import numpy as np

from data import event_codes
from data import event_corpus
from data import event_tokens

BINS = event_codes.Bins(
  edges=(1.0, 2.0, 4.0),
  samples=((1.0, 1.5), (2.0, 3.0)),
  scale=1.0,
  mean=0.0,
  spread=1.0,
)
TOKENIZER = event_tokens.Tokenizer(
  'user',
  'time',
  (
    event_tokens.Column('place', 'category', event_codes.Words(('a', 'b'))),
    event_tokens.Column('amount', 'number', BINS),
    event_tokens.Column(
      'fraud', 'label', event_codes.Words(('no', 'yes'), masked=True)
    ),
  ),
  fitted_on='',
)
COLUMNS = len(TOKENIZER.columns)


def draw(sizes, seed=0, unlabelled=0.0):
  """Random events of entities of so many events each."""
  rng = np.random.default_rng(seed)
  events = sum(sizes)
  ids_EC = rng.integers(0, TOKENIZER.sizes_C, (events, COLUMNS))
  ids_EC[:, -1] = rng.integers(3, 5, events)
  ids_EC[rng.random(events) < unlabelled, -1] = event_codes.NULL
  values_EC = np.full((events, COLUMNS), np.nan, np.float32)
  values_EC[:, 1] = rng.normal(size=events)
  return event_corpus.EventCorpus(
    TOKENIZER,
    'train',
    ids_EC.astype(np.uint16),
    values_EC,
    np.cumsum([0, *sizes]),
    np.arange(events),
    rng.random(events) < 0.9,
  )
