"""Runs that are damaged or not there, and what eval.py and sample.py say."""

import json
import os
import pathlib

import jax
import pytest
from absl import flags

from tests.commands import running
from training import metrics


@pytest.mark.parametrize(
  'damage',
  [
    running.truncate,
    pytest.param(pathlib.Path.unlink, marks=pytest.mark.slow),
  ],
)
def test_damaged_checkpoint_gives_way_to_the_one_before(
  run, folder, copy, caplog, damage
):
  newest = copy / 'checkpoints' / '10'
  largest = max(
    newest.rglob('*'), key=lambda p: p.is_file() and p.stat().st_size
  )
  damage(largest)
  words = ('checkpoint 10 in', 'is damaged', largest.name, 'checkpoint 8 inst')
  before = running.files_below(copy)
  assert (
    'model at step 8 '
    in run('eval', f'--checkpoint={copy}', f'--out={copy}/report').out
  )
  result = run('sample', f'--checkpoint={copy}', '--num_bytes=4')
  assert result.code == 0
  messages = [
    r.getMessage() for r in caplog.records if r.levelname == 'WARNING'
  ]
  assert len(messages) == 2
  assert all(word in message for message in messages for word in words)
  (copy / 'report').unlink()
  assert running.files_below(copy) == before
  caplog.clear()
  assert running.train(run, folder, copy, config='window').code == 0
  assert all(word in caplog.messages[0] for word in words)
  caplog.clear()
  assert 'model at step 10 ' in run('eval', f'--checkpoint={copy}').out
  assert not caplog.messages


@pytest.mark.parametrize('name', ['train', 'eval', 'sample'])
def test_no_checkpoint_is_intact(run, folder, copy, name):
  for step in ('8', '10'):
    running.truncate(copy / 'checkpoints' / step / 'manifest.json')
  before = running.files_below(copy)
  arguments = {
    'train': (f'--config={folder}/window.py', f'--workdir={copy}'),
    'eval': (f'--checkpoint={copy}',),
    'sample': (f'--checkpoint={copy}',),
  }[name]
  result = run(name, *arguments)
  running.assert_refused(
    result, name, 'no checkpoint in', 'is intact', '10: manifest'
  )
  after = running.files_below(copy)
  assert {path: after[path] for path in before if path.name != 'lock'} == {
    path: data for path, data in before.items() if path.name != 'lock'
  }
  assert after.keys() == before.keys()


@pytest.mark.parametrize('name', ['eval', 'sample'])
def test_checkpoint_that_is_no_run_directory(run, folder, tmp_path, name):
  cases = {
    '': '--checkpoint is missing; name a run directory',
    tmp_path / 'none': 'none does not exist; pass the run directory',
    folder / 'texts': 'texts is not a run directory (it has no checkpoints/)',
    folder / 'good.py': 'good.py is not a run directory',
  }
  for checkpoint, words in cases.items():
    result = run(name, f'--checkpoint={checkpoint}')
    running.assert_refused(result, name, words)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--step=9'], ['has no checkpoint 9; choose one of [8, 10]']),
    (['--out=/proc/none/report.json'], ['/proc/none', 'name another path']),
    (['--out={folder}/texts'], ['texts', 'name another path']),
  ],
)
def test_eval_refuses(run, folder, finished, arguments, words):
  before = running.files_below(folder / 'texts')
  arguments = [text.format(folder=folder) for text in arguments]
  result = run('eval', f'--checkpoint={finished}', *arguments)
  running.assert_refused(result, 'eval', *words)
  assert running.files_below(folder / 'texts') == before


def test_eval_of_a_run_whose_text_is_gone(run, folder, copy):
  stored = json.loads((copy / 'config.json').read_text())
  gone = str(folder / 'gone')
  # The checkpoint's own config is what counts.
  assert stored['fields']['data']['fields']['source']['fields']['pattern']
  os.rename(folder / 'texts', gone)
  try:
    result = run('eval', f'--checkpoint={copy}')
  finally:
    os.rename(gone, folder / 'texts')
  running.assert_refused(
    result, 'eval', 'data.source.pattern=', 'matches no file'
  )
  assert not (copy / 'report.json').exists()


