"""A trained model of events at work on a file of them.

python -m evals.events predict --checkpoint=DIR --input=FILE --out=FILE
python -m evals.events impute --checkpoint=DIR --input=FILE --out=FILE \\
  --columns=city,amount
python -m evals.events generate --checkpoint=DIR --input=FILE --out=FILE \\
  --events=20
python -m evals.events score --checkpoint=DIR --out=FILE.npy

Files are CSV or Parquet, by the end of their name, in the layout that the
model was trained on; what is written has their columns, of CSV as they were
spelled. `predict` adds the probability of every value of the label to each
event, `impute` fills cells that are empty, `generate` writes the events that
may follow those of every entity. `score` writes the probability that the label
is positive, of every event that eval.py scores, for bench.event_peers.
"""

import csv
import dataclasses
import functools
import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from absl import flags

from configs import command
from configs import restore
from data import event_batches
from data import event_codes
from data import event_corpus
from data import event_reader
from data import event_rows
from data import event_schema
from data import event_written
from data import text
from evals import event_filling
from evals import event_futures
from evals import event_scores
from models import event_lm
from models import forward

_TASKS = ('predict', 'impute', 'generate', 'score')
_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'Run directory.')
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint step; default newest.')
_INPUT = flags.DEFINE_string('input', None, 'File of events.')
_OUT = flags.DEFINE_string('out', None, 'File that is written.')
_LABELS = flags.DEFINE_enum(
  'labels', 'hidden', ('hidden', 'revealed'),
  'Whether the model reads the labels of earlier events.',
)  # fmt: skip
_COLUMNS = flags.DEFINE_list(
  'columns', [], 'Of impute: columns whose empty cells are filled.'
)
_EVENTS = flags.DEFINE_integer(
  'events', 10, 'Of generate: events per entity.', lower_bound=1
)
_SPLIT = flags.DEFINE_enum(
  'split', 'test', text.SPLITS, 'Of score: the split of the data.'
)
_CALIBRATE = flags.DEFINE_bool(
  'calibrate', False,
  'Of predict: whether to correct the probabilities by the validation split,'
  ' which has to be where the run found it.',
)  # fmt: skip
_SEED = flags.DEFINE_integer('seed', 0, 'Of generate.', lower_bound=0)
_BATCH = 64  # Entities that go on at a time.
_WINDOW = 128  # Events of a row.


class Task(NamedTuple):
  """A trained model, and the events that it is asked about.

  table: the events of `corpus` as they were read; written: the rows of the
  file; place_E: which event of `corpus` each of them is.
  """

  model: event_lm.EventLM
  params: Any
  data: Any
  rows: event_batches.EventRows
  schema: event_schema.Schema
  corpus: event_corpus.EventCorpus
  table: pa.Table
  hidden: bool
  written: event_written.Written
  place_E: np.ndarray


def main(name: str, _: Sequence[str]) -> None:
  command.quiet()
  with command.explained('evals.events'):
    needed = (_CHECKPOINT, _OUT) if name == 'score' else (
      _CHECKPOINT, _INPUT, _OUT,
    )  # fmt: skip
    for flag in needed:
      if not flag.value:
        raise ValueError(f'--{flag.name} is missing; give it a path.')
    out = pathlib.Path(_OUT.value)
    ends = ('.npy',) if name == 'score' else ('.csv', '.parquet')
    if out.suffix not in ends:
      raise ValueError(f'--out={out} must end in {" or ".join(ends)}.')
    out.parent.mkdir(parents=True, exist_ok=True)
    if name == 'score':
      found = score(_CHECKPOINT.value, _STEP.value)
      np.save(out, found)
    else:
      task = _task(_CHECKPOINT.value, _STEP.value, _INPUT.value)
      if out.suffix == '.parquet' and not event_rows.is_parquet(
        pathlib.Path(_INPUT.value).expanduser()
      ):
        table = task.table.take(pa.array(task.place_E))
        task = task._replace(written=task.written.typed(table))
      run = {'predict': predict, 'impute': impute, 'generate': generate}[name]
      found = run(task)
      _write(out, found, task.schema.delimiter)
  print(f'{len(found)} events: {out}')


def score(directory: str, step: int | None) -> np.ndarray:
  """P(the label is positive) of every scored event of a split, in its order."""
  run = restore.restore(directory, step=step)
  evaluators = [
    evaluator
    for evaluator in run.config.evals
    if isinstance(evaluator, event_scores.EventScores)
    and evaluator.labels == _LABELS.value
  ]
  evaluator = (evaluators or [event_scores.EventScores(_LABELS.value)])[0]
  corpus = run.config.data.open(_SPLIT.value)
  found = evaluator.score(
    forward.pure(run.config.model), run.params, corpus, entities=len(corpus)
  )
  return evaluator.labelled(corpus, found)[0]


