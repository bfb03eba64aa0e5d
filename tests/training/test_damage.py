"""Checkpoints of which a file is gone, short or changed, or a folder moved."""

import logging
import os
import pathlib
import shutil
from typing import Any

import pytest

from tests.training.test_checkpoint import abstract
from tests.training.test_checkpoint import assert_same
from tests.training.test_checkpoint import make_state
from tests.training.test_checkpoint import opened
from tests.training.test_checkpoint import save_steps
from training import checkpoint


def truncate(path: pathlib.Path) -> None:
  os.truncate(path, path.stat().st_size // 2)


def flip(path: pathlib.Path) -> None:
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def empty(path: pathlib.Path) -> None:
  os.truncate(path, 0)


def make_folder(path: pathlib.Path) -> None:
  path.unlink()
  path.mkdir()


@pytest.mark.parametrize(
  'damage',
  [
    truncate,
    flip,
    pathlib.Path.unlink,
    pytest.param(empty, marks=pytest.mark.slow),
    pytest.param(make_folder, marks=pytest.mark.slow),
  ],
)
def test_damage_of_every_file(
  tmp_path: pathlib.Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
  caplog.set_level(logging.WARNING, 'absl')
  whole = tmp_path / 'whole'
  save_steps(whole, 1, 2)
  newest = whole / 'checkpoints' / '2'
  files = [p.relative_to(whole) for p in newest.rglob('*') if p.is_file()]
  assert len(files) > 6
  for number, name in enumerate(files):
    if not (whole / name).stat().st_size and damage in (truncate, flip, empty):
      continue
    run = tmp_path / str(number)
    shutil.copytree(whole, run)
    damage(run / name)
    caplog.clear()
    params = checkpoint.load_params(run)
    assert params.step == 1
    assert_same(params.params, make_state(1)['params'])
    assert (run / 'checkpoints' / '2').exists()
    with opened(run) as checkpoints:
      restored = checkpoints.restore(abstract(make_state(1)))
      assert (restored.step, restored.extra) == (1, {'next': 1})
      assert_same(restored.state, make_state(1))
      assert checkpoints.steps() == [1]
      checkpoints.save(2, make_state(2))
    log = caplog.messages[-1]
    assert 'checkpoint 2 in' in log and 'using checkpoint 1 instead' in log
    assert name.name in log
    assert checkpoint.load_params(run).step == 2
    assert not list((run / 'checkpoints').glob('*.*'))


@pytest.mark.parametrize('folder', ['arrays', 'arrays/params', '.'])
def test_damage_of_folders(
  tmp_path: pathlib.Path, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
  save_steps(tmp_path, 1, 2)
  newest = tmp_path / 'checkpoints' / '2'
  place = newest / folder
  if not place.exists():  # How Orbax lays out arrays is its own affair.
    place = next(p for p in sorted((newest / 'arrays').iterdir()) if p.is_dir())
  shutil.rmtree(place)
  if folder == '.':
    newest.write_text('a file')
  loaded = checkpoint.load_params(tmp_path)
  assert loaded.step == 1
  assert_same(loaded.params, make_state(1)['params'])
  assert 'using checkpoint 1 instead' in caplog.messages[-1]


def test_a_checkpoint_under_the_name_of_another(
  tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
  save_steps(tmp_path, 1, 2)
  root = tmp_path / 'checkpoints'
  shutil.copytree(root / '1', root / '9')
  (root / '007').mkdir()
  assert checkpoint.load_params(tmp_path).step == 2
  assert 'manifest.json is that of checkpoint 1' in caplog.messages[-1]


def test_newest_is_the_highest_step_whatever_the_clocks_say(
  tmp_path: pathlib.Path,
) -> None:
  """Of several machines, or of one whose clock was put right."""
  save_steps(tmp_path, 1, 2)
  with opened(tmp_path, keep=3) as checkpoints:
    checkpoints.restore(abstract(make_state(1)))
    checkpoints.save(3, make_state(3))
  for step, year in ((1, 2090), (2, 1980), (3, 1971)):
    when = (year - 1970) * 31_557_600
    for path in (tmp_path / 'checkpoints' / str(step)).rglob('*'):
      os.utime(path, (when, when))
    os.utime(tmp_path / 'checkpoints' / str(step), (when, when))
  assert checkpoint.load_params(tmp_path).step == 3
  with opened(tmp_path, keep=2) as checkpoints:
    assert checkpoints.restore(abstract(make_state(1))).step == 3
    checkpoints.save(4, make_state(4))
    checkpoints.wait()
    assert checkpoints.steps() == [3, 4]