def test_report_and_table(run, copy):
  result = run('eval', f'--checkpoint={copy}', '--split=validation')
  report = json.loads((copy / 'report.json').read_text())
  head = 'eval/validation/'
  assert report['step'] == 10
  assert report['corpus']['split'] == 'validation'
  counts = report['corpus']['splits']['validation']
  assert report[f'{head}bytes'] == counts['bytes']
  assert report[f'{head}documents'] == counts['documents']
  assert (report[f'{head}window'], report[f'{head}stride']) == (32, 16)
  trained = [
    line[f'{head}bits_per_byte']
    for line in metrics.read(copy)
    if f'{head}bits_per_byte' in line
  ]
  # Training scored the same bytes, over eight devices.
  assert counts['bytes'] < 2000
  assert report[f'{head}bits_per_byte'] == pytest.approx(trained[-1], rel=1e-5)
  shown = {
    line[:38].rstrip(): line[38:].split()
    for line in result.out.splitlines()[2:-1]
  }
  assert float(shown['model at step 10'][0]) == pytest.approx(
    report[f'{head}bits_per_byte'], abs=1e-3
  )
  assert len(shown['model at step 10']) == 3  # With its standard error.
  for name, key in (('gzip -9', 'gzip_9'), ('order-3 k-gram', 'kgram_3')):
    assert float(shown[name][0]) == pytest.approx(
      report[f'{head}reference/{key}'], abs=1e-3
    )
  assert result.out.splitlines()[-1] == f'report: {copy}/report.json'


def test_devices_share_the_rows(finished, monkeypatch):
  module, _ = running.load('eval')
  pure, places = module.forward.pure, []

  def watched(model):
    def apply(*inputs, **stored):
      logits_BTV = pure(model)(*inputs, **stored)
      jax.debug.inspect_array_sharding(logits_BTV, callback=places.append)
      return logits_BTV

    return apply

  monkeypatch.setattr(module.forward, 'pure', watched)
  shared = module.evaluate(str(finished), None, 'validation')
  monkeypatch.setattr(jax, 'local_devices', lambda: jax.devices()[:3])
  alone = module.evaluate(str(finished), None, 'validation')
  # Eight rows; three devices cannot share them evenly.
  rows = [place.shard_shape((8, 32, 260))[0] for place in places]
  assert rows == [1, 4]
  for name, score in shared.items():
    if isinstance(score, float) and not name.endswith('seconds'):
      assert alone[name] == pytest.approx(score, rel=1e-6), name


@pytest.mark.parametrize(
  'arguments, words',
  [
    (
      ['--prompt=' + 'x' * 20, '--num_bytes=12'],
      ['--prompt of 20 ids', 'window of 32', 'pass --num_bytes=11 or less'],
    ),
    (['--prompt=' + 'x' * 99], ['--prompt of 99 ids', 'shorten it']),
    (['--num_bytes=32'], ['--num_bytes=32', 'pass --num_bytes=31 or less']),
    (['--sampler=topp(0.9)'], ["did you mean 'top_p'"]),
  ],
)
def test_sample_refuses(run, finished, arguments, words):
  result = run('sample', f'--checkpoint={finished}', *arguments)
  running.assert_refused(result, 'sample', *words)


@pytest.mark.parametrize(
  'name, arguments, words',
  [
    ('train', ['--workdir=w', '--nope=1'], "'nope'"),
    ('eval', ['--split=tset'], '--split=tset.*train|validation|test'),
    ('sample', ['--num_bytes=0'], '--num_bytes=0'),
    ('sample', ['--num_samples=two'], '--num_samples=two'),
  ],
)
def test_flags_that_absl_refuses(run, name, arguments, words):
  with pytest.raises(flags.Error, match=words):
    run(name, *arguments)
