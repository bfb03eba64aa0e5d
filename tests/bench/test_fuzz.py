"""The fuzzer finds what it looks for, and finds nothing in our readers."""

import contextlib
import gzip
import hashlib
import io
import json
import pathlib
import random
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench import fuzz
from bench import fuzz_files
from bench import fuzz_texts
from bench import mutations
from bounds import codec
from bounds import rangecoder
from configs import base
from models import lm

# Inputs of the slow targets; of all others _INPUTS.
_FEW = {'network': 6, 'checkpoint': 5, 'csv': 15, 'csv.gz': 30, 'tfds': 10,
        'released config': 40, 'tokenizer.json': 40}  # fmt: skip
_INPUTS = 60


@pytest.mark.parametrize('name', fuzz.TARGETS)
def test_no_input_crashes_a_reader(name):
  inputs = _FEW.get(name, _INPUTS)
  counts = fuzz.try_inputs(fuzz.TARGETS[name], range(inputs))
  assert not counts.crashes
  assert counts.tried == inputs == counts.accepted + counts.refused
  # The seeds are valid, and what is done to them is not, but for texts that
  # are all valid, and few damages of files of which some are never read.
  assert counts.accepted
  assert counts.refused or name in ('prompt', 'checkpoint')


def test_inputs_depend_on_seed_target_and_number():
  target = fuzz.TARGETS['csv']
  seeds = [b'a,b\n1,2\n', b'x' * 99]
  made = [fuzz.make(target, seeds, index, 0) for index in range(200)]
  assert made == [fuzz.make(target, seeds, index, 0) for index in range(200)]
  assert made[:2] == seeds
  assert len(set(made)) > 150
  assert made != [fuzz.make(target, seeds, index, 1) for index in range(200)]


@pytest.mark.parametrize('kind', ['json', 'files'])
def test_json_stays_json_mostly(kind):
  seed = {'a': '{"b": [1, 2]}', 'c': 'text', 'd': 'more'}
  rng = random.Random(0)
  right = 0
  for _ in range(200):
    data = mutations.damaged(rng, [json.dumps(seed).encode()], kind)
    with contextlib.suppress(ValueError, RecursionError):
      right += json.loads(data) != seed
  assert right > 80


def _raises(error):
  def read(data, folder):
    raise error

  return read


def _forgets(data, folder):
  return {}['a']


def _allocates(data, folder):
  return np.ones(2**40)


def _hides(data, folder):
  try:
    np.ones(2**40)
  except MemoryError as error:
    raise ValueError('a file that is large') from error


def _hangs(data, folder):
  while True:
    pass


def _descends(data, folder):
  return _descends(data, folder)


def _casts(data, folder):
  return int('a file')


@pytest.mark.parametrize(
  'read, what',
  [
    (_raises(OSError(2, 'gone', 'x')), 'refused'),
    (_raises(OSError('gone')), 'names no file'),
    (_raises(ValueError('a file\nof lines')), 'several lines'),
    (_raises(ValueError('nothing')), "without 'a file'"),
    (_raises(ValueError('a file' + 'x' * 9000)), 'thousands of letters'),
    (_raises(UnicodeError('a file')), 'UnicodeError at tests/bench'),
    (_raises(SystemExit(1)), 'SystemExit'),
    (_forgets, 'KeyError at tests/bench'),
    (_allocates, 'MemoryError at tests/bench'),
    (_hides, 'MemoryError at tests/bench'),
    (_hangs, 'more than 0.2 s'),
    (_descends, 'RecursionError at tests/bench'),
    (_casts, 'ValueError of a library at tests/bench'),
  ],
)
def test_what_counts_as_a_crash(monkeypatch, read, what):
  if read is _hangs:
    monkeypatch.setattr(fuzz, 'LIMIT_SECONDS', 0.2)
  target = fuzz_texts.Target('toy', lambda _: [b'x'], read, 'a file')
  counts = fuzz.try_inputs(target, range(3))
  if what == 'refused':
    assert counts == fuzz.Counts(3, 0, 3, {})
  else:
    assert counts[:3] == (3, 0, 0)
    (crash,) = counts.crashes.values()
    assert what in crash.what and (crash.index, crash.data) == (0, b'x')
  assert '| toy | 3 | 0 |' in fuzz.table({'toy': counts})


