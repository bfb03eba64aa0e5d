"""python -m bounds and bounds.verify on the run of a tiny network."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from bounds import codec
from configs import base
from configs import restore
from configs import sweep
from models import masks
from tests import tiny_runs
from tests.commands import running

READING = ('--window=32', '--stride=16')


@pytest.fixture(scope='session')
def certified(finished):
  """The directory of a certificate of that run, and what was printed."""
  module, own = running.load('bounds/__main__')
  out = finished.parent / 'certified'
  running.parse(
    own, f'--checkpoint={finished}', f'--out={out}', '--bits=2', *READING
  )
  module.main([])
  return out


@pytest.fixture
def mine(certified, tmp_path):
  """A copy of it, to be damaged."""
  return pathlib.Path(shutil.copytree(certified, tmp_path / 'mine'))


def verify(run, folder, *arguments, names=('model.pw', 'certificate.json')):
  module, own = running.load('bounds/verify')
  running.parse(own, *arguments)
  files = [str(folder / name) for name in names]
  main = module.main
  module.main = lambda argv: main([*argv, *files])
  try:
    return run('bounds/verify', *arguments)
  finally:
    module.main = main


def assert_refused(result, *words):
  assert result.code == 1
  assert result.out == ''
  assert result.err.startswith('bounds.verify: ')
  assert result.err.count('\n') == 1, result.err
  for word in words:
    assert word in result.err


def change(folder, name='certificate.json', **fields):
  path = folder / name
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_certificate_says_what_was_measured(certified):
  claim = json.loads((certified / 'certificate.json').read_text())
  size = (certified / 'model.pw').stat().st_size
  assert claim['file']['bytes'] == size
  assert claim['file']['bits'] == 8 * size
  terms = claim['bound']
  assert terms['empirical_risk'] + terms['gap'] == pytest.approx(terms['value'])
  assert terms['value'] <= claim['bits_per_byte'] <= terms['value'] + 1e-4
  assert 0 < claim['held_out']['bits_per_byte'] < 20
  page = (certified / 'report.md').read_text()
  assert f'{claim["bits_per_byte"]:.4f}' in page
  assert (certified / 'report.svg').read_text().startswith('<svg')


def test_fresh_process_accepts_with_the_two_files_and_the_texts(
  certified, folder, tmp_path
):
  # Neither the checkpoint nor the prepared corpus is within reach: the texts
  # of the train split are given as files.
  claim = json.loads((certified / 'certificate.json').read_text())
  corpus = base.from_json(claim['stream']['corpus']).open('train')
  names = json.loads((pathlib.Path(corpus.path) / 'names.json').read_text())
  texts = tmp_path / 'texts'
  texts.mkdir()
  for index, name in enumerate(names):
    shutil.copy(folder / 'texts' / name, texts / f'{index:04}.txt')
  claim['stream']['corpus'] = None
  (tmp_path / 'certificate.json').write_text(json.dumps(claim))
  shutil.copy(certified / 'model.pw', tmp_path)
  done = subprocess.run(
    [
      sys.executable, '-m', 'bounds.verify',
      str(tmp_path / 'model.pw'), str(tmp_path / 'certificate.json'),
      f'--stream={texts}/*.txt',
    ],
    cwd=running.ROOT, capture_output=True, text=True,
    env=os.environ | {'HOME': str(tmp_path)},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('accepted: ')
  # Bit for bit the risk of the process that wrote the file.
  assert f'empirical risk {claim["bound"]["empirical_risk"]!r},' in done.stdout


def test_verifier_recomputes_the_same_bits(certified, run):
  result = verify(run, certified)
  assert result.code == 0, result.err
  claim = json.loads((certified / 'certificate.json').read_text())
  assert f'empirical risk {claim["bound"]["empirical_risk"]!r},' in result.out


def test_truncated_file(mine, run):
  running.truncate(mine / 'model.pw')
  assert_refused(verify(run, mine), 'cut short')


def test_flipped_bit(mine, run):
  data = bytearray((mine / 'model.pw').read_bytes())
  data[len(data) // 2] ^= 4
  (mine / 'model.pw').write_bytes(data)
  assert_refused(verify(run, mine), 'damaged', 'checksum')


def test_newer_file(mine, run):
  data = bytearray((mine / 'model.pw').read_bytes())
  data[2] = codec.VERSION + 1
  (mine / 'model.pw').write_bytes(data)
  assert_refused(verify(run, mine), f'version {codec.VERSION + 1}')


def test_newer_certificate(mine, run):
  change(mine, version=7)
  assert_refused(verify(run, mine), 'certificate.json has version 7')


def test_file_too_large_to_be_one(mine, run):
  os.truncate(mine / 'model.pw', 1 << 40)
  assert_refused(verify(run, mine), 'model.pw', f'more than {1 << 28} bytes')


def test_file_of_other_kind(mine, run):
  (mine / 'model.pw').write_bytes(b'\x80\x04 pickled')
  assert_refused(verify(run, mine), 'no model file')
  (mine / 'certificate.json').write_text('[1')
  assert_refused(verify(run, mine), 'is no certificate')


def test_other_stream(mine, run, folder):
  result = verify(run, mine, f'--stream={folder}/texts/[0-4].txt')
  assert_refused(result, 'differs', 'SHA-256')
  result = verify(run, mine, f'--stream={folder}/nowhere')
  assert_refused(result, 'names no file')


@pytest.mark.parametrize('delta', [0.0, 1.0, -0.5, 2.0])
def test_delta_out_of_range(mine, run, delta):
  change(mine, delta=delta)
  assert_refused(verify(run, mine), f'delta={delta}', 'between 0 and 1')


def test_claim_that_the_file_does_not_support(mine, run):
  claim = json.loads((mine / 'certificate.json').read_text())
  change(mine, bits_per_byte=claim['bits_per_byte'] - 0.01)
  assert_refused(verify(run, mine), 'claims', 'supports')
  # Neither above nor below what was found.
  change(mine, bits_per_byte=float('nan'))
  assert_refused(verify(run, mine), 'finite number bits_per_byte')


def test_certificate_of_another_file(mine, run):
  claim = json.loads((mine / 'certificate.json').read_text())
  change(mine, file=claim['file'] | {'sha256': '0' * 64})
  assert_refused(verify(run, mine), 'another file', 'SHA-256')
  change(mine, file=None)
  assert_refused(verify(run, mine), 'no certificate')


@pytest.mark.parametrize('most', ['many', 0, 2.5])
def test_stream_of_impossible_length(mine, run, most):
  claim = json.loads((mine / 'certificate.json').read_text())
  change(mine, stream=claim['stream'] | {'max_bytes': most})
  assert_refused(verify(run, mine), 'is no certificate', f'max_bytes={most!r}')


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (('--delta=1.5',), ('delta=1.5',)),
    (('--alphabet=klingon',), ('--alphabet=klingon', 'ascii')),
    (('--bits=9',), ('--bits=9',)),
    (('--stream=nowhere',), ('--stream=nowhere',)),
    (('--held_out=nowhere',), ('--held_out=nowhere',)),
    (('--minutes=-1',), ('--minutes=-1', 'above 0')),
    (('--stride=99',), ('stride=99',)),
    (('--config=configs/demo.py',), ('either --checkpoint',)),
  ],
)
def test_bad_flags(run, finished, tmp_path, arguments, words):
  given = (f'--checkpoint={finished}', f'--out={tmp_path}', *READING)
  result = run('bounds/__main__', *given, *arguments)
  assert result.code == 1
  assert result.err.startswith('bounds: ')
  for word in words:
    assert word in result.err


@pytest.mark.parametrize(
  'kind', ['checkpoint', pytest.param('config', marks=pytest.mark.slow)]
)
def test_training_on_the_certificate_and_another_stream(
  run, finished, folder, tmp_path, kind
):
  begin = {
    'checkpoint': (f'--checkpoint={finished}',),
    'config': (f'--config={folder}/window.py', '--structure=lora:2'),
  }[kind]
  result = run(
    'bounds/__main__', *begin, f'--out={tmp_path}/c', '--minutes=0.01',
    f'--stream={folder}/texts/*.txt', '--held_out=', '--max_bytes=3000',
    *READING,
  )  # fmt: skip
  assert result.code == 0, result.err
  assert 'was trained on split train, not on' in result.out
  assert verify(run, tmp_path / 'c').code == 0


def test_windows_are_long_where_attention_is_local():
  module, own = running.load('bounds/__main__')
  running.parse(own)
  model = tiny_runs.MODEL
  local = model.clone(masks=(masks.Causal(window=4),))
  assert module._reading(model) == (2048, 1536)
  assert module._reading(local) == (61440, 49152)
  assert module._reading(local.clone(max_length=4096)) == (2048, 1638)
  running.parse(own, '--window=100', '--stride=7')
  assert module._reading(local) == (100, 7)


def test_random_bytes_cost_at_least_eight_bits(run, finished, tmp_path):
  noise = np.random.default_rng(0).integers(256, size=3000).astype(np.uint8)
  (tmp_path / 'noise').write_bytes(noise.tobytes())
  result = run(
    'bounds/__main__', f'--checkpoint={finished}', f'--out={tmp_path}/c',
    f'--stream={tmp_path}/noise', '--held_out=', *READING,
  )  # fmt: skip
  assert result.code == 0, result.err
  claim = json.loads((tmp_path / 'c' / 'certificate.json').read_text())
  assert claim['bits_per_byte'] >= 8
  assert 'VACUOUS' in result.out


def test_ids_without_a_map_to_bytes(finished):
  module, _ = running.load('bounds/__main__')
  config = restore.restore(finished).config
  tokens = dataclasses.replace(
    config, model=config.model.clone(vocabulary_size=300)
  )
  with pytest.raises(ValueError, match='one of 300 ids and not bytes'):
    module._check_model(tokens)


def test_kgram_certificate_on_the_same_texts(run, folder, tmp_path):
  arguments = (
    f'--stream={folder}/texts/*.txt', '--order=0,1', '--least=1,2',
    f'--out={tmp_path}', f'--held_out={folder}/texts/1.txt',
  )  # fmt: skip
  result = run('bounds/kgram', *arguments)
  assert result.code == 0, result.err
  assert result.out.count('bits per byte certified') == 4
  claim = json.loads((tmp_path / 'kgram.json').read_text())
  assert claim['file']['bytes'] == (tmp_path / 'kgram.pk').stat().st_size
  assert 0 < claim['held_out']['bits_per_byte'] < 20
  # Four words: one context says nearly all, so order 1 beats order 0.
  assert claim['counts']['order'] == 1
  names = ('kgram.pk', 'kgram.json')
  assert verify(run, tmp_path, names=names).code == 0
  change(tmp_path, name='kgram.json', bits_per_byte=0.1)
  assert_refused(verify(run, tmp_path, names=names), 'claims 0.1')
  bad = run('bounds/kgram', '--order=one')
  assert (bad.code, bad.err) == (
    1, 'bounds.kgram: --order=one must be numbers, as 1,2,3\n'
  )  # fmt: skip


def test_sweep_over_bits_and_prefixes_goes_on(
  run, finished, tmp_path, monkeypatch
):
  module, _ = running.load('bounds/__main__')
  monkeypatch.setattr(module.sweep, 'BITS', (1.0, 4.0))
  arguments = (
    f'--checkpoint={finished},{finished}', '--sweep', f'--out={tmp_path}',
    *READING,
  )  # fmt: skip
  result = run('bounds/__main__', *arguments)
  assert result.code == 0, result.err
  files = json.loads((tmp_path / 'sweep.json').read_text())['files']
  rows = [row for several in files.values() for row in several]
  assert len(rows) == 2 * len(sweep.SHARES)
  assert rows[0]['file_bytes'] < rows[-1]['file_bytes']
  for row in rows:
    assert row['risk'] < row['betting'] < row['azuma']
    assert 0 < row['held_out'] < 20
  assert (tmp_path / 'sweep.md').read_text().count('\n') == len(rows) + 2
  for name in ('bits', 'size', 'stream'):
    assert (tmp_path / f'{name}.svg').read_text().startswith('<svg')
  # The last file has a certificate of its own, for which the row speaks.
  name = list(files)[-1]
  names = (f'{name}.pw', f'{name}.json')
  assert verify(run, tmp_path, names=names).code == 0
  claim = json.loads((tmp_path / names[1]).read_text())
  assert claim['bound']['value'] == pytest.approx(rows[-1]['betting'])
  # What was made is not made again, and other settings are not mixed in.
  stored = json.loads((tmp_path / 'sweep.json').read_text())
  del stored['files'][name]
  (tmp_path / 'sweep.json').write_text(json.dumps(stored))
  again = run('bounds/__main__', *arguments)
  assert again.out.count('bits per byte certified') == 1
  assert json.loads((tmp_path / 'sweep.json').read_text())['files'] == files
  other = run('bounds/__main__', *arguments, '--delta=0.1')
  assert 'sweep of other settings' in other.err


@pytest.mark.slow
def test_sweep_over_structures_at_one_file_size(
  run, folder, tmp_path, monkeypatch
):
  module, _ = running.load('bounds/__main__')
  kinds = module.equal_size.KINDS
  monkeypatch.setattr(module.equal_size, 'KINDS', kinds[:1] + kinds[4:7:2])
  result = run(
    'bounds/__main__', f'--config={folder}/good.py', '--sweep', '--minutes=0.1',
    '--bits=3', f'--out={tmp_path}', *READING,
  )  # fmt: skip
  assert result.code == 0, result.err
  files = json.loads((tmp_path / 'sweep.json').read_text())['files']
  sizes = [rows[-1]['file_bytes'] for rows in files.values()]
  assert len(sizes) == 3
  assert max(sizes) < 1.1 * min(sizes)


def test_several_checkpoints_are_for_a_sweep(run, finished, tmp_path):
  alone = run(
    'bounds/__main__', f'--checkpoint={finished},{finished}',
    f'--out={tmp_path}', *READING,
  )  # fmt: skip
  assert 'one is certified at a time' in alone.err
