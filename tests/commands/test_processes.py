"""The commands as the shell starts them, and which errors they explain."""

import contextlib
import json
import linecache
import os
import subprocess
import sys

import pytest

from configs import command
from tests.commands import running


def shell(*arguments):
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=running.ROOT,
    env=os.environ | {'JAX_NUM_CPU_DEVICES': '8'},
    capture_output=True,
    text=True,
    timeout=500,
  )


def test_real_process_says_one_line(folder, tmp_path):
  result = shell(
    'train.py', f'--config={folder}/good.py', f'--workdir={tmp_path}/run',
    f'--set=data.source.pattern={tmp_path}/*.txt',
  )  # fmt: skip
  assert result.returncode == 1
  running.assert_refused(
    running.Result(1, result.stdout, result.stderr), 'train', 'no file'
  )
  assert not list(tmp_path.iterdir())


def test_real_process_falls_back_with_one_warning(copy):
  running.truncate(copy / 'checkpoints' / '10' / 'manifest.json')
  result = shell('eval.py', f'--checkpoint={copy}')
  assert result.returncode == 0
  assert result.stderr.count('\n') == 1
  assert 'checkpoint 10 in' in result.stderr
  assert 'model at step 8 ' in result.stdout
  assert json.loads((copy / 'report.json').read_text())['step'] == 8


def test_real_process_with_a_long_prompt(finished):
  result = shell(
    'sample.py', f'--checkpoint={finished}', '--prompt=' + 'x' * 40
  )
  assert result.returncode == 1
  running.assert_refused(
    running.Result(1, result.stdout, result.stderr),
    'sample',
    'window of 32; shorten',
  )


@pytest.mark.parametrize(
  ('name', 'flag', 'words'),
  [
    ('train', '--confg=x', "flag 'confg'. Did you mean: config"),
    # Values are judged in this process by test_checkpoint_input as well.
    pytest.param(
      'eval',
      '--split=tset',
      'value should be one of <train|validation|test>',
      marks=pytest.mark.slow,
    ),
    ('sample', '--num_bytes=0', '--num_bytes=0'),
    ('train', 'configs/tiny.py', "'configs/tiny.py' is no flag"),
  ],
)
def test_real_process_with_a_wrong_flag(name, flag, words):
  result = shell(f'{name}.py', flag)
  assert result.returncode == 1
  running.assert_refused(
    running.Result(1, result.stdout, result.stderr), name, words, '--help'
  )


def test_bug_in_an_experiment_keeps_its_traceback(run, folder, tmp_path):
  with pytest.raises(ValueError, match='invalid literal for int'):
    running.train(run, folder, tmp_path / 'run', config='broken')


@pytest.mark.parametrize(
  'module, line, ends',
  [
    ('data.made_up', "raise ValueError('a\\n  b')", True),
    ('training.made_up', "raise FloatingPointError('a b')", True),
    ('data.made_up', 'int("x")', False),
    ('numpy.made_up', "raise ValueError('a b')", False),
    ('data.made_up', "raise KeyError('a b')", False),
    ('data.made_up', "raise OSError('a b')", True),
    ('data.made_up', "open('/proc/none')", True),
  ],
)
def test_only_errors_of_ours_become_a_sentence(module, line, ends):
  name = f'<{module}: {line}>'
  linecache.cache[name] = (len(line), None, [line], name)
  code = compile(line, name, 'exec')
  with contextlib.ExitStack() as stack:
    caught = stack.enter_context(pytest.raises(BaseException))
    with command.explained('train.py'):
      exec(code, {'__name__': module})
  assert isinstance(caught.value, SystemExit) == ends
  if ends and 'proc' not in line:
    assert caught.value.code == 'train.py: a b'
