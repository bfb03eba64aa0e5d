"""Bad input to train.py: one sentence, a way out, and nothing written."""

import dataclasses
import os
import pathlib
import resource
import time

import numpy as np
import pytest

from tests import tiny_runs
from tests.commands import running
from training import metrics
from training import sharding
from training import workdir as workdir_lib


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--config=configs/tinny.py'], ['did you mean configs/tiny.py?']),
    (['--config='], ['--config is missing', 'configs/tiny.py']),
    (
      ['--set=optimizer.learning_rat=1'],
      ['did you mean optimizer.learning_rate?'],
    ),
    (['--set=batchsize=8'], ['did you mean batch_size?']),
    (['--set=steps=1.5'], ["steps='1.5' must be int"]),
    (['--set=steps=many'], ["steps='many' must be int"]),
    (['--set=steps=0'], ['steps=0 must be at least 1']),
    (['--set=steps'], ['must read path=value']),
    (['--set=model=large'], ['model=large: a component is chosen']),
    (['--set=model.heads=3'], ['heads=3', 'must divide width']),
    (
      ['--set=batch_size=9'],
      ['batch_size=9 does not divide over 8 devices', 'use 8 or 16'],
    ),
    (['--set=mesh.fsdp=3'], ['fsdp=3', 'does not use 8 devices']),
    (
      ['--set=mesh.data=1', '--set=mesh.tensor=4', '--set=model.hidden=18'],
      ['parameter params/block_0/feed_forward/', '18 does not divide'],
    ),
    (['--set=optimizer.clip=0'], ['optimizer.clip=0.0', 'or None']),
    (['--set=seed=-1'], ['seed=-1 must be at least 0']),
    (
      ['--set=data.source.pattern={folder}/none/*.txt'],
      ['data.source.pattern=', 'none/*.txt', 'matches no file', 'give a glob'],
    ),
    (
      ['--set=data.source.pattern={folder}/empty/*.txt'],
      ['empty/*.txt', 'holds no text: 3 documents, 0 bytes'],
    ),
    (
      ['--set=data.source.pattern={folder}/texts/1.txt'],
      ["split 'validation'", 'texts/1.txt', 'at least 3 groups'],
    ),
    (['--config={folder}/utf8.py'], ['utf8.jsonl:2 is no JSON', 'repair']),
    (['--config={folder}/torn.py'], ['torn.jsonl:3 is no JSON', 'repair']),
    (['--config={folder}/field.py'], ["field.jsonl:3 has no field 'text'"]),
    (
      ['--config={folder}/window.py', '--set=row_length=64'],
      ['row_length=64 exceeds model.max_length=32'],
    ),
    (
      ['--config={folder}/window.py', '--set=evals.0.window=33'],
      ['evals.0.window=33 exceeds model.max_length=32'],
    ),
  ],
  ids=lambda value: value[-1] if '=' in value[-1] else '',
)
def test_train_refuses(run, folder, tmp_path, arguments, words):
  arguments = [text.format(folder=folder) for text in arguments]
  workdir = tmp_path / 'run'
  prepared = folder / 'texts' / 'prepared'
  result = running.train(run, folder, workdir, *arguments)
  running.assert_refused(result, 'train', *words)
  assert not workdir.exists()
  assert not list(prepared.glob('*.incomplete'))


def test_what_was_refused_can_be_put_right(run, folder, tmp_path):
  pattern = f'--set=data.source.pattern={folder}/texts/1.txt'
  assert running.train(run, folder, tmp_path, pattern).code == 1
  assert running.train(run, folder, tmp_path).code == 0


def test_prepared_text_that_is_damaged(run, folder, tmp_path):
  data = tiny_runs.make_config(folder / 'texts').data
  data = dataclasses.replace(data, directory=str(tmp_path / 'prepared'))
  file = data.prepare() / 'train' / 'bytes.bin'
  text = bytearray(file.read_bytes())
  text[5] ^= 1
  file.write_bytes(text)
  os.utime(file, (1, 1))
  result = running.train(
    run, folder, tmp_path / 'run', f'--set=data.directory={data.directory}'
  )
  running.assert_refused(
    result, 'train', f'{file} has changed since it was written',
    f'remove {file.parent.parent} to have it prepared again',
  )  # fmt: skip
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('workdir', ['', '{folder}/good.py', '/proc/run'])
def test_workdir_that_cannot_be(run, folder, workdir):
  before = (folder / 'good.py').read_bytes()
  result = running.train(run, folder, workdir.format(folder=folder))
  words = ['--workdir is missing; name a folder']
  if workdir:
    words = [workdir.format(folder=folder), 'name another path']
  running.assert_refused(result, 'train', *words)
  assert (folder / 'good.py').read_bytes() == before


