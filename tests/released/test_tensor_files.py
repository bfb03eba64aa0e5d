"""Safetensors directories: what is written is read, the rest is refused."""

import itertools
import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from released import tensor_files

DATA = np.arange(12, dtype=np.float32).tobytes()
ENTRY = {'dtype': 'F32', 'shape': [3, 4], 'data_offsets': [0, 48]}


def write(path, header, data=DATA, length=None):
  """A file from its parts, right or wrong."""
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  size = len(text) if length is None else length
  path.write_bytes(size.to_bytes(8, 'little') + text + data)


def write_index(directory, weight_map):
  (directory / tensor_files.INDEX).write_text(
    json.dumps({'metadata': {}, 'weight_map': weight_map})
  )


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
plans = st.dictionaries(
  st.text(min_size=1, max_size=5).filter(lambda n: n != '__metadata__'),
  st.tuples(st.sampled_from(sorted(tensor_files.DTYPES)), shapes),
  min_size=1,
  max_size=6,
)


@given(plans, st.integers(1, 200))
def test_tensors_come_back_from_any_number_of_files(
  tmp_path_factory, plans, max_bytes
):
  folder = tmp_path_factory.mktemp('files')
  rng = np.random.default_rng(0)
  planned = {n: tensor_files.Planned(*plan) for n, plan in plans.items()}
  arrays = {
    name: rng.standard_normal(shape).astype(tensor_files.DTYPES[dtype])
    if shape
    else np.array(rng.standard_normal(), tensor_files.DTYPES[dtype])
    for name, (dtype, shape) in planned.items()
  }
  tensor_files.write(
    folder,
    planned,
    lambda name: [arrays[name][:1], arrays[name][1:]]
    if arrays[name].shape
    else [arrays[name]],
    max_bytes=max_bytes,
  )
  found = tensor_files.scan(folder)
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    whole = tensor_files.read(found[name])
    assert whole.dtype == array.dtype
    assert whole.shape == array.shape
    assert whole.tobytes() == array.tobytes()
    if array.shape:
      part = tensor_files.read(found[name], slice(1, 3))
      assert part.tobytes() == array[1:3].tobytes()
  for file in folder.glob('*.safetensors'):
    size = file.stat().st_size
    held = [s for s in found.values() if s.file == file]
    start = min(s.offset for s in held)
    # One file may hold one tensor that is larger than the limit.
    sized = [s for s in held if math.prod(s.shape)]
    assert size - start <= max_bytes or len(sized) == 1
    assert start % 8 == 0


def deep(depth):
  return b'{"a":' + b'[' * depth


@pytest.mark.parametrize(
  'header, data, length, words',
  [
    ({'a': ENTRY}, DATA[:-1], None, ['instead of', 'incomplete']),
    ({'a': ENTRY}, DATA + b'x', None, ['instead of', 'describes']),
    ({'a': ENTRY}, b'', 2**60, ['claims a header of 1152921504606846976']),
    ({'a': ENTRY}, b'', 200, ['claims a header of 200 bytes']),
    (b'{"a": 1', DATA, None, ['the header of', 'no JSON object']),
    (b'[]', DATA, None, ['no JSON object']),
    (b'\xff\xfe', DATA, None, ['no JSON object']),
    (deep(200_000), b'', None, ['no JSON object']),
    ({'a': 3}, b'', None, ["entry of 'a'"]),
    ({'a': ENTRY | {'dtype': 'F33'}}, DATA, None, ["of 'a'"]),
    ({'a': ENTRY | {'dtype': []}}, DATA, None, ["of 'a'"]),
    ({'a': ENTRY | {'shape': [3, -4]}}, DATA, None, ["of 'a'"]),
    ({'a': ENTRY | {'shape': [3, 4.0]}}, DATA, None, ["of 'a'"]),
    ({'a': ENTRY | {'shape': [2**64]}}, DATA, None, ["of 'a'"]),
    ({'a': ENTRY | {'shape': [12, 4]}}, DATA, None, ['192 bytes']),
    (
      {'a': {'dtype': 'F32', 'shape': [2**40], 'data_offsets': [0, 2**42]}},
      DATA,
      None,
      ['instead of the'],
    ),
    (
      {'a': ENTRY | {'data_offsets': [4, 52]}},
      b'1234' + DATA,
      None,
      ['a begins at byte', 'holes'],
    ),
    ({'a': ENTRY, 'b': ENTRY}, DATA, None, ['b begins', 'overlap']),
  ],
  ids=itertools.count(),
)
def test_file_that_is_not_what_it_says(tmp_path, header, data, length, words):
  path = tmp_path / tensor_files.SINGLE
  write(path, header, data, length)
  tracemalloc.start()
  with pytest.raises(ValueError) as error:
    tensor_files.scan(tmp_path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert all(word in str(error.value) for word in [str(path), *words])
  assert peak < 5_000_000  # Whatever the header claims.


def test_file_of_a_few_bytes(tmp_path):
  (tmp_path / tensor_files.SINGLE).write_bytes(b'abc')
  with pytest.raises(ValueError, match='of 3 bytes'):
    tensor_files.scan(tmp_path)


@pytest.mark.parametrize(
  'name',
  ['../a.safetensors', '/a.safetensors', 'b/a.safetensors', '..', 'a.bin', 3,
   '.safetensors', 'b\\a.safetensors', 'a\0.safetensors', None],
)  # fmt: skip
def test_index_may_not_name_files_elsewhere(tmp_path, name):
  folder = tmp_path / 'checkpoint'
  (folder / 'b').mkdir(parents=True)
  for parent in (tmp_path, folder / 'b', folder):
    write(parent / 'a.safetensors', {'a': ENTRY})
  write_index(folder, {'a': name})
  with pytest.raises(ValueError, match='only safetensors files beside it'):
    tensor_files.scan(folder)


def test_index_must_be_true(tmp_path):
  write(tmp_path / 'one.safetensors', {'a': ENTRY})
  write(tmp_path / 'two.safetensors', {'b': ENTRY})
  write_index(tmp_path, {'a': 'one.safetensors', 'b': 'two.safetensors'})
  assert sorted(tensor_files.scan(tmp_path)) == ['a', 'b']
  for weight_map, words in (
    ({'a': 'one.safetensors', 'c': 'two.safetensors'}, "says that 'c' is in"),
    ({'a': 'two.safetensors', 'b': 'one.safetensors'}, "says that 'a' is in"),
    ({'a': 'three.safetensors'}, 'three.safetensors, which is not there'),
    ({}, 'no weight_map'),
  ):
    write_index(tmp_path, weight_map)
    with pytest.raises(ValueError, match=words):
      tensor_files.scan(tmp_path)
  write(tmp_path / 'two.safetensors', {'a': ENTRY})
  write_index(tmp_path, {'a': 'one.safetensors', 'b': 'two.safetensors'})
  with pytest.raises(ValueError, match=r'holds a in one\.safetensors and in'):
    tensor_files.scan(tmp_path)


def test_directory_without_tensors(tmp_path):
  with pytest.raises(ValueError, match='has neither'):
    tensor_files.scan(tmp_path)


def test_file_that_shrinks_while_it_is_read(tmp_path):
  path = tmp_path / tensor_files.SINGLE
  write(path, {'a': ENTRY})
  stored = tensor_files.scan(tmp_path)['a']
  path.write_bytes(path.read_bytes()[:-4])
  with pytest.raises(ValueError, match='became shorter'):
    tensor_files.read(stored)