def predict(task: Task) -> pa.Table:
  """The events with a column `p(label=value)` for every value."""
  label = task.corpus.tokenizer.label
  if label is None:
    raise ValueError('the schema names no label; use impute or generate.')
  labels = 'hidden' if task.hidden else 'revealed'
  scores = event_scores.EventScores(labels=labels, window=_WINDOW)
  apply = forward.pure(task.model)
  found = scores.score(
    apply, task.params, task.corpus, entities=len(task.corpus)
  )
  log_p_EK = found.log_p_EK[task.place_E]
  if _CALIBRATE.value:
    learned = scores.learned(apply, task.params, task.data)
    if learned is None:
      raise ValueError(
        'the validation split has no label to calibrate by; leave --calibrate'
        ' out.'
      )
    log_p_EK = learned.calibration(log_p_EK)
  table = task.written.table
  for k, word in enumerate(label.code.words):
    member_K = np.arange(len(label.code.words)) == k
    p_E = pa.array(event_scores.consolidate(log_p_EK, member_K))
    table = _append(table, f'p({label.name}={word})', p_E)
  return table


def impute(task: Task) -> pa.Table:
  """The events with empty cells of --columns filled, and how probable.

  A cell that is likeliest to have a value that its entity never had before
  stays empty where a column has too many values to name it.
  """
  tokenizer, names = task.corpus.tokenizer, _COLUMNS.value
  fields = [field.name for field in task.schema.fields]
  if task.hidden and task.schema.label in fields:
    fields.remove(task.schema.label)
  if not names or set(names) - set(fields):
    raise ValueError(
      f'--columns={",".join(names)} must name columns of the schema,'
      f' {", ".join(fields)}; labels that are hidden are foretold by predict,'
      ' others filled with --labels=revealed.'
    )
  index_K = [tokenizer.names.index(name) for name in names]
  missing_EC = np.zeros(task.corpus.ids_EC.shape, bool)
  missing_EC[:, index_K] = task.corpus.ids_EC[:, index_K] == event_codes.NULL
  found = event_filling.fill(
    forward.pure(task.model),
    task.params,
    task.corpus,
    missing_EC,
    rows=dataclasses.replace(task.rows, mask_all=float(task.hidden)),
    window=_WINDOW,
  )
  decoded, place_E = tokenizer.decode(found.ids_EC), task.place_E
  table = task.written.table
  for c, name in zip(index_K, names, strict=True):
    column = decoded[name].combine_chunks()
    if isinstance(tokenizer.columns[c].code, event_codes.Recents):
      column = _recalled(task, c, found.ids_EC[:, c])
    column = task.written.filled(
      name, missing_EC[place_E, c], column.take(pa.array(place_E))
    )
    table = table.set_column(table.column_names.index(name), name, column)
    p_E = np.where(missing_EC[:, c], found.probability_EC[:, c], np.nan)
    p = pa.array(p_E[place_E], pa.float64(), from_pandas=True)
    table = _append(table, f'p({name})', p)
  return table


def generate(task: Task) -> pa.Table:
  """--events new events for every entity, in the columns of the file."""
  corpus, events = task.corpus, _EVENTS.value
  tokenizer, rng = corpus.tokenizer, np.random.default_rng(_SEED.value)
  longest = int(np.diff(corpus.offsets_N1).max()) + events
  found = []
  for first in range(0, len(corpus), _BATCH):
    # The last batch goes on with some entities twice: all are of one shape.
    entities = np.minimum(first + np.arange(_BATCH), len(corpus) - 1)
    cache = task.model.init_cache(_BATCH, longest * len(tokenizer.columns))
    service = event_futures.Service(
      forward.step(task.model), task.params, cache, tokenizer,
      hidden=task.hidden,
    )  # fmt: skip
    event_futures.read_history(service, corpus, entities)
    last_B = corpus.times_E[corpus.offsets_N1[entities + 1] - 1]
    new = event_futures.draw(service, tokenizer, last_B, events, rng)
    kept = min(_BATCH, len(corpus) - first)
    found.append([x[:kept].reshape(kept * events, *x.shape[2:]) for x in new])
  ids_EC, numbers_EC, time_E = map(np.concatenate, zip(*found, strict=True))
  return _future(task, ids_EC, numbers_EC, time_E, rng)


