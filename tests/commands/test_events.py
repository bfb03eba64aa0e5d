"""From a config of events to a trained run, its report and its use."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import pytest

from configs import base
from configs import events_csv
from configs import fitting
from configs import restore
from data import event_codes
from data import event_corpus
from data import event_files
from data import event_reader
from data import event_schema
from data import event_tokens
from evals import event_scores
from tests import tiny_runs
from tests.commands import running
from training import optimizer

EVENTS = 6
SCHEMA = event_schema.Schema(
  entity='client',
  time='when',
  fields=(
    event_schema.Field('fraud', 'label'),
    event_schema.Field('place', 'category'),
    event_schema.Field('amount', 'number'),
  ),
  derived=('gap',),
)


def write_events(path):
  """Forty clients, whose frauds are the large amounts."""
  rng = np.random.default_rng(0)
  lines = ['client,when,place,amount,fraud']
  for client in range(40):
    for day in sorted(rng.choice(28, EVENTS, replace=False) + 1):
      amount = rng.exponential(20)
      lines.append(
        f'c{client},2024-02-{day:02d}T12:00:00,{rng.choice(list("abc"))},'
        f'{amount:.2f},{"yes" if amount > 30 else "no"}'
      )
  path.write_text('\n'.join(lines))
  return str(path)


def make_config(folder):
  config = events_csv.get_config()
  return dataclasses.replace(
    config,
    model=config.model.clone(
      trunk=config.model.trunk.clone(width=16, layers=1, heads=2, hidden=16),
      judge=config.model.judge.clone(
        stack=config.model.judge.stack.clone(width=8, layers=1, hidden=8),
        hidden=8,
      ),
      cell_width=8,
      cell_layers=0,
      waves=2,
      reach=3,
    ),
    data=event_files.Events(
      path=write_events(folder / 'events.csv'),
      schema=SCHEMA.to_json(),
      bins=4,
      directory=str(folder / 'data'),
    ),
    rows=dataclasses.replace(config.rows, context=2),
    evals=(event_scores.EventScores(window=8, context=4, replicates=5),),
    optimizer=optimizer.AdamW(learning_rate=1e-2, warmup_steps=2),
    row_length=EVENTS * 4,
    batch_size=8,
    steps=4,
    eval_every=100,
    checkpoint_every=2,
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A finished run and its config."""
  folder = tmp_path_factory.mktemp('events')
  config = make_config(folder)
  workdir = folder / 'run'
  module, own = running.load('train')
  running.parse(own)
  with pytest.MonkeyPatch.context() as patch:
    tiny_runs.draw_initial(patch, module)
    assert module.train(config, str(workdir)) == 4
  return config, workdir


@pytest.fixture
def use(trained, tmp_path):
  """Runs a task on the test users; gives what goes in and comes out."""
  config, workdir = trained
  stream = config.data

  def use(name, change, *arguments, suffix='.parquet'):
    table = stream.open('test').table.drop_columns([event_reader.LINE])
    table = change(table)
    source, out = tmp_path / f'in{suffix}', tmp_path / f'out{suffix}'
    if suffix == '.csv':
      pa.csv.write_csv(table, source)
    else:
      pa.parquet.write_table(table, source)
    module, own = running.load('evals/events')
    running.parse(
      own, f'--checkpoint={workdir}', f'--input={source}', f'--out={out}',
      *arguments,
    )  # fmt: skip
    module.main(name, [])
    read = pa.csv.read_csv if suffix == '.csv' else pa.parquet.read_table
    return table, read(out)

  return use


def test_run_keeps_what_it_learned_of_the_data(trained):
  config, workdir = trained
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  assert any(
    'eval/validation/hidden/auc' in json.loads(line) for line in lines
  )
  restored = restore.restore(workdir).config
  tokenizer = config.data.tokenizer
  assert restored.model.columns == tuple(tokenizer.sizes_C)
  names = [tokenizer.names[c] for c in restored.model.numbers]
  assert names == ['when:gap', 'amount']
  given = fitting.as_given(config)
  assert base.differences(fitting.as_given(restored), given) == []


def test_report_has_every_score(trained, tmp_path):
  config, workdir = trained
  module, _ = running.load('eval')
  report = module.evaluate(str(workdir), None, 'test')
  head = 'eval/test/hidden/'
  found = {k.removeprefix(head): v for k, v in report.items()}
  corpus = config.data.open('test')
  assert found['events'] == corpus.num_events
  label_E = corpus.ids_EC[:, -1] == corpus.tokenizer.sizes_C[-1] - 1
  np.testing.assert_allclose(found['label_rate'], label_E.mean())
  columns = sum(found[f'nats_of_{name}'] for name in corpus.tokenizer.names)
  np.testing.assert_allclose(columns, found['nats_per_event'], rtol=1e-5)
  text = module.table(report, 'test')
  assert f'{"hidden/auc":38}{found["auc"]:.4f} +- ' in text
  module, own = running.load('evals/events')
  out = tmp_path / 'ours.npy'
  running.parse(own, f'--checkpoint={workdir}', f'--out={out}')
  module.main('score', [])
  p_E = np.load(out)
  nats = -np.log(np.where(label_E, p_E, 1 - p_E)).mean()
  np.testing.assert_allclose(nats, found['log_loss'], rtol=1e-5)


