"""python -m bounds and bounds.verify on the run of a tiny network."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from bounds import codec
from configs import base
from configs import restore
from configs import sweep
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
  assert_refused(verify(run, mine), f'{1 << 40} bytes', 'at most')


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
  assert_refused(verify(run, mine), 'claims nan', 'supports')


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
    f'--out={tmp_path}',
  )  # fmt: skip
  result = run('bounds/kgram', *arguments)
  assert result.code == 0, result.err
  assert result.out.count('bits per byte certified') == 4
  claim = json.loads((tmp_path / 'kgram.json').read_text())
  assert claim['file']['bytes'] == (tmp_path / 'kgram.pk').stat().st_size
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


def test_sweep_over_bits_networks_and_prefixes(run, finished, tmp_path):
  result = run(
    'bounds/__main__', f'--checkpoint={finished},{finished}', '--sweep',
    f'--out={tmp_path}', *READING,
  )  # fmt: skip
  assert result.code == 0, result.err
  rows = json.loads((tmp_path / 'sweep.json').read_text())
  assert len(rows) == 2 * len(sweep.BITS) * len(sweep.SHARES)
  half = len(rows) // 2
  assert rows[:half] == rows[half:]
  sizes = [row['file_bytes'] for row in rows[:half:4]]
  assert sizes == sorted(sizes)
  for row in rows:
    assert row['risk'] < row['betting'] < row['azuma']
  assert (tmp_path / 'sweep.md').read_text().count('\n') == len(rows) + 2
  alone = run(
    'bounds/__main__', f'--checkpoint={finished},{finished}',
    f'--out={tmp_path}', *READING,
  )  # fmt: skip
  assert 'one is certified at a time' in alone.err
