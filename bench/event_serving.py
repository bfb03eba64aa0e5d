"""What an event costs: in training, in scoring, and in service.

Beside it gradient-boosted trees with lag features on the same events. In
service, events come one by one, early and late in a history.

python -m bench.event_serving
python -m bench.event_serving --checkpoint=runs/events_card
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from bench import event_features
from bench import event_trees
from bench import timing
from configs import base
from configs import command
from configs import events_card
from configs import fitting
from configs import restore
from data import event_corpus
from data import event_source
from evals import event_futures
from evals import event_scores
from models import forward
from training import host
from training import step as step_lib

_TRAINED = ('train', 'validation')
# About as many as early stopping leaves, of so many entities.
_TREES, _TAUGHT = 300, 1000
# Events of a history after which the next one is timed, and the last of all.
_STOPS = (10, 100, 1000)


class Served(NamedTuple):
  """A config, parameters, and events of many entities."""

  config: base.Config
  params: object
  corpus: event_corpus.EventCorpus


def main(_: Sequence[str]) -> None:
  command.quiet()
  host.keep_memory()
  with command.explained('bench.event_serving'):
    served, rounds = _load(), _ROUNDS.value
    rate = _rate(*training(served, rounds))
    print(f'training, batches of {served.config.batch_size} rows: {rate}')
    seconds, events = scoring(served, _SCORED.value, rounds)
    for name, values in seconds.items():
      print(f'{name}: {_rate(values, events)}')
    if 'predict' in seconds:
      pairs = zip(seconds['lag features'], seconds['predict'], strict=True)
      ratio = timing.ratio([sum(pair) for pair in pairs], seconds['scoring'])
      print(f'speed of scoring over that of trees with their features: {ratio}')
    entities = _ENTITIES.value
    found = streaming(served, entities, _LAST.value, rounds)
    print('| events before | us per event | of the first |\n|---|---|---|')
    first = next(iter(found.values()))
    for before, values in found.items():
      cost = timing.spread([1e6 * x / entities for x in values])
      print(f'| {before} | {cost} | {timing.ratio(values, first)} |')


def _rate(seconds: Sequence[float], events: int) -> str:
  rate = timing.spread([events / x for x in seconds])
  return f'{rate.median:.0f} ({rate.low:.0f}-{rate.high:.0f}) events/s'


def training(served: Served, rounds: int) -> tuple[list[float], int]:
  """Seconds of a step on a batch that is ready, and events of the batch."""
  config = served.config
  optimizer = config.optimizer.build(config.steps)
  step = jax.jit(
    functools.partial(
      step_lib.train_step,
      objective=config.objective,
      apply=forward.counted(config.model),
      optimizer=optimizer,
      accumulate=config.accumulate,
    ),
    donate_argnames=('state',),
    compiler_options=host.compiler_options(),
  )
  # Donated, while the others are still needed.
  params = jax.tree.map(jnp.copy, served.params)
  state = step_lib.create(params, optimizer, jax.random.key(0))
  rows = config.rows(config.data.open('train'), config.row_length)
  rng = np.random.default_rng(0)
  chosen = [rows.vary(rows[i], rng) for i in range(config.batch_size)]
  batch = {
    name: jnp.asarray(np.stack([row[name] for row in chosen]))
    for name in chosen[0]
  }

  def run() -> None:
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready((state.params, metrics))

  seconds = timing.interleaved({'step': run}, rounds)['step']
  cells = int((batch['documents'] > 0).sum())
  return seconds, cells // len(served.corpus.tokenizer.columns)


def scoring(
  served: Served, entities: int, rounds: int
) -> tuple[dict[str, list[float]], int]:
  """Seconds to score whole histories of some entities, and their events.

  Of trees to make lag features, and to predict from them; both without labels.
  """
  part = event_features.part(
    served.corpus, 0, min(entities, len(served.corpus))
  )
  evaluator = event_scores.EventScores()
  apply = forward.pure(served.config.model)
  candidates: dict[str, timing.Run] = {
    'scoring': lambda: evaluator.score(
      apply, served.params, part, entities=len(part)
    )
  }
  if part.tokenizer.label is not None:
    corpora = [served.config.data.open(split) for split in _TRAINED]
    train, validation = (
      event_trees.Split.of(
        event_features.part(corpus, 0, min(_TAUGHT, len(corpus)))
      )
      for corpus in corpora
    )
    # All of them, of which speed depends.
    model = event_trees.Trees(rounds=_TREES, patience=_TREES).boosted(
      train, validation, revealed=False
    )
    features = event_features.features(part, lags=True)
    candidates['lag features'] = lambda: event_features.features(
      part, lags=True
    )
    candidates['predict'] = lambda: model(features)
  return timing.interleaved(candidates, rounds), part.num_events


def streaming(
  served: Served, entities: int, last: int, rounds: int
) -> dict[int, list[float]]:
  """Seconds to read an event of every entity, by events before it."""
  corpus, model = served.corpus, served.config.model
  tokenizer = corpus.tokenizer
  # Read ten, then a hundred at a time.
  length = (last + 100) * len(tokenizer.columns)
  service = event_futures.Service(
    forward.step(model),
    served.params,
    model.init_cache(entities, length),
    tokenizer,
    hidden=True,
  )
  caches, read = {}, 0
  per_entity = corpus.num_events // len(corpus)
  for stop in sorted({last, *(stop for stop in _STOPS if stop < last)}):
    while read < stop:
      size = 10 if read < 100 else 100
      service.read(*_events(corpus, entities, read, size, per_entity))
      read += size
    caches[read] = service.cache

  def reading(before: int) -> timing.Run:
    event = _events(corpus, entities, before, 1, per_entity)

    def run() -> None:
      service.cache = caches[before]
      service.read(*event)
      jax.block_until_ready(service.cache)

    return run

  return timing.interleaved(
    {before: reading(before) for before in caches}, rounds
  )


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
    return Served(run.config, run.params, run.config.data.open('test'))
  config = events_card.get_config()
  stream = event_source.CardStream(users=1000)
  config = dataclasses.replace(config, data=stream)
  config = fitting.with_codec(config, None)
  ids_BT = np.zeros((1, 8), np.int32)
  params = config.model.init(jax.random.key(0), ids_BT)['params']
  return Served(config, params, stream.open('test'))


if __name__ == '__main__':
  _CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'Run directory; an untrained configs/events_card.py if'
    ' not given.',
  )  # fmt: skip
  _ENTITIES = flags.DEFINE_integer('entities', 64, 'In service at a time.')
  _SCORED = flags.DEFINE_integer('scored', 200, 'Entities to score, at most.')
  _LAST = flags.DEFINE_integer('last', 10_000, 'Events of the longest history.')
  _ROUNDS = flags.DEFINE_integer('rounds', 7, 'Of interleaved timings.')
  command.run(main)
