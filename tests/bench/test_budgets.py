"""Runs at equal training FLOPs: the counts by hand, then the whole command."""

import dataclasses
import functools
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from absl import flags

from bench import budgets
from bench import scoring
from configs import base
from data import packing
from evals import bits_per_byte
from models import flops
from models import forward
from tests import tiny_runs
from tests.commands import running

EXPERIMENT = """
import dataclasses, pathlib
from configs import initial
from data import tokens
from models import byte_latent, ngram_entropy, ngrams, patched, patching
from models import recall, stacks
from tests import tiny_runs
from training import sharding

STACK = stacks.Stack(width=16, layers=1, heads=2, hidden=16)
BLT = patched.Patched(
  entropy=ngram_entropy.NgramEntropy(sizes=(1, 2), rows=256),
  model=byte_latent.ByteLatent(
    encoder=STACK, latent=STACK, decoder=STACK, slots=1, reserve=0.5,
    patching=patching.Patching(patching.Entropy(threshold=0.7)),
    ngrams=ngrams.NgramEmbedding(sizes=()),
    recall=recall.RecallEmbedding(sizes=()),
  ),
)

def get_config():
  config = tiny_runs.make_config(
    pathlib.Path({folder!r}), mesh=sharding.MeshShape(), batch_size=8
  )
  return dataclasses.replace(config, {changes})
"""
CHANGES = {
  'byte': '',
  'patch': 'model=BLT, initial=(initial.FitNgramEntropy(),)',
  'token': 'model=config.model.clone(vocabulary_size=300),'
  ' data=dataclasses.replace(config.data, codec=tokens.Bpe(300))',
}
LIMITS = scoring.Limits(
  max_bytes=300, robust_bytes=200, questions=2, new_bytes=8
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Experiments for the three models, on words that can be asked about."""
  folder = tmp_path_factory.mktemp('budgets')
  texts = tiny_runs.write_texts(folder / 'texts')
  words = 'word line file type name part code table value class break python'
  for file in texts.glob('*.txt'):
    file.write_text(f'{file.read_text()} {words} number object import')
  for name, changes in CHANGES.items():
    text = EXPERIMENT.format(folder=str(texts), changes=changes)
    (folder / f'{name}.py').write_text(text)
  return folder


@pytest.fixture(scope='module')
def contenders(folder, tmp_path_factory):
  """What is measured of the three, by name."""
  found = budgets.survey(
    tmp_path_factory.mktemp('survey'), paths_of(folder, *CHANGES)
  )
  return {contender.name: contender for contender in found}


@pytest.fixture
def trained_here(monkeypatch):
  """Runs train.py in this process; the names of the runs it was asked for."""
  started = []

  def launch(arguments, log):
    del log
    values = [argument.split('=', 1) for argument in arguments]
    given = dict(values)
    workdir = given['--workdir']
    started.append(pathlib.Path(workdir).name)
    sets = [value for name, value in values if name == '--set']
    config = base.override(base.load(given['--config']), sets)
    running.load('train')[0].train(config, workdir)
    return 0

  monkeypatch.setattr(budgets, 'launch', launch)
  return started


@pytest.fixture
def imagined(monkeypatch):
  """Runs that take no time, with scores by seed; the names of those begun."""
  started = []

  def train(cell, workdir):
    workdir.mkdir()
    (workdir / 'cell').write_text(f'{cell.seed} {cell.steps}')
    started.append(cell.name)

  def score(workdir, limits):
    assert limits is LIMITS
    seed, steps = map(int, (workdir / 'cell').read_text().split())
    return {
      'bits_per_byte': 2.0 + 0.1 * seed + 1 / steps,
      'bits_per_byte_stderr': 0.01 + 0.02 * seed,
      'training_bytes_per_second': 1000.0,
      'decode_bytes_per_second': 100.0,
    }

  def robustness(workdir, limits):
    assert limits is LIMITS
    seed, _ = map(int, (workdir / 'cell').read_text().split())
    return {
      'noise/Drop/ratio': 1.5,
      'noise/Drop/total_ratio': 1.2 + 0.2 * seed,
      'noise/Drop/total_ratio_stderr': 0.03,
      'spelling/Swap/exact': 0.25,
      'spelling/Swap/preferred': 0.6 + 0.1 * seed,
      'spelling/Swap/preferred_stderr': 0.05,
      'spelling/exact': 0.5,
      'spelling/preferred': 0.75,
      'spelling/preferred_stderr': 0.02,
    }

  monkeypatch.setattr(budgets, 'train', train)
  monkeypatch.setitem(budgets._SCORES, 'scores', score)
  monkeypatch.setitem(budgets._SCORES, 'robust', robustness)
  return started


def paths_of(folder, *names):
  return [str(folder / f'{name}.py') for name in names]


def compare(folder, out, *names, seeds=1, number=1, minutes=5e-7):
  return budgets.compare(
    out,
    paths_of(folder, *names),
    minutes=minutes,
    budgets=number,
    seeds=seeds,
    limits=LIMITS,
  )


def test_flops_of_a_step_by_hand(contenders):
  byte, patch, token = contenders.values()
  # Four projections of 16 x 16 (keys and values of one of two heads), three of
  # 16 x 16 in the network, attention over 8.5 of 16 places, and the head.
  macs = 2 * 256 + 2 * 128 + 3 * 256 + 2 * 16 * 8.5
  assert byte.flops_per_byte == 3 * 2 * (macs + 16 * 260)
  assert byte.bytes_per_step == 8 * 16
  assert byte.patch_bytes is None and byte.bytes_per_id == 1
  # A token costs a wider head, and pays for the bytes it stands for.
  assert token.bytes_per_id > 1.2
  assert token.bytes_per_step == pytest.approx(8 * 16 * token.bytes_per_id)
  assert token.flops_per_byte == pytest.approx(
    3 * 2 * (macs + 16 * 300) / token.bytes_per_id
  )
  assert 1.3 < patch.patch_bytes < 8
  model = base.load(patch.path).model
  parts = flops.per_byte(model, length=16, patch_bytes=patch.patch_bytes)
  assert patch.flops_per_byte == flops.training(model, parts)


@pytest.mark.parametrize('name', CHANGES)
@pytest.mark.parametrize('budget', [1e9, 3.3e9])
def test_steps_spend_the_budget(contenders, name, budget):
  contender = contenders[name]
  step = contender.flops_per_byte * contender.bytes_per_step
  assert contender.steps(budget) * step == pytest.approx(budget, abs=step / 2)
  assert contender.steps(0) == 1


def test_mean_patch_is_counted_on_the_train_split(contenders):
  """As many patches as the model itself says that it has."""
  found = contenders['patch'].patch_bytes
  config = base.load(contenders['patch'].path)
  corpus = config.data.open('train')
  params = config.initial[0](config, tiny_runs.draw(config.model), corpus)
  rows = packing.Rows(corpus, config.row_length)
  size = patches = 0
  model = scoring.with_room(config.model)
  chosen = np.linspace(0, len(rows) - 1, min(len(rows), 64)).astype(int)
  read = jax.jit(functools.partial(model.apply, mutable='counts'))
  for row in (rows[int(i)] for i in chosen):
    _, sown = read({'params': params}, row['ids'][None], row['documents'][None])
    (count,) = sown['counts']['model']['patches']
    patches += int(count)
    size += int(np.sum(row['documents'] > 0))
  assert found == pytest.approx(size / patches, rel=1e-6)


def test_models_are_scored_with_more_room(folder):
  """Without, the scorer would charge log2(260) for what is cut: here a quarter.

  Unfitted, every byte is a patch, and 0.67 of 128 is rounded up to 96.
  """
  config = base.load(str(folder / 'patch.py'))
  model = config.model.clone(
    model=config.model.model.clone(reserve=0.67, rows=2)
  )
  ids_BT = np.random.default_rng(0).integers(4, 260, (2, 64))
  params = tiny_runs.draw(model)
  params['entropy'] = jax.tree.map(lambda x: 0 * x - 1, params['entropy'])
  documents_BT = np.ones_like(ids_BT)
  cut_BT, whole_BT = (
    np.all(jax.jit(forward.pure(m))(params, ids_BT, documents_BT) == 0, axis=-1)
    for m in (model, scoring.with_room(model))
  )
  assert cut_BT.mean() == 0.25
  assert not whole_BT.any()
  byte = base.load(str(folder / 'byte.py')).model
  assert scoring.with_room(byte) == byte


def test_the_whole_comparison(folder, tmp_path, imagined, capsys):
  names = ('byte', 'token')
  text = compare(folder, tmp_path, *names, number=2, seeds=2)
  assert len(imagined) == len(set(imagined)) == 8
  runs = json.loads((tmp_path / 'results.json').read_text())
  assert (tmp_path / 'table.md').read_text() == text
  assert [
    f'{r["model"]}-{r["steps"]}-seed{r["seed"]}' for r in runs
  ] == imagined
  for run in runs:
    step = run['flops'] / run['steps']
    assert run['flops'] == pytest.approx(run['budget'], abs=step / 2)
    assert run['budget'] == runs[0]['budget'] * 2 ** run['number']
    assert ('spelling/exact' in run) == (run['number'] == 1)
  rows = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in text.splitlines()
    if line.startswith('|')
  ]
  assert [row[1].split()[0] for row in rows[2:6]] == [*names] * 2
  for row in rows[2:6]:
    # Of the two seeds' values: half of their distance.
    mean = 2.05 + 1 / int(row[6])
    assert row[3] == f'{mean:.4f} +- 0.0500'
    assert row[4] == '+- 0.020'
    assert row[-2:] == ['1.0', '100']
  assert rows[6:] == [
    ['model', 'Drop', 'Swap', 'all tasks'],
    ['---'] * 4,
    *(
      [name, '1.300 +- 0.030 (1.500)', '65% +- 5%, 25%', '75% +- 2%, 50%']
      for name in names
    ),
  ]
  said = capsys.readouterr().out
  assert re.search(r'\[1/8, about \d+ min left\] byte-\d+-seed0: tr', said)
  assert '[8/8, about 0 min left] token' in said

  # The same command again trains and scores nothing, and says the same.
  del imagined[:]
  assert compare(folder, tmp_path, *names, number=2, seeds=2) == text
  assert not imagined
  # More seeds add to what is there, and a larger budget is asked the rest.
  compare(folder, tmp_path, *names, number=3, seeds=3)
  assert len(imagined) == 2 * (3 * 3 - 2 * 2)


def test_a_stopped_comparison_goes_on_and_has_a_table(
  folder, tmp_path, imagined, monkeypatch
):
  good = budgets.train

  def train(cell, workdir):
    if len(imagined) == 3:
      raise KeyboardInterrupt
    good(cell, workdir)

  monkeypatch.setattr(budgets, 'train', train)
  with pytest.raises(KeyboardInterrupt):
    compare(folder, tmp_path, 'byte', 'token', seeds=2)
  assert (tmp_path / 'table.md').read_text().count('| token') == 2
  monkeypatch.setattr(budgets, 'train', good)
  compare(folder, tmp_path, 'byte', 'token', seeds=2)
  assert len(imagined) == len(set(imagined)) == 4


@pytest.mark.parametrize(
  'model', [pytest.param('patch', marks=pytest.mark.slow), 'token']
)
def test_a_model_is_trained_and_scored(folder, tmp_path, trained_here, model):
  text = compare(folder, tmp_path, model)
  assert re.search(rf'\| {model} \(\d\.\d\d bytes/(patch|token)\) \|', text)
  for name in ('AntSpeak', 'Drop', 'Swap', 'all tasks'):
    assert f'| {name} |' in text
  (name,) = trained_here
  found = json.loads((tmp_path / name / 'scores.json').read_text())
  run = budgets.restore.restore(tmp_path / name)
  evaluator = run.config.evals[0]
  assert isinstance(evaluator, bits_per_byte.BitsPerByte)
  scored = evaluator.run(
    forward.pure(scoring.with_room(run.config.model)),
    run.params,
    run.config.data.open('test'),
    max_bytes=300,
  )
  for key, value in scored.items():
    assert found[key] == value
  for speed in ('training', 'decode'):
    assert found[f'{speed}_bytes_per_second'] > 0


@pytest.mark.slow
def test_train_py_itself_is_what_runs(folder, tmp_path):
  out = tmp_path / 'out'
  (contender,) = budgets.survey(out, paths_of(folder, 'byte'))
  cell = budgets.Cell(contender, 0, 2 * contender.flops_per_byte * 128, 3)
  assert cell.name == 'byte-2-seed3'
  budgets.train(cell, out / cell.name)
  stored = json.loads((out / cell.name / 'config.json').read_text())
  assert (stored['fields']['steps'], stored['fields']['seed']) == (2, 3)
  # And what it refuses is named, with the file that says why.
  other = cell._replace(seed=4)
  with pytest.raises(ValueError, match=r'ended at step 0 of 2.*-seed3\.log'):
    budgets.train(other, out / cell.name)
  assert 'belongs to another config' in (out / 'byte-2-seed3.log').read_text()


def test_config_that_changed_is_refused(folder, tmp_path):
  path = tmp_path / 'byte.py'
  path.write_text((folder / 'byte.py').read_text())
  budgets.survey(tmp_path / 'out', [str(path)])
  path.write_text(path.read_text().replace('batch_size=8', 'batch_size=16'))
  with pytest.raises(ValueError, match=r'the config that .* was made with'):
    budgets.survey(tmp_path / 'out', [str(path)])


def test_two_configs_of_one_name_are_refused(folder, tmp_path):
  with pytest.raises(ValueError, match='names two files alike'):
    budgets.survey(tmp_path, paths_of(folder, 'byte', 'byte'))


def test_default_experiments_compare_the_same_inputs():
  byte, patch, token = (base.load(path) for path in budgets.CONFIGS)
  assert patch.model.model.ngrams == byte.model.ngrams
  assert patch.model.model.recall == byte.model.recall
  assert (patch.row_length, patch.batch_size) == (
    byte.row_length,
    byte.batch_size,
  )
  assert patch.evals == byte.evals
  assert dataclasses.replace(token.data, codec=byte.data.codec) == byte.data


@pytest.mark.parametrize(
  ('arguments', 'budget', 'runs'),
  [
    ([], 0.45, (3, 2, None)),
    (['--quick'], 0.0045, (1, 1, 8192)),
    (['--quick', '--seeds=3', '--minutes=2'], 0.02, (1, 3, 8192)),
    (['--budgets=2'], 0.45, (2, 2, None)),
  ],
)
def test_flags(tmp_path, monkeypatch, arguments, budget, runs):
  asked = []
  monkeypatch.setattr(budgets.host, 'keep_memory', lambda: None)
  monkeypatch.setattr(budgets, 'compare', lambda *a, **b: asked.append((a, b)))
  own = flags.FlagValues()
  given = budgets.define_flags(own)
  own(['budgets', f'--out={tmp_path}', *arguments])
  budgets.main(given)
  (((out, configs), values),) = asked
  assert (out, tuple(configs)) == (tmp_path, budgets.CONFIGS)
  limits = values['limits']
  assert (values['budgets'], values['seeds'], limits.max_bytes) == runs
  assert values['minutes'] == pytest.approx(budget)


def test_no_folder_is_one_sentence(monkeypatch):
  monkeypatch.setattr(budgets.host, 'keep_memory', lambda: None)
  monkeypatch.setattr(
    budgets.command.base, 'PACKAGES', (*base.PACKAGES, 'bench')
  )
  own = flags.FlagValues()
  given = budgets.define_flags(own)
  own(['budgets'])
  with pytest.raises(SystemExit, match=r'budgets: --out is missing; name a'):
    budgets.main(given)