@pytest.mark.slow
def test_children_die_and_others_go_on(capsys):
  found = fuzz.run([fuzz.Job('sampler', 0, 2.0), fuzz.Job('lambda', 5, 2.0)], 0)
  assert list(found) == ['sampler', 'lambda']
  for counts in found.values():
    assert counts.tried > 100 and not counts.crashes


def _tree(name):
  """The first seed of a target as a tree of JSON."""
  return json.loads(fuzz.TARGETS[name].seeds(pathlib.Path('.'))[0])


def _changed(name, path, value):
  """The first seed of a target with another value somewhere."""
  tree = node = _tree(name)
  *parents, last = path
  for key in parents:
    node = node[key]
  node[last] = value
  return json.dumps(tree).encode()


def _deep(depth):
  return b'[' * depth + b']' * depth


def _sealed(numbers, magic=b'PW'):
  """A file of a few bytes that claims what the numbers say."""
  coder, sizes = rangecoder.Encoder(), rangecoder.Integers(1)
  for number in numbers:
    sizes.code(coder, 0, number)
  return codec.sealed(coder.finish(), magic)


def _parquet(**columns):
  file = io.BytesIO()
  names = fuzz_files.COLUMNS
  table = {name: columns.get(name, pa.array(['1'] * 9)) for name in names}
  pq.write_table(pa.table(table), file)
  return file.getvalue()


def _signed(tree):
  body = json.dumps(tree).encode()
  return hashlib.sha256(body).hexdigest().encode() + b'\n' + body


