"""What an event costs once a model is in service, early and late in a history.

Beside it, gradient-boosted trees with lag features on the same events.

python -m bench.event_serving
python -m bench.event_serving --checkpoint=runs/events_card
"""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from bench import event_trees
from configs import command
from configs import events_card
from configs import fitting
from configs import restore
from data import event_corpus
from data import event_source
from evals import event_futures
from evals import event_scores
from models import event_lm
from models import forward
from training import host

_TIMED = 30
_TRAINED = ('train', 'validation')
# About as many as early stopping leaves.
_ROUNDS = 300


class Served(NamedTuple):
  """A model, its parameters, and events of many entities."""

  model: event_lm.EventLM
  params: object
  corpus: event_corpus.EventCorpus


def main(_: Sequence[str]) -> None:
  command.quiet()
  host.keep_memory()
  with command.explained('bench.event_serving'):
    served = _load()
    rate = scoring(served)
    print(f'scoring, whole histories in rows: {rate:.0f} events/s')
    if served.corpus.tokenizer.label is not None:
      features, predict = trees(served)
      print(
        f'trees: lag features {features:.0f} events/s, predict {predict:.0f}'
        f' events/s, both {1 / (1 / features + 1 / predict):.0f} events/s'
      )
    entities = _ENTITIES.value
    for before, seconds in streaming(served, entities, _LAST.value):
      print(
        f'streaming, {entities} entities at event {before}:'
        f' {1e6 * seconds / entities:.1f} us per event'
      )


def scoring(served: Served) -> float:
  """Events per second of full-history scoring, after compilation."""
  evaluator = event_scores.EventScores()
  apply, corpus = forward.pure(served.model), served.corpus
  evaluator.score(apply, served.params, corpus, entities=8)
  began = time.monotonic()
  evaluator.score(apply, served.params, corpus, entities=len(corpus))
  return corpus.num_events / (time.monotonic() - began)


def trees(served: Served) -> tuple[float, float]:
  """Events per second of making lag features, and of predicting from them."""
  stream = served.corpus.stream
  train, validation = (
    event_trees.Split.of(stream.open(split)) for split in _TRAINED
  )
  test = event_trees.Split.of(served.corpus)
  found = [x.features(lags=True, revealed=False) for x in (train, validation)]
  model = event_trees.boost(found[0], train, found[1], validation, _ROUNDS)
  began = time.monotonic()
  features = test.features(lags=True, revealed=False)
  made = time.monotonic()
  model(features)
  events = served.corpus.num_events
  return events / (made - began), events / (time.monotonic() - made)


def streaming(
  served: Served, entities: int, last: int
) -> list[tuple[int, float]]:
  """Median seconds to read an event of every entity, by events before it."""
  corpus = served.corpus
  tokenizer = corpus.tokenizer
  length = (last + _TIMED) * len(tokenizer.columns)
  service = event_futures.Service(
    forward.step(served.model),
    served.params,
    served.model.init_cache(entities, length),
    tokenizer,
    hidden=True,
  )
  found, read = [], 0
  per_entity = corpus.num_events // len(corpus)
  for stop in (10, 100, last):
    while read < stop:
      size = 10 if read < 100 else 100
      service.read(*_events(corpus, entities, read, size, per_entity))
      read += size
    seconds = []
    for _ in range(_TIMED):
      event = _events(corpus, entities, read, 1, per_entity)
      began = time.monotonic()
      service.read(*event)
      jax.block_until_ready(service.cache)
      seconds.append(time.monotonic() - began)
    found.append((read, statistics.median(seconds)))
  return found


def _events(
  corpus: event_corpus.EventCorpus,
  entities: int,
  first: int,
  count: int,
  per_entity: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Ids and numbers of some events of each entity, which begin anew."""
  place_R = (first + np.arange(count)) % per_entity
  event_BR = per_entity * np.arange(entities)[:, None] + place_R[None]
  return corpus.ids_EC[event_BR], corpus.values_EC[event_BR]


def _load() -> Served:
  if _CHECKPOINT.value:
    run = restore.restore(_CHECKPOINT.value)
    return Served(run.config.model, run.params, run.config.data.open('test'))
  config = events_card.get_config()
  stream = event_source.CardStream(users=1000)
  config = dataclasses.replace(config, data=stream)
  config = fitting.with_codec(config, None)
  ids_BT = np.zeros((1, 8), np.int32)
  params = config.model.init(jax.random.key(0), ids_BT)['params']
  return Served(config.model, params, stream.open('test'))


if __name__ == '__main__':
  _CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'Run directory; an untrained configs/events_card.py if'
    ' not given.',
  )  # fmt: skip
  _ENTITIES = flags.DEFINE_integer('entities', 64, 'In service at a time.')
  _LAST = flags.DEFINE_integer('last', 10_000, 'Events of the longest history.')
  command.run(main)