def _future(
  task: Task,
  ids_EC: np.ndarray,
  numbers_EC: np.ndarray,
  time_E: np.ndarray,
  rng: np.random.Generator,
) -> pa.Table:
  """New events, equally many of every entity, in the columns of the file."""
  tokenizer, written = task.corpus.tokenizer, task.written
  decoded, starts_N = tokenizer.decode(ids_EC), task.corpus.offsets_N1[:-1]
  row_E = np.argsort(task.place_E)[starts_N]
  row_E = np.repeat(row_E, len(ids_EC) // max(len(starts_N), 1))
  entity = task.schema.entity
  columns = {entity: written.table[entity].take(pa.array(row_E))}
  for field in task.schema.fields:
    column, c = decoded[field.name], tokenizer.names.index(field.name)
    if field.kind == 'number':
      column = pa.array(numbers_EC[:, c], from_pandas=True)
    elif isinstance(tokenizer.columns[c].code, event_codes.Recents):
      column = _continued(task, c, ids_EC[:, c], rng)
    columns[field.name] = written.like(field.name, column)
  columns |= written.times(time_E * 10**6)
  own = [name for name in written.table.column_names if name in columns]
  own += [name for name in columns if name not in own]
  return pa.table({name: columns[name] for name in own})


def _recalled(task: Task, c: int, ids_E: np.ndarray) -> pa.Array:
  """What each event's column is if it is as so many events ago."""
  column, found = task.corpus.tokenizer.columns[c], []
  values = task.table[column.name].to_pylist()
  for first, last in itertools.pairwise(task.corpus.offsets_N1.tolist()):
    own = values[first:last]
    found += [
      column.code.value(own[:i], int(ids_E[first + i])) for i in range(len(own))
    ]
  return pa.array(found, pa.string())


def _continued(
  task: Task, c: int, ids_E: np.ndarray, rng: np.random.Generator
) -> pa.Array:
  """Values of new events, the same number of each entity after the other."""
  column, found = task.corpus.tokenizer.columns[c], []
  values = task.table[column.name].to_pylist()
  spans = itertools.pairwise(task.corpus.offsets_N1.tolist())
  entities = len(task.corpus)
  for (first, last), ids_N in zip(
    spans, ids_E.reshape(entities, -1), strict=True
  ):
    own = values[first:last]
    for number in ids_N.tolist():
      own.append(column.code.value(own, number, rng))
    found += own[last - first :]
  return pa.array(found, pa.string())


def _task(directory: str, step: int | None, path: str) -> Task:
  run = restore.restore(directory, step=step)
  data, model = run.config.data, run.config.model
  hidden = _LABELS.value == 'hidden'
  if not isinstance(model, event_lm.EventLM):
    raise ValueError(
      f'{directory} holds a {type(model).__name__}; give the run of a model of'
      ' events, as configs/events_card.py.'
    )
  read = schema = getattr(data, 'layout', data.schema)
  label = schema.label
  if label is not None and hidden:
    # Nobody has to know what is to be foretold.
    fields = tuple(f for f in schema.fields if f.kind != 'label')
    read = dataclasses.replace(schema, fields=fields)
  reader = event_reader.Reader(path, read)
  table = pa.concat_tables([chunk.table for chunk in reader.chunks()])
  reader.check(way_out='or take these rows out')
  if label is not None and not hidden:
    words = data.tokenizer.label.code.words
    unknown = set(pc.unique(table[label]).to_pylist()) - {None, *words}
    if unknown:
      raise ValueError(
        f'{path}: column {label!r} has {sorted(unknown)[:3]}, which no label'
        f' of training is; they are {list(words)}. Mend it, or give'
        ' --labels=hidden.'
      )
  keys = [schema.entity, schema.time, event_reader.LINE]
  table = table.take(
    pc.sort_indices(table, sort_keys=[(key, 'ascending') for key in keys])
  ).combine_chunks()
  place_E = np.argsort(table[event_reader.LINE].to_numpy())
  encoded = table
  if read is not schema:
    encoded = table.append_column(label, pa.nulls(len(table), pa.string()))
  corpus = event_corpus.EventCorpus.encoded(encoded, data.tokenizer, 'input')
  return Task(
    model, run.params, data, run.config.rows, schema, corpus, table, hidden,
    event_written.Written.read(path, schema), place_E,
  )  # fmt: skip


def _append(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
  """The table with one more column; ValueError if it has one of that name."""
  if name in table.column_names:
    raise ValueError(
      f'{_INPUT.value} has a column {name!r} already; rename it.'
    )
  return table.append_column(name, column)


def _write(out: pathlib.Path, table: pa.Table, delimiter: str) -> None:
  """Writes a file wholly or not at all."""
  partial = out.with_name(f'{out.name}.partial')
  if out.suffix == '.parquet':
    pyarrow.parquet.write_table(table, partial)
  else:
    with partial.open('w', encoding='utf-8', newline='') as file:
      writer = csv.writer(file, delimiter=delimiter, lineterminator='\n')
      writer.writerow(table.column_names)
      for batch in table.to_batches(2**16):
        texts = [column.cast(pa.string()).to_pylist() for column in batch]
        writer.writerows(zip(*texts, strict=True))
  partial.replace(out)


if __name__ == '__main__':
  if len(sys.argv) < 2 or sys.argv[1] not in (*_TASKS, '--help'):
    sys.exit(f'evals.events: say what to do, one of {", ".join(_TASKS)}.')
  _NAME = sys.argv[1] if sys.argv[1] == '--help' else sys.argv.pop(1)
  command.run(functools.partial(main, _NAME))
