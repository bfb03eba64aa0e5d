"""A run over BPE tokens: the same commands, and nothing but the run's folder.

Its run directory holds the tokenizer: no prepared data is needed to sample,
and scoring prepares the text with the run's tokenizer, not a new one.
"""

import dataclasses
import json
import shutil

import pytest

from configs import base
from configs import restore
from data import tokens
from models import recall
from tests import tiny_runs
from tests.commands import running
from training import metrics


def train(config, workdir):
  return running.load('train')[0].train(config, str(workdir))


def make_config(folder, **changes):
  config = tiny_runs.make_config(folder)
  codec = tokens.Bpe(vocabulary_size=300)
  return dataclasses.replace(
    config,
    model=config.model.clone(vocabulary_size=300),
    data=dataclasses.replace(config.data, codec=codec),
    **changes,
  )


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The folder of a finished run, and that of its texts."""
  folder = tmp_path_factory.mktemp('tokens')
  texts = tiny_runs.write_texts(folder / 'texts')
  train(make_config(texts), folder / 'run')
  return folder / 'run', texts


def test_metrics_are_per_byte(finished):
  workdir, texts = finished
  corpus = make_config(texts).data.open('train')
  assert corpus.bytes_per_id > 1.5
  lines = [line for line in metrics.read(workdir) if 'train/nats' in line]
  for line in lines:
    rate = line['train/nats'] / line['train/bits_per_byte']
    assert rate == pytest.approx(0.693147 * corpus.bytes_per_id, rel=1e-5)
    speed = line['time/bytes_per_second'] * line['time/step_seconds']
    assert speed == pytest.approx(8 * 16 * corpus.bytes_per_id)


def test_run_resumes_with_the_tokenizer_it_began_with(tmp_path, finished):
  workdir, texts = finished
  copy = shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(texts / 'prepared')
  assert train(make_config(texts), copy) == 10
  other = make_config(texts, seed=1)
  with pytest.raises(ValueError, match='another config') as error:
    train(other, copy)
  assert len(str(error.value)) < 500
  changed = dataclasses.replace(
    other, data=dataclasses.replace(other.data, codec=tokens.Bpe(301)), seed=0
  )
  with pytest.raises(ValueError, match='is below data'):
    train(changed, copy)


def test_sampling_and_scoring_need_the_run_alone(finished, run):
  workdir, texts = finished
  score = ('eval', f'--checkpoint={workdir}', f'--out={workdir}/report.json')
  assert run(*score).code == 0
  before = json.loads((workdir / 'report.json').read_text())
  shutil.rmtree(texts / 'prepared')
  found = run(
    'sample', f'--checkpoint={workdir}', '--prompt=alpha', '--num_bytes=20'
  )
  assert not (texts / 'prepared').exists()
  assert found.code == 0
  assert found.out.startswith('alpha')
  # Bytes that are no UTF-8 are shown as one character each, of three bytes.
  assert 0 < len(found.out) - len('alpha\n') <= 20
  assert run(*score).code == 0
  after = json.loads((workdir / 'report.json').read_text())
  for key in ('bits_per_byte', 'bytes', 'documents'):
    assert after[f'eval/test/{key}'] == before[f'eval/test/{key}']


def test_stored_config_encodes_without_any_text(finished):
  workdir, _ = finished
  codec = restore.restore(workdir).config.data.codec
  stored = json.loads((workdir / 'config.json').read_text())
  assert base.from_json(stored).data.codec == codec
  ids = codec.encode(b'alpha beta')
  assert len(ids) < 10
  assert codec.decode(ids) == b'alpha beta'


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'vocabulary_size': 260}, r'model\.vocabulary_size=260 is below'),
    (
      {'recall': recall.RecallEmbedding(sizes=(2,))},
      r'model\.recall\.vocabulary_size=260 is below',
    ),
  ],
)
def test_ids_that_the_model_cannot_read_are_refused(
  tmp_path, finished, changes, says
):
  config = make_config(finished[1])
  model = config.model.clone(**changes)
  with pytest.raises(ValueError, match=says):
    train(dataclasses.replace(config, model=model), tmp_path / 'run')
