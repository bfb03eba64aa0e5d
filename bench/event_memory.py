"""Peak memory and time of preparing files of events, by their size.

python -m bench.event_memory --events=500000,1000000,2000000 --partitions=1,16

Synthetic card users are written to a Parquet file, block by block, and prepared
in a process of their own. With partitions the peak hardly grows with the file.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow.parquet as pq
from absl import app
from absl import flags

from data import event_files
from data import event_source

_BLOCK = 512
_ROOT = pathlib.Path(__file__).parent.parent


class Prepared(NamedTuple):
  """What preparing took: seconds, bytes above those before it; content hash."""

  seconds: float
  bytes: int
  content: str


def write_cards(path: pathlib.Path, users: int, events: int = 120) -> int:
  """Writes so many card users' events as Parquet; returns their number."""
  stream = event_source.CardStream(events=events)
  writer = None
  for first in range(0, users, _BLOCK):
    count = min(_BLOCK, users - first)
    table = stream.table(stream.draw(first, count)[0], first)
    # Dictionaries differ from block to block.
    table = table.set_column(
      0, 'user', table['user'].cast('string')
    ).combine_chunks()
    if writer is None:
      writer = pq.ParquetWriter(path, table.schema)
    writer.write_table(table)
  writer.close()
  return users * events


def measure(
  path: pathlib.Path, folder: pathlib.Path, partitions: int
) -> Prepared:
  """Prepares a file of card users in a process of its own."""
  found = subprocess.run(
    [sys.executable, '-m', 'bench.event_memory', str(path), str(folder),
     str(partitions)],
    cwd=_ROOT, capture_output=True, text=True, check=False,
    # One allocator that gives memory back tells what is needed.
    env=os.environ | {'ARROW_DEFAULT_MEMORY_POOL': 'system'},
  )  # fmt: skip
  if found.returncode:
    raise RuntimeError(found.stderr[-2000:])
  return Prepared(*json.loads(found.stdout.splitlines()[-1]))


def _prepare(path: str, folder: str, partitions: str) -> None:
  """Prints what `measure` gives."""
  source = event_files.Events(
    path,
    event_source.CARD_SCHEMA.to_json(),
    partitions=int(partitions),
    directory=folder,
  )
  before = _peak()
  usage = resource.getrusage(resource.RUSAGE_SELF)
  began = usage.ru_utime + usage.ru_stime
  prepared = source.prepare()
  usage = resource.getrusage(resource.RUSAGE_SELF)
  seconds = usage.ru_utime + usage.ru_stime - began
  metadata = json.loads((prepared / 'metadata.json').read_text('utf-8'))
  print(json.dumps([seconds, _peak() - before, metadata['content_sha256']]))


def _peak() -> int:
  """Bytes of memory that this process has had at most; Linux only.

  ru_maxrss would begin with the peak of the process that started this one.
  """
  status = pathlib.Path('/proc/self/status').read_text('utf-8')
  lines = dict(line.split(':', 1) for line in status.splitlines())
  return 1024 * int(lines['VmHWM'].split()[0])


def main(arguments: Sequence[str]) -> None:
  if len(arguments) == 4:
    _prepare(*arguments[1:])
    return
  print('| events | MB of the file | partitions | MB | CPU s |\n|' + '---|' * 5)
  for events in map(int, _EVENTS.value):
    with tempfile.TemporaryDirectory() as name:
      path = pathlib.Path(name) / 'cards.parquet'
      written = write_cards(path, -(-events // 120))
      size = path.stat().st_size
      for partitions in map(int, _PARTITIONS.value):
        found = measure(path, pathlib.Path(name) / str(partitions), partitions)
        print(
          f'| {written:,} | {size / 1e6:.1f} | {partitions} |'
          f' {found.bytes / 1e6:.0f} | {found.seconds:.1f} |',
          flush=True,
        )


if __name__ == '__main__':
  _EVENTS = flags.DEFINE_list(
    'events', ['500000', '1000000', '2000000'], 'Sizes of files.'
  )
  _PARTITIONS = flags.DEFINE_list('partitions', ['1', '16'], 'Powers of 2.')
  app.run(main)
