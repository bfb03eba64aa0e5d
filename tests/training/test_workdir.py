import json
import os
import pathlib
import stat
import subprocess
import sys

import pytest

from training import manifest
from training import workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = {'class': 'configs.base.Config', 'fields': {'steps': 3, 'rate': None}}

HOLD = """
import sys, os, time
from training import workdir
with workdir.hold(sys.argv[1]):
  print(os.getpid(), flush=True)
  time.sleep(60)
"""


def assert_refused(path: pathlib.Path, message: str) -> None:
  with pytest.raises(ValueError, match=message), workdir.hold(path):
    pass


def test_second_run_is_refused_until_the_first_dies(
  tmp_path: pathlib.Path,
) -> None:
  child = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path)], cwd=ROOT,
    stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  try:
    holder = child.stdout.readline().strip()
    assert_refused(tmp_path, f'in use by process {holder} on')
  finally:
    child.kill()
    child.communicate()
  with workdir.hold(tmp_path):
    assert_refused(tmp_path, f'in use by process {os.getpid()} on')
  with workdir.hold(tmp_path):
    pass


def test_config_file(tmp_path: pathlib.Path) -> None:
  run = tmp_path / 'new' / 'run'
  assert workdir.read_config(run) is None
  workdir.write_config(run, CONFIG)
  assert workdir.read_config(run) == CONFIG
  assert [path.name for path in run.iterdir()] == ['config.json']
  with pytest.raises(TypeError):
    workdir.write_config(run, {'x': object()})
  assert workdir.read_config(run) == CONFIG
  (run / 'config.json').write_text(json.dumps(CONFIG)[:-3])
  with pytest.raises(ValueError, match=r'config\.json is not valid JSON'):
    workdir.read_config(run)


def test_a_pipe_is_written_to_and_stays(tmp_path):
  """A rename would put a file in the place of /dev/null for everybody."""
  pipe = tmp_path / 'pipe'
  os.mkfifo(pipe)
  reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
  manifest.write_file(pipe, 'text')
  assert os.read(reader, 9) == b'text'
  os.close(reader)
  assert stat.S_ISFIFO(pipe.stat().st_mode)
  assert [path.name for path in tmp_path.iterdir()] == ['pipe']
