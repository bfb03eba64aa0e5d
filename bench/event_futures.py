"""How like the real ones the events are that a trained model makes up.

python -m bench.event_futures --checkpoint=runs/events_card --events=20

The model goes on with the histories of test entities, whose own last events are
the real ones. Reported: distances of columns, of pairs of columns and of the
course of events; the AUC of trees that tell made-up from real events (0.5: they
cannot); how many rows stand in the training split; for card users the nats of
the events under the laws themselves. For scale, the same of real events of
other test entities in the place of made-up ones. Letters: N entities, H events
of a history, F new ones, C columns, E events.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from absl import flags

from bench import event_features
from bench import event_trees
from configs import command
from configs import restore
from data import card_world
from data import event_codes
from data import event_corpus
from evals import card_filter
from evals import event_futures
from evals import event_metrics
from models import forward

_BATCH = 64
_RECENT = 8
_HOUR = 3600
_ROUNDS = 300


class Continued(NamedTuple):
  """Histories with what followed, and with what the model says may follow.

  Both are corpora of N entities with as many events each, new_E marks the last
  F of every entity.
  """

  real: event_corpus.EventCorpus
  made: event_corpus.EventCorpus
  new_E: np.ndarray


def compare(
  both: Continued, train: event_corpus.EventCorpus
) -> dict[str, float]:
  """All that tells made-up events from real ones, but the laws."""
  names = both.real.tokenizer.names
  real_EC, made_EC = (
    np.asarray(corpus.ids_EC[both.new_E]).astype(np.int64)
    for corpus in (both.real, both.made)
  )
  report = {}
  for c, name in enumerate(names):
    report[f'tv_of_{name}'] = variation(real_EC[:, c], made_EC[:, c])
  report['information_error'] = float(
    np.mean(
      [
        abs(
          information(real_EC[:, c], real_EC[:, d])
          - information(made_EC[:, c], made_EC[:, d])
        )
        for c in range(len(names))
        for d in range(c)
      ]
    )
  )
  for kind, corpus in (('real', both.real), ('made', both.made)):
    for name, value in _course(corpus, both.new_E).items():
      report[f'{name}_{kind}'] = value
  known = {row.tobytes() for row in np.asarray(train.ids_EC).astype(np.int64)}
  for kind, ids_EC in (('real', real_EC), ('made', made_EC)):
    copied = [row.tobytes() in known for row in ids_EC]
    report[f'rows_of_train_{kind}'] = float(np.mean(copied))
  return report | discriminate(both)


def variation(real_E: np.ndarray, made_E: np.ndarray) -> float:
  """Half the sum of the differences of how often each id is there."""
  size = int(max(real_E.max(), made_E.max())) + 1
  p, q = (np.bincount(x, minlength=size) / len(x) for x in (real_E, made_E))
  return float(np.abs(p - q).sum() / 2)


def information(x_E: np.ndarray, y_E: np.ndarray) -> float:
  """Mutual information of two columns in nats, of their counts."""
  joint = np.zeros((int(x_E.max()) + 1, int(y_E.max()) + 1))
  np.add.at(joint, (x_E, y_E), 1.0)
  joint /= len(x_E)
  apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
  there = joint > 0
  return float(np.sum(joint[there] * np.log(joint[there] / apart[there])))


def discriminate(both: Continued) -> dict[str, float]:
  """AUC of trees with lag features, trained on half of the entities."""
  entities = len(both.real)
  length = both.real.num_events // entities
  features = [
    event_features.features(corpus, lags=True)
    for corpus in (both.real, both.made)
  ]
  entity_E = np.repeat(np.arange(entities), length)
  x_EF = np.concatenate([found.x_EF[both.new_E] for found in features])
  is_made_E = np.repeat([0.0, 1.0], both.new_E.sum())
  entity_E = np.tile(entity_E[both.new_E], 2)
  # Two fifths train, one fifth says when to stop, the rest is judged.
  part_E = entity_E % 5
  splits = [
    event_trees.Split(None, is_made_E, chosen_E)
    for chosen_E in (part_E < 2, part_E == 2)
  ]
  found = features[0]._replace(x_EF=x_EF)
  predict = event_trees.boost(found, splits[0], found, splits[1], _ROUNDS)
  judged_E = part_E > 2
  scores = event_metrics.Scores(
    predict(found)[judged_E], is_made_E[judged_E], entity_E[judged_E]
  ).report()
  return {
    f'discriminator_auc{end}': scores[f'auc{end}']
    for end in ('', '_stderr', '_low', '_high')
  }


def exact(both: Continued, stream: Any) -> dict[str, float]:
  """Nats per new event under the laws of card users, where these allow it."""
  report = {}
  for kind, corpus in (('real', both.real), ('made', both.made)):
    events = cards(corpus)
    found = card_filter.run(stream.world, events)
    shape = found.fraud_NT.shape
    new_NT = both.new_E.reshape(shape)
    nats_E = found.nats_NTK.sum(2)[new_NT]
    possible_NT = found.nats_NTK.max(2) < 100
    # The filter takes for granted that only payments online have no city.
    possible_NT &= (events.city < 0) == (events.channel == card_world.ONLINE)
    possible_E = possible_NT[new_NT]
    report[f'impossible_{kind}'] = float(1 - possible_E.mean())
    report[f'exact_nats_{kind}'] = float(nats_E[possible_E].mean())
    sums_N = np.where(possible_E, nats_E, 0).reshape(shape[0], -1).sum(1)
    error = sums_N.std(ddof=1) / math.sqrt(len(sums_N))
    report[f'exact_nats_{kind}_stderr'] = float(error / new_NT[0].sum())
  return report


def cards(corpus: event_corpus.EventCorpus) -> card_world.Cards:
  """Events of equally many per user as the laws' own arrays."""
  names, users = corpus.tokenizer.names, len(corpus)

  def words(name: str) -> np.ndarray:
    c = names.index(name)
    first = corpus.tokenizer.columns[c].code.first
    ids_E = np.asarray(corpus.ids_EC[:, c]).astype(np.int64)
    return np.maximum(ids_E - first, -1).reshape(users, -1)

  amount = corpus.tokenizer.columns[names.index('amount')].code
  value_E = np.asarray(corpus.values_EC[:, names.index('amount')], np.float64)
  dollars_E = amount.scale * np.sinh(value_E * amount.spread + amount.mean)
  hours_NT = np.asarray(corpus.times_E).reshape(users, -1) // _HOUR
  gap_NT = np.diff(hours_NT, axis=1, prepend=hours_NT[:, :1])
  return card_world.Cards(
    gap=np.clip(gap_NT, 0, card_world.MAX_GAP),
    hour=hours_NT % card_world.HOURS,
    merchant=np.maximum(words('merchant'), 0),
    cents=np.maximum(np.rint(100 * dollars_E), 1).astype(np.int64).reshape(
      users, -1
    ),
    channel=np.maximum(words('channel'), 0),
    city=words('city'),
    error=np.maximum(words('error'), 0),
    fraud=np.maximum(words('fraud'), 0),
  )


