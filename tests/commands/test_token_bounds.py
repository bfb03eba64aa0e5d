"""python -m bounds and bounds.verify on an imported model over tokens."""

import json
import math

import jax
import numpy as np
import pytest

from bounds import subsample
from bounds import token_file
from configs import base
from configs import predictor
from data import codec
from data import text
from data import tokenizer_json
from models import forward
from tests.commands import running
from tests.commands import test_token_import

READING = ('--window=64', '--stride=48', '--bits=4')


@pytest.fixture(scope='module')
def imported(folder, tmp_path_factory):
  path = tmp_path_factory.mktemp('tokens')
  source = test_token_import.save('characters', path / 'source')
  module, own = running.load('convert')
  running.parse(
    own, f'--config={folder}/good.py', f'--source={source}',
    f'--workdir={path}/run',
  )  # fmt: skip
  module.main([])
  return path / 'run'


@pytest.fixture(
  scope='module',
  params=[('--draws=300',), pytest.param((), marks=pytest.mark.slow)],
)
def certified(imported, request):
  module, own = running.load('bounds/__main__')
  out = imported.parent / f'certified{len(request.param)}'
  running.parse(
    own, f'--checkpoint={imported}', f'--out={out}', *READING, *request.param
  )
  module.main([])
  return out


def verify(run, folder, *arguments):
  module, own = running.load('bounds/verify')
  running.parse(own, *arguments)
  files = [str(folder / name) for name in ('model.pw', 'certificate.json')]
  main = module.main
  module.main = lambda argv: main([*argv, *files])
  try:
    return run('bounds/verify', *arguments)
  finally:
    module.main = main


def losses(claim, folder):
  """Bits of every token of the stream, document by document in one row each.

  Documents are longer than the window here, where context is cut; so only
  those of the first window of each are compared.
  """
  spelling = base.from_json(claim['tokens'])
  data = (folder / 'model.pw').read_bytes()
  decoded = predictor.decode(token_file.unpack(data, spelling.digest))
  corpus = base.from_json(claim['stream']['corpus']).open('train')
  apply = jax.jit(forward.pure(decoded.model))
  alpha = claim['smoothing']['base']
  found, places, place = [], [], 0
  for document in corpus:
    ids = [*spelling.encode(document), spelling.stops[0]]
    row = np.zeros((1, 64), np.int32)
    row[0, :] = [spelling.bos, *ids[:63]]
    logits_TV = np.asarray(
      apply(decoded.params, row, np.ones_like(row))[0], np.float64
    )
    p_TV = np.exp(logits_TV - logits_TV.max(-1, keepdims=True))
    p_TV /= p_TV.sum(-1, keepdims=True)
    entropy_T = -(p_TV * np.log2(p_TV)).sum(-1)
    alpha_T = alpha * 2 ** (-claim['smoothing']['slope'] * entropy_T)
    alpha_T = np.minimum(alpha_T, 0.9)
    p_T = p_TV[np.arange(64), ids[:64]]
    found.append(-np.log2((1 - alpha_T) * p_T + alpha_T / p_TV.shape[1]))
    places.append(place + np.arange(64))
    place += len(ids)
  assert place == claim['stream']['symbols']
  return np.concatenate(found), np.concatenate(places)


def test_certificate_says_what_was_measured(certified):
  claim = json.loads((certified / 'certificate.json').read_text())
  size = (certified / 'model.pw').stat().st_size
  assert claim['file']['bits'] == 8 * size
  rate = claim['stream']['symbols'] / claim['stream']['bytes']
  assert 0.9 < rate < 1.1
  terms = claim['bound']
  assert terms['empirical_risk'] + terms['gap'] == pytest.approx(terms['value'])
  assert terms['value'] <= claim['bits_per_byte'] <= terms['value'] + 1e-4
  assert claim['bits_per_token'] == pytest.approx(
    claim['bits_per_byte'] / rate, abs=2e-4
  )
  assert claim['vacuous_from'] == pytest.approx(math.log2(320) * rate)
  assert terms['gap'] > 0
  assert 0 < claim['held_out']['bits_per_byte'] < 20
  page = (certified / 'report.md').read_text()
  assert f'{claim["bits_per_token"]:.4f} bits per token' in page


