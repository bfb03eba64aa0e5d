"""Commands one after the other in one process of a job, watched by a test.

python -m tests.commands.in_job '{"commands": [["train", "--config=..."]]}'

record: file that gets one line for every batch, hashes of this process's rows.
signal, at, after: the signal it gives itself before its batch number `at`, once
the path `after` is there.
"""

import hashlib
import json
import os
import pathlib
import sys
import time

from absl import app

from configs import cluster
from tests.commands import running
from training import sharding


def watch(record=None, signal=None, at=None, after=None):
  """Makes training write down its batches, and end where it is told to."""
  put, count = sharding.put_batch, 0

  def watched(batch, where):
    nonlocal count
    if count == at:
      while not pathlib.Path(after).exists():
        time.sleep(0.05)
      os.kill(os.getpid(), signal)
      time.sleep(3)  # JAX looks once a second whether a SIGTERM has come.
    count += 1
    if record:
      rows = [hashlib.sha256(row.tobytes()).hexdigest() for row in batch['ids']]
      with open(record, 'a', encoding='utf-8') as file:
        file.write(json.dumps(rows) + '\n')
    return put(batch, where)

  sharding.put_batch = watched


def keep_own_lines():
  """Leaves stdout to Python: libraries' threads print into our lines."""
  sys.stdout = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(2, 1)


def main(argv):
  keep_own_lines()
  options = json.loads(argv[1])
  commands = options.pop('commands')
  watch(**options)
  cluster._SECONDS = 1000  # On a busy machine a process may be silent for long.
  for name, *arguments in commands:
    module, own = running.load(name)
    running.parse(own, *arguments)
    code = module.main([])
    if code:
      sys.exit(code)


if __name__ == '__main__':
  app.run(main)