def go_on(
  run: restore.Run, corpus: event_corpus.EventCorpus, events: int, seed: int
) -> Continued:
  """Leaves the last events of all entities to the model.

  corpus: of entities that have equally many events, more than `events`.
  """
  counts_N = np.diff(corpus.offsets_N1)
  length = int(counts_N.max())
  if counts_N.min() != length or length <= events:
    raise ValueError(
      f'--events={events} must be less than the events of every entity, and'
      f' all must have as many as the longest, {length}.'
    )
  new_E = np.tile(np.arange(length) >= length - events, len(corpus))
  history = dataclasses.replace(
    corpus,
    **{
      name: np.asarray(getattr(corpus, name))[~new_E]
      for name in ('ids_EC', 'values_EC', 'times_E', 'scored_E')
    },
    offsets_N1=np.arange(len(corpus) + 1) * (length - events),
  )
  model, tokenizer = run.config.model, corpus.tokenizer
  rng = np.random.default_rng(seed)
  parts = []
  for first in range(0, len(corpus), _BATCH):
    chosen = np.minimum(first + np.arange(_BATCH), len(corpus) - 1)
    service = event_futures.Service(
      forward.step(model),
      run.params,
      model.init_cache(_BATCH, length * len(tokenizer.columns)),
      tokenizer,
      hidden=True,
    )
    event_futures.read_history(service, history, chosen)
    last_B = history.times_E[history.offsets_N1[chosen + 1] - 1]
    drawn = event_futures.draw(service, tokenizer, last_B, events, rng)
    parts.append([x[: len(corpus) - first] for x in drawn])
  futures = event_futures.Futures(
    *(np.concatenate(x) for x in zip(*parts, strict=True))
  )
  return Continued(corpus, replaced(corpus, new_E, futures), new_E)