def test_predictions_stand_beside_the_events_as_they_came(use):
  order = np.random.default_rng(0).permutation(240)

  def shuffle(table):
    # Without the label, which is to be foretold, in types of its own.
    table = table.drop_columns(['fraud']).append_column(
      'ünused "id"', pa.array(2**60 + np.arange(len(table)))
    )
    for name, kind in (
      ('when', pa.timestamp('ns', 'Europe/Berlin')),
      ('place', pa.dictionary(pa.int32(), pa.string())),
    ):
      place = table.column_names.index(name)
      table = table.set_column(place, name, table[name].cast(kind))
    return table.take(order[order < len(table)])

  shuffled, found = use('predict', shuffle)
  more = ['p(fraud=no)', 'p(fraud=yes)']
  assert found.column_names == [*shuffled.column_names, *more]
  same = found.select(shuffled.column_names)
  assert same.schema.equals(shuffled.schema)
  assert same.to_pydict() == shuffled.to_pydict()
  p_no, p_yes = (np.array(found[name]) for name in more)
  np.testing.assert_allclose(p_no + p_yes, 1.0)
  _, same = use('predict', lambda table: table)
  back = np.argsort(order[order < len(found)])
  np.testing.assert_allclose(p_yes[back], same['p(fraud=yes)'], rtol=1e-5)
  _, mended = use('predict', lambda table: table, '--calibrate')
  x, y = (
    np.log(np.array(table['p(fraud=yes)']) / table['p(fraud=no)'])
    for table in (same, mended)
  )
  assert np.abs(x - y).max() > 0.01
  slope, shift = np.polyfit(x, y, 1)
  np.testing.assert_allclose(slope * x + shift, y, atol=1e-4)


def test_empty_cells_are_filled_and_others_kept(use):
  def empty(table):
    is_empty = pa.array(np.arange(len(table)) % 3 == 0)
    amounts = pc.if_else(is_empty, None, table['amount'])
    place = table.column_names.index('amount')
    return table.set_column(place, 'amount', amounts)

  given, found = use('impute', empty, '--columns=amount', suffix='.csv')
  was_empty = np.array(given['amount'].is_null())
  assert not found['amount'].null_count
  np.testing.assert_array_equal(
    np.array(given['amount'])[~was_empty], np.array(found['amount'])[~was_empty]
  )
  assert (np.array(found['p(amount)'].is_null()) == ~was_empty).all()
  for name in ('client', 'when', 'place', 'fraud'):
    assert found[name].equals(given[name].cast(found[name].type))


@pytest.mark.slow
def test_generated_events_follow_their_history(trained, use):
  config, _ = trained
  given, found = use('generate', lambda table: table, '--events=3')
  assert found.schema.equals(given.schema)
  last = given.group_by('client').aggregate([('when', 'max')])
  last = {row['client']: row['when_max'] for row in last.to_pylist()}
  clients, times = found['client'].to_pylist(), found['when'].to_pylist()
  assert sorted(clients) == sorted([*last] * 3)
  for i, client in enumerate(clients):
    before = last[client] if i % 3 == 0 else times[i - 1]
    assert times[i] >= before
  amount = config.data.tokenizer.columns[2].code
  known = {None, 0.0, *(x for samples in amount.samples for x in samples)}
  assert set(found['amount'].to_pylist()) <= known
  assert set(found['place'].to_pylist()) <= {None, 'a', 'b', 'c'}
  assert set(found['fraud'].to_pylist()) <= {'no', 'yes'}


def test_values_too_many_for_ids_come_from_the_history():
  module, _ = running.load('evals/events')
  code = event_codes.Recents(2, ('x', 'y'))
  tokenizer = event_tokens.Tokenizer(
    'client', 'when', (event_tokens.Column('shop', 'id', code),), ''
  )
  table = pa.table(
    {
      'client': ['u'] * 3 + ['v'] * 2,
      'when': pa.array(range(5)),
      'shop': ['a', 'b', None, 'c', 'd'],
    }
  )
  task = module.Task(*[None] * len(module.Task._fields))._replace(
    corpus=event_corpus.EventCorpus.encoded(table, tokenizer, 'input'),
    table=table,
  )
  new, one_ago, two_ago = range(event_codes.NEW, event_codes.NEW + 3)
  ids_E = np.array([new, one_ago, two_ago, new, one_ago])
  found = module._recalled(task, 0, ids_E).to_pylist()
  assert found == [None, 'a', 'a', None, 'c']
  ids_E = np.array([two_ago, one_ago, new, two_ago])
  rng = np.random.default_rng(0)
  *found, last = module._continued(task, 0, ids_E, rng).to_pylist()
  assert found[:2] == ['b', 'b'] and found[2] in ('x', 'y') and last == 'd'


@pytest.mark.parametrize('name', ['predict', 'generate'])
def test_a_label_of_no_training_event_is_named(use, name):
  def change(table):
    values = table['fraud'].to_pylist()
    place = table.column_names.index('fraud')
    return table.set_column(place, 'fraud', pa.array(['weird', *values[1:]]))

  message = r"column 'fraud' has \['weird'\], which no label of training is"
  with pytest.raises(SystemExit, match=message):
    use(name, change, '--labels=revealed')


@pytest.mark.parametrize(
  ('name', 'arguments', 'message'),
  [
    ('impute', ('--columns=city',), '--columns=city must name columns'),
    ('impute', ('--columns=fraud',), 'labels that are hidden are foretold by'),
    ('predict', ('--out=x.txt',), 'must end in .csv or .parquet'),
  ],
)
def test_what_cannot_be_is_named(use, name, arguments, message):
  with pytest.raises(SystemExit, match=message):
    use(name, lambda table: table, *arguments)
