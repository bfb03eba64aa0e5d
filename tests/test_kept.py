"""Results that outlive the command that found them."""

import errno
import json
import math
import os

import pytest

from configs import kept


def test_results_of_other_settings_are_refused(tmp_path):
  setting = {
    'config': {'class': 'a.B', 'fields': {'rates': [1, 2], 'base': None}},
    'steps': 5,
  }
  file = kept.Kept(tmp_path / 'new' / 'rates.json', setting, label='losses')
  assert file.read(float) == {}
  file.write({'a': 1.5, 'b': 2})
  assert file.read(float) == {'a': 1.5, 'b': 2.0}
  # Tuples are lists once they have been stored.
  same = {**setting, 'steps': 5}
  same['config'] = {'class': 'a.B', 'fields': {'rates': (1, 2), 'base': None}}
  assert kept.Kept(file.path, same, label='losses').read(float)
  for change, words in (
    ({'steps': 6}, r'steps: 5 != 6'),
    ({'more': 'x' * 50}, r"more: nothing != 'xxx.*xx\.\.\.\)"),
    (
      {'config': {'class': 'a.B', 'fields': {'rates': [1, 3], 'base': None}}},
      r'\(config\.rates\.1: 2 != 3\)',
    ),
    (
      {'config': {'class': 'a.B', 'fields': {'rates': [1], 'base': None}}},
      r'\(config\.rates\.1: 2 != nothing\)',
    ),
  ):
    other = kept.Kept(file.path, setting | change, label='losses')
    with pytest.raises(ValueError, match=f'rates.json is a sweep of .*{words}'):
      other.read(float)


@pytest.mark.parametrize(
  'text', ['', '[]', '{"setting": 1}', '{"setting": 1, "results": {"a": "x"}}']
)
def test_what_is_no_such_file_is_named(text, tmp_path):
  path = tmp_path / 'rates.json'
  path.write_text(text)
  with pytest.raises(
    ValueError, match=r'rates\.json is no sweep .* another --out$'
  ):
    kept.Kept(path, 1, flag='--out').read(float)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
  file = kept.Kept(tmp_path / 'rates.json', {'steps': 3})
  file.write({'a': 1.0})

  def fail(_):
    raise OSError(errno.ENOSPC, 'no space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='no space'):
      file.write({'a': 1.0, 'b': 2.0})
  assert file.read(float) == {'a': 1.0}
  assert json.loads(file.path.read_text())['setting'] == {'steps': 3}
  assert math.isclose(file.read(lambda x: 2 * x)['a'], 2.0)