def replaced(
  corpus: event_corpus.EventCorpus,
  new_E: np.ndarray,
  futures: event_futures.Futures,
) -> event_corpus.EventCorpus:
  """The corpus with other new events."""
  ids_EC, values_EC, times_E = (
    np.array(x) for x in (corpus.ids_EC, corpus.values_EC, corpus.times_E)
  )
  columns = corpus.tokenizer.columns
  ids_EC[new_E] = futures.ids_BNC.reshape(-1, len(columns))
  times_E[new_E] = futures.times_BN.reshape(-1)
  numbers_EC = futures.numbers_BNC.reshape(-1, len(columns))
  for c, column in enumerate(columns):
    if isinstance(column.code, event_codes.Bins):
      numbers = pa.array(numbers_EC[:, c], from_pandas=True)
      values_EC[new_E, c] = column.code.values(numbers)
  return dataclasses.replace(
    corpus, ids_EC=ids_EC, values_EC=values_EC, times_E=times_E
  )


def _course(
  corpus: event_corpus.EventCorpus, new_E: np.ndarray
) -> dict[str, float]:
  """How gaps and words of an entity go with those before."""
  length = corpus.num_events // len(corpus)
  new_NT = new_E.reshape(-1, length)
  times_NT = np.asarray(corpus.times_E).reshape(-1, length)
  gap_NT = np.log1p(np.diff(times_NT, axis=1, prepend=times_NT[:, :1]))
  both_NT = new_NT[:, 1:]
  found = {
    'gap_autocorrelation': float(
      np.corrcoef(gap_NT[:, 1:][both_NT], gap_NT[:, :-1][both_NT])[0, 1]
    )
  }
  for c, column in enumerate(corpus.tokenizer.columns):
    if column.kind not in ('category', 'id'):
      continue
    ids_NT = np.asarray(corpus.ids_EC[:, c]).reshape(-1, length)
    again_NT = np.zeros(ids_NT.shape, bool)
    for ago in range(1, min(_RECENT, length - 1) + 1):
      again_NT[:, ago:] |= ids_NT[:, ago:] == ids_NT[:, :-ago]
    found[f'repeats_of_{column.name}'] = float(again_NT[new_NT].mean())
  return found


def main(_: Sequence[str]) -> None:
  command.quiet()
  with command.explained('bench.event_futures'):
    if not _CHECKPOINT.value:
      raise ValueError('--checkpoint is missing; name a run directory.')
    run = restore.restore(_CHECKPOINT.value)
    data = run.config.data
    test, train = data.open('test'), data.open('train')
    count = min(_ENTITIES.value, len(test) // 2)
    both = go_on(
      run, event_features.part(test, 0, count), _EVENTS.value, _SEED.value
    )
    others = event_features.part(test, count, 2 * count)
    reports = {}
    for name, made in (('made up', both.made), ('other users', others)):
      pair = both._replace(made=made)
      reports[name] = compare(pair, train)
      if hasattr(data, 'fresh_cards'):
        reports[name] |= exact(pair, data)
    print(table(reports))


def table(reports: dict[str, dict[str, float]]) -> str:
  """Reports side by side as Markdown."""
  lines = [f'| | {" | ".join(reports)} |', '|---' * (len(reports) + 1) + '|']
  for name in next(iter(reports.values())):
    cells = [f'{report[name]:.4f}' for report in reports.values()]
    lines.append(f'| {name} | {" | ".join(cells)} |')
  return '\n'.join(lines)


if __name__ == '__main__':
  _CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'Run directory.')
  _ENTITIES = flags.DEFINE_integer('entities', 500, 'Of the test split.')
  _EVENTS = flags.DEFINE_integer('events', 20, 'Made up for each.')
  _SEED = flags.DEFINE_integer('seed', 0, 'Of the draws.')
  command.run(main)
