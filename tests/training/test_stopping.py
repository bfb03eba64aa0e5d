"""SIGTERM, asked for by one process or by one of several."""

import os
import pathlib
import signal
import subprocess
import sys

from tests import ports
from training import stopping

ROOT = pathlib.Path(__file__).resolve().parents[2]

STEPS = """
import sys, time
import jax
from training import stopping
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
with stopping.stop_signal() as asked:
  for step in range(30000):
    if asked(step):
      print('stopped at', step, flush=True)
      break
    if step == 3:
      print('ready', flush=True)
    time.sleep(0.02 * (1 + int(sys.argv[2])))
"""


def test_one_process_remembers_being_asked():
  before = signal.getsignal(signal.SIGTERM)
  with stopping.stop_signal() as asked:
    assert not asked(1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert asked(1)
    assert asked(2)
  assert signal.getsignal(signal.SIGTERM) is before


def test_processes_stop_at_one_step():
  address = f'127.0.0.1:{ports.free()}'
  children = [
    subprocess.Popen(
      [sys.executable, '-c', STEPS, address, str(number)], cwd=ROOT,
      stdout=subprocess.PIPE, text=True,
    )
    for number in range(2)
  ]  # fmt: skip
  try:
    for child in children:
      assert child.stdout.readline() == 'ready\n'
    children[1].terminate()
    said = [child.communicate(timeout=600)[0] for child in children]
  finally:
    for child in children:
      child.kill()
  assert said[0].startswith('stopped at ')
  assert said[0] == said[1]