def test_drawn_bound_is_that_of_the_same_losses(certified):
  """By hand, from logits of rows that were made here."""
  claim = json.loads((certified / 'certificate.json').read_text())
  losses_N, places_N = losses(claim, certified)
  draw = claim['draw']
  if draw is None:
    pytest.skip('all tokens are read')
  tokens, rate = claim['stream']['symbols'], claim['stream']['symbols']
  rate /= claim['stream']['bytes']
  rng = np.random.default_rng(draw['seed'])
  drawn = np.sort(rng.choice(tokens, draw['count'], replace=False))
  assert claim['smoothing']['slope'] == 0
  # The documents are longer than a window, so the risk is near, not equal.
  near = losses_N[np.isin(places_N, drawn)]
  assert claim['bound']['empirical_risk'] / rate == pytest.approx(
    near.mean(), rel=0.15
  )
  stream, chosen = subsample.split_delta(0.05, 300, tokens)
  assert stream + chosen == pytest.approx(0.05)
  cost = (
    claim['file']['bits'] + math.log2(len(subsample.SLACKS))
  ) * math.log(2) - math.log(stream)
  assert claim['bound']['cost'] == pytest.approx(cost / tokens)


def test_verifier_accepts_and_recomputes_the_same_bits(certified, run):
  result = verify(run, certified)
  assert result.code == 0, result.err
  claim = json.loads((certified / 'certificate.json').read_text())
  assert f'empirical risk {claim["bound"]["empirical_risk"]!r},' in result.out


def change(folder, path, **fields):
  path.mkdir()
  claim = json.loads((folder / 'certificate.json').read_text())
  (path / 'certificate.json').write_text(json.dumps(claim | fields))
  (path / 'model.pw').write_bytes((folder / 'model.pw').read_bytes())
  return path


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'tokens': None}, 'holds no tokenizer'),
    ({'tokens': base.to_json(codec.Bytes())}, 'holds no tokenizer'),
    ({'tokens': base.to_json(text.Text())}, 'holds no tokenizer'),
    ({'draw': {'count': 0, 'seed': 1}}, 'has draw={"count": 0'),
    ({'draw': {'count': 3, 'seed': 'x'}}, 'a count of 1 to'),
    ({'bits_per_byte': 0.5}, 'claims 0.5 bits per byte'),
  ],
)
def test_claims_that_do_not_hold(certified, run, tmp_path, fields, words):
  result = verify(run, change(certified, tmp_path / 'mine', **fields))
  assert result.code == 1
  assert words in result.err
  assert result.err.count('\n') == 1


def test_file_is_bound_to_its_tokenizer(certified, run, tmp_path):
  claim = json.loads((certified / 'certificate.json').read_text())
  fields = claim['tokens']['fields']
  path = tmp_path / 'tokenizer.json'
  path.write_text(test_token_import.KINDS['bytes'])
  other = tokenizer_json.pack(path.read_bytes())
  tokens = claim['tokens'] | {'fields': fields | {'packed': other}}
  result = verify(run, change(certified, tmp_path / 'mine', tokens=tokens))
  assert result.code == 1
  assert 'file predicts tokens of the tokenizer' in result.err


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--minutes=1'], '--minutes is for networks over bytes'),
    (['--structure=lora:2'], '--structure is for networks over bytes'),
    (['--sweep'], '--sweep is for networks over bytes'),
    (['--draws=100000'], '--draws=100000 exceeds the'),
    (['--bits=-1'], 'bits=-1'),
  ],
)
def test_what_tokens_cannot_have(imported, run, tmp_path, flags, words):
  result = run(
    'bounds/__main__', f'--checkpoint={imported}', f'--out={tmp_path}/out',
    *READING, *flags,
  )  # fmt: skip
  assert result.code == 1
  assert words in result.err


def test_bytes_are_all_read(finished, run, tmp_path):
  result = run(
    'bounds/__main__', f'--checkpoint={finished}', f'--out={tmp_path}/out',
    '--draws=10',
  )  # fmt: skip
  assert result.code == 1
  assert '--draws is for networks over tokens' in result.err