def _npy(shape, dtype='<i8'):
  file = io.BytesIO()
  header = {'descr': dtype, 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(file, header)
  return file.getvalue() + bytes(64)


def _npz(**arrays):
  file = io.BytesIO()
  np.savez_compressed(file, **arrays)
  return file.getvalue()


def _network(**fields):
  sizes = {'width': 8, 'layers': 1, 'heads': 2, 'key_value_heads': 2}
  return json.dumps(base.to_json(lm.ByteLM(**sizes | {'hidden': 8} | fields)))


_FIELDS = {'step': 1, 'extra': {}, 'config': {}, 'leaves': {}}
_LARGE = {'class': 'bounds.structure.LowRankOnRandom', 'fields': {'rank': 1}}

# What once ended in a traceback, in the death of the process, in gigabytes of
# memory or in hours of work.
_ONCE = [
  ('sampler', b'deny(0-99999999999)'),
  ('sampler', b'deny(' + b'9' * 5000 + b')'),
  ('sampler', b'top_k(1e300)'),
  ('merges', b'9' * 5000 + b' 4'),
  ('merges', b','.join(b'%d %d' % (i, i) for i in [36, *range(260, 299)])),
  ('config', _deep(900)),
  ('config', b'"text"'),
  ('config', _changed('config', ['fields', 'steps'], 'many')),
  ('config', _changed('config', ['fields', 'steps'], 1e400)),
  ('config', _changed('config', ['fields', 'model'], 3)),
  ('config', _changed('config', ['fields', 'evals'], {'class': 'evals.\0.X',
                                                       'fields': {}})),
  ('config', _changed('config', ['fields', 'evals'], {
    'class': 'bounds.verify.X', 'fields': {}})),
  ('config.json', _deep(100_000)),
  ('certificate', _changed('certificate', ['bits_per_byte'], 10**400)),
  ('certificate', _changed('certificate', ['delta'], float('nan'))),
  ('certificate', _changed('certificate', ['stream', 'corpus'], 'text')),
  ('certificate', _changed('certificate', ['stream', 'corpus'], {
    'class': 'data.codec.Bytes', 'fields': {}})),
  ('schema', b'[]'),
  ('schema', b'\xff\xfe'),
  ('schema', _deep(100_000)),
  ('schema', _changed('schema', ['fields'], 5)),
  ('schema', _changed('schema', ['fields', 0, 'values'], None)),
  ('schema', _changed('schema', ['fields', 0, 'name'], '\ud800')),
  ('schema', _changed('schema', ['delimiter'], '')),
  ('schema', _changed('schema', ['derived'], None)),
  ('schema', _changed('schema', ['time_format'], '')),
  ('event tokenizer', b'{"version": 1}'),
  ('event tokenizer', _changed('event tokenizer', ['columns', 0, 'code'], 'X')),
  ('event tokenizer', _changed('event tokenizer', ['columns', 1, 'depth'],
                               2**63)),
  ('event tokenizer', _changed('event tokenizer', ['columns', 0, 'samples'],
                               [])),
  ('manifest', _signed([])),
  ('manifest', _signed(_FIELDS)),
  ('manifest', _signed(_FIELDS | {'files': {'../../x': [1, 'a']}})),
  ('manifest', _signed(_FIELDS | {'files': {'a\0': [1, 'a']}})),
  ('manifest', _signed(_FIELDS | {'files': {'arrays': 3}})),
  ('manifest', hashlib.sha256(_deep(9**6)).hexdigest().encode() + b'\n'
   + _deep(9**6)),
  ('model.pw', _sealed([0, 1, 2, 8000, 8000])),
  ('model.pw', _sealed([0, 60_000])),
  ('network', b'{"class": "models.lm.ByteLM", "fields": ' + _deep(900) + b'}'),
  ('network', json.dumps(json.loads(_network(width=2**14, hidden=2**14))
                         | {'structure': _LARGE}).encode()),
  ('network', _network(heads=0).encode()),
  ('network', _network(masks=()).encode()),
  ('packed tokenizer', zlib.compress(bytes(2**27 + 1), 1)),
  ('csv', b',a' * 1_000_000),
  ('csv', b'a,b\n' + b'x' * 5_000_000),
  ('csv', b'"a"b,c\n1,2\n'),
  ('csv', b'user,\xff\n1,2\n'),
  ('csv.gz', gzip.compress(b'user,when\n1,2\n')[:-9]),
  ('csv.gz', gzip.compress(b'user,when\n' * 99)[:12] + b'\xff' * 20),
  ('csv.gz', gzip.compress(b',' * 2**22)),
  ('parquet', _parquet(shop=pa.array([b'\xff'] * 9))),
  ('parquet', _parquet(when=pa.array([1] * 9, pa.time32('s')))),
  ('parquet', _parquet(amount=pa.array([2**62 + 1] * 9),
                       when=pa.array([2**61] * 9, pa.timestamp('us')))),
  ('parquet', b'PAR1' + b'\xff' * 40 + b'PAR1'),
  ('json lines', _deep(100_000)),
  ('parquet text', _parquet(shop=pa.array([1.5] * 9))),
  ('reviews', b'3\n'),
  ('reviews', b'{"a": "\xff"}\n'),
  ('text corpus', _npy((2**60,))),
  ('text corpus', _npz(a=np.zeros(4))),
  ('text corpus', _npy((8,), '|O')),
  ('event corpus', _npy((2**60,))),
  ('n-gram store', b'PK\3\4' + bytes(60)),
  ('n-gram store', _npz(contexts_first_M=np.zeros(2**20, np.uint32))),
  ('safetensors', (40_000).to_bytes(8, 'little') + b'{"a":' * 900 + b'1'
   + b'}' * 900 + b' ' * 34_600),
  ('released config', b'{"model_type": ' + _deep(960) + b'}'),
  ('tokenizer.json', _changed('tokenizer.json', ['model', 'vocab', 'a'],
                              2**32 - 1)),
  ('tokenizer.json', _changed('tokenizer.json', ['decoder'], [])),
]  # fmt: skip


@pytest.mark.parametrize(
  'name, index, seed',
  [
    ('schema', 466, 1),
    ('parquet text', 149, 1),
    ('schema', 1915, 6),
    ('reviews', 147, 6),
    ('event corpus', 2545, 6),
  ],
)
def test_what_the_long_form_found(name, index, seed):
  counts = fuzz.try_inputs(fuzz.TARGETS[name], [index], seed=seed)
  assert (counts.refused, counts.crashes) == (1, {})


@pytest.mark.parametrize('name, data', _ONCE, ids=[n for n, _ in _ONCE])
def test_what_once_was_a_crash_is_refused(tmp_path, name, data):
  target = fuzz.TARGETS[name]
  target = target._replace(seeds=lambda _: [data])
  counts = fuzz.try_inputs(target, range(1))
  assert (counts.refused, counts.crashes) == (1, {})