def test_workdir_in_use(run, folder, copy):
  """The second run says who has it, and leaves all as it is."""
  with workdir_lib.hold(copy):
    before = running.files_below(copy)
    result = running.train(run, folder, copy, config='window')
    after = running.files_below(copy)
  running.assert_refused(
    result, 'train', f'{copy} is in use by process {os.getpid()} on',
    'wait for it to end, stop it, or pass another --workdir',
  )  # fmt: skip
  lock = pathlib.Path('lock')  # In which its holder counts.
  assert before.pop(lock)[:20] == after.pop(lock)[:20]
  assert after == before


def test_workdir_of_another_config(run, folder, finished):
  before = running.files_below(finished)
  result = running.train(
    run, folder, finished, '--set=seed=3', '--set=optimizer.b1=0.5',
    config='window',
  )  # fmt: skip
  running.assert_refused(
    result, 'train', str(finished), 'seed: 0 != 3', 'optimizer.b1: 0.9 != 0.5',
    'give a new --workdir',
  )  # fmt: skip
  assert running.files_below(finished) == before
  # What does not decide the result may change.
  result = running.train(
    run, folder, finished, '--set=keep=3', '--set=mesh.data=-1', config='window'
  )
  assert result.code == 0


def test_checkpoint_of_another_config_without_its_file(run, folder, copy):
  (copy / 'config.json').unlink()
  before = running.files_below(copy)
  result = running.train(run, folder, copy, '--set=seed=3', config='window')
  running.assert_refused(result, 'train', str(copy), 'seed: 0 != 3')
  assert running.files_below(copy).keys() - {'lock'} == before.keys() - {'lock'}


def test_workdir_with_a_damaged_config(run, folder, copy):
  (copy / 'config.json').write_text('{"class": ')
  before = running.files_below(copy)
  result = running.train(run, folder, copy, config='window')
  running.assert_refused(
    result, 'train', f'{copy}/config.json is not valid JSON'
  )
  assert running.files_below(copy) == before
  (copy / 'config.json').unlink()
  result = running.train(run, folder, copy, config='window')
  assert result.code == 0


def test_train_ends_with_what_to_do_next(run, folder, tmp_path):
  workdir = tmp_path / 'my run'
  result = running.train(run, folder, workdir, '--tensorboard')
  assert result.code == 0
  commands = result.out.splitlines()
  assert commands[0] == f"'{workdir}' holds the trained model; next:"
  assert commands[1] == f"  python eval.py --checkpoint='{workdir}'"
  assert commands[2].startswith(f"  python sample.py --checkpoint='{workdir}' ")
  assert list(workdir.glob('events.out.tfevents.*'))


def test_loss_that_is_not_finite(run, folder, tmp_path, monkeypatch):
  put, taken = sharding.put_batch, []

  def put_batch(batch, where):
    taken.append(0)
    if len(taken) == 7:
      batch = batch | {'mask': np.full_like(batch['mask'], np.nan)}
    return put(batch, where)

  monkeypatch.setattr(sharding, 'put_batch', put_batch)
  result = running.train(run, folder, tmp_path)
  running.assert_refused(
    result, 'train', 'not finite at step 7 (loss nan', 'checkpoint 4 is good',
    'try a lower optimizer.learning_rate',
  )  # fmt: skip
  assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['4']


def test_full_disk_while_saving(run, folder, tmp_path, monkeypatch):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  put, taken = sharding.put_batch, []

  def put_batch(*arguments):
    taken.append(0)
    if len(taken) == 6:
      while not (tmp_path / 'checkpoints' / '4').exists():
        time.sleep(0.01)
      resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    return put(*arguments)

  monkeypatch.setattr(sharding, 'put_batch', put_batch)
  arguments = ('--set=checkpoint_every=2', '--set=log_every=5')
  try:
    result = running.train(run, folder, tmp_path, *arguments)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  running.assert_refused(
    result, 'train', 'checkpoint 6 could not be saved', 'File too large',
    'checkpoint 4 is intact', 'run the same command again to resume',
  )  # fmt: skip
  names = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
  # What the failed save had begun may still be there; the next run removes it.
  assert names - {'6.saving'} == {'2', '4'}
  monkeypatch.undo()
  assert running.train(run, folder, tmp_path, *arguments).code == 0
  trained = [x['step'] for x in metrics.read(tmp_path) if 'train/loss' in x]
  assert trained == [5, 10]
