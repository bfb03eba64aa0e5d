"""A model that is read with Lambda-shaped attention, by the commands."""

import json

import pytest


def test_a_model_is_read_with_few_keys_as_it_is(run, copy):
  scores = {}
  for name, flags in (
    ('plain', []),
    ('few', ['--lambda=1,2']),
    ('all', ['--lambda=1,32']),
  ):
    out = copy / f'{name}.json'
    result = run('eval', f'--checkpoint={copy}', f'--out={out}', *flags)
    assert result.code == 0, result.err
    scores[name] = json.loads(out.read_text())['eval/test/bits_per_byte']
  # Rows of 32 bytes have no key that is further away.
  assert scores['all'] == pytest.approx(scores['plain'], rel=1e-5)
  assert abs(scores['few'] - scores['plain']) > 1e-4
  flags = ['--num_bytes=80', '--prompt=alpha', '--lambda=2,6']
  result = run('sample', f'--checkpoint={copy}', *flags)
  assert result.code == 0, result.err
  assert result.out.startswith('alpha')


@pytest.mark.parametrize(
  ('flag', 'words'),
  [
    ('--lambda=ten', '--lambda=ten must be two numbers'),
    ('--lambda=0,4', 'mask.n_global=0 must be >= 1'),
    ('--lambda=4,0', 'mask.n_local=0 must be >= 1'),
    ('--lambda=4,33', 'mask.n_local=33 exceeds the cache'),
    ('--lambda=33,4', 'mask.n_global=33 exceeds the cache'),
  ],
)
@pytest.mark.parametrize('command', ['eval', 'sample'])
def test_flags_that_are_no_mask(run, copy, command, flag, words):
  result = run(command, f'--checkpoint={copy}', flag)
  assert result.code
  assert words in result.err
