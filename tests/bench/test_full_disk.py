"""A run on a disk that is too small, and then a little larger, and so on."""

import subprocess

import pytest

from bench import lives
from bench import soak


def mount(place, *options):
  return subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', ','.join(options), 'tmpfs', str(place)],
    capture_output=True,
  ).returncode


@pytest.fixture
def disk(tmp_path):
  place = tmp_path / 'disk'
  place.mkdir()
  if mount(place, 'size=8k'):
    pytest.skip('only root may mount a small disk')
  yield place
  subprocess.run(['umount', str(place)], check=True)


@pytest.mark.slow
def test_a_disk_of_every_size(tmp_path, disk):
  """One sentence each time, nothing lost, and the run of a large disk."""
  experiment = soak._write_experiment(tmp_path, 12)
  whole = soak._begin(tmp_path, experiment, 'whole', 12)
  assert lives.live(whole, 'forked', 0, None).code == 0
  run = soak._begin(disk, experiment, 'run', 12)
  run = run._replace(logs=tmp_path / 'logs')
  run.logs.mkdir()
  said, size = [], 8
  for number in range(100):
    assert not mount(disk, 'remount', f'size={size}k')
    life = lives.live(run, 'forked', number, None)
    if not life.code:
      break
    assert not life.lost
    text = life.log.read_text()
    assert life.code == 1 and 'Traceback' not in text, text
    last = text.splitlines()[-1]
    assert last.startswith('train.py: ') and 'No space left' in last, text
    said.append(last)
    size += size // 3
  assert len({line.split(' (')[0] for line in said}) >= 3, said
  assert soak._outcome(run) == soak._outcome(whole)
