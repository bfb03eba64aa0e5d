"""The commands of configs/cifar10.py on images of the same form."""

import json

import pytest

from configs import base
from models import flops
from tests.commands import running
from tests.data import small_images


@pytest.mark.slow
def test_the_commands_of_cifar_train_and_score(run, tmp_path):
  folder = small_images.prepare(tmp_path / 'tfds')
  workdir, report = tmp_path / 'run', tmp_path / 'train.json'
  settings = (
    'data.name=small_cifar', f'data.data_dir={folder}', 'data.held_out=8',
    f'data.directory={tmp_path}', 'batch_size=32', 'steps=12',
    'model.width=16', 'model.layers=1', 'rows.least=0.5',
    'optimizer.learning_rate=3e-2',
  )  # fmt: skip
  made = run(
    'train',
    '--config=configs/cifar10.py',
    f'--workdir={workdir}',
    *(f'--set={setting}' for setting in settings),
  )
  assert made.code == 0, made.err
  assert 'sample.py' not in made.out and '--split=train' in made.out
  found = run(
    'eval', f'--checkpoint={workdir}', '--split=train', f'--out={report}'
  )
  assert found.code == 0, found.err
  scores = json.loads(report.read_text())
  assert scores['eval/train/images'] == 32
  # Nine of ten are wrong by chance.
  assert scores['eval/train/error'] < 0.5, scores
  assert f'error{"":33}{scores["eval/train/error"]:.4f} +- ' in found.out
  refused = run('sample', f'--checkpoint={workdir}')
  running.assert_refused(refused, 'sample', 'ImageMLP', 'eval.py')
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  last = [r for r in records if 'train/loss' in r][-1]
  assert 0 <= last['train/error'] <= 1 and last['train/nats'] > 0


def test_the_structured_perceptron_does_no_more_than_the_dense_one():
  macs = {}
  for name in ('cifar10', 'cifar10_dense'):
    config = base.load(f'configs/{name}.py')
    parts = flops.per_byte(config.model, length=config.row_length)
    macs[name] = parts.total * config.row_length / 2
  # 3072 = 48 x 64 and 256 = 16 x 16 in blocks, three times 1024 = 32 x 32.
  first = 3072 * 16 + 256 * 64
  inner = 2 * (256 * 32 + 1024 * 16)
  assert macs['cifar10'] == pytest.approx(first + 3 * inner + 2560)
  assert macs['cifar10_dense'] == pytest.approx(
    3072 * 64 + 3 * 2 * 64 * 256 + 640
  )
  assert macs['cifar10'] < macs['cifar10_dense']
