"""A small table of events, as CSV and prepared."""

import csv

import numpy as np
import pyarrow as pa

from data import event_files
from data import event_partitions
from data import event_schema

FIELDS = (
  event_schema.Field('shop', 'id'),
  event_schema.Field('amount', 'number'),
  event_schema.Field('zip', 'category'),
  event_schema.Field('online', 'bool'),
  event_schema.Field('bad', 'label'),
)
SCHEMA = event_schema.Schema(entity='user', time='when', fields=FIELDS)
HEADER = ['user', 'when', 'shop', 'amount', 'zip', 'online', 'bad', 'note']


def rows(users=40, events=12):
  rng = np.random.default_rng(0)
  made = []
  for user in range(users):
    for event in range(events):
      made.append(
        [
          f'u{user}',
          f'2020-{event % 12 + 1:02d}-{user % 28 + 1:02d} 08:{event:02d}:00',
          f's{rng.integers(9)}',
          f'${rng.integers(1, 3000)}.{rng.integers(100):02d}',
          f'{rng.integers(60):05d}',
          ['Yes', 'No'][rng.integers(2)],
          ['no', 'yes'][int(rng.random() < 0.3)],
          'x, "y"',
        ]
      )
  rng.shuffle(made)
  return made


def write(path, lines, header=HEADER):
  with path.open('w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(header)
    writer.writerows(lines)
  return path


def source(tmp_path, path, schema=SCHEMA, **fields):
  directory = str(tmp_path / 'cache')
  return event_files.Events(
    str(path), schema.to_json(), directory=directory, **fields
  )


def files_of(folder):
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def trains(user):
  key = event_partitions.keys(pa.chunked_array([[user]]))[0].as_py()
  return key < 0.6 * 2**64
