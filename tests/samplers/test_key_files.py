"""Stores of keys whose files and header are not what they say."""

import copy

import numpy as np
import pytest

from samplers import key_files

SETTINGS = key_files.Settings(
  model='m', vocabulary_size=9, width=2, dtype='float16', passage=2, window=8,
  context=4,
)  # fmt: skip


@pytest.fixture(name='header')
def build(tmp_path):
  """Of a store of two documents in `tmp_path`, in two shards."""
  documents = [('a', np.array([3, 4, 2])), ('b', np.array([5, 2]))]
  key_files.begin(tmp_path, SETTINGS, documents)
  keys_ND = np.arange(10, dtype=np.float16).reshape(5, 2)
  key_files.write_shard(tmp_path, 0, keys_ND[:4])
  key_files.write_shard(tmp_path, 1, keys_ND[4:])
  return key_files.finish(tmp_path, SETTINGS, [4, 1], {})


def test_a_store_as_it_was_built(tmp_path, header):
  assert key_files.checked(tmp_path, header) == SETTINGS
  store = key_files.Store(tmp_path, header)
  np.testing.assert_array_equal(store.keys.read(3, 5), [[6, 7], [8, 9]])
  assert store.names == ['a', 'b']


def huge(path):
  """Offsets of eight terabytes, by their own account."""
  with (path / 'offsets.npy').open('wb') as file:
    form = {'descr': '<i8', 'fortran_order': False, 'shape': (2**40,)}
    np.lib.format.write_array_header_1_0(file, form)


def pickled(path):
  np.save(path / 'offsets.npy', np.array([{}], object), allow_pickle=True)


def save(values):
  return lambda path: np.save(path / 'offsets.npy', values)


@pytest.mark.parametrize(
  ('harm', 'words'),
  [
    (lambda path: (path / 'ids.bin').write_bytes(b'12'), 'ids.bin does not ha'),
    (lambda path: (path / 'keys-00001.bin').unlink(), '1.bin does not have 4'),
    (save([[0]]), 'offsets.npy is no row of int64'),
    (save([0.0, 5.0]), 'offsets.npy is no row of int64'),
    (save([0, 5, 4]), 'offsets.npy does not rise from 0'),
    (save([1, 5]), 'offsets.npy does not rise from 0'),
    (huge, 'offsets.npy is no array'),
    (pickled, 'offsets.npy is no array'),
  ],
)
def test_files_that_are_not_as_they_say(tmp_path, header, harm, words):
  harm(tmp_path)
  with pytest.raises(ValueError, match=words):
    key_files.checked(tmp_path, header)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'settings': None}, 'its settings are not model, vocabulary_size'),
    ({'settings': {'width': 2}}, 'its settings are not model, vocabulary_size'),
    ({'width': 0}, "its width is '0'"),
    ({'width': 2.0}, "its width is '2.0'"),
    ({'context': -1}, "its context is '-1'"),
    ({'dtype': 'O'}, 'its dtype is none of bfloat16, float16, float32'),
    ({'counts': None}, 'its counts are no whole numbers'),
    ({'counts': [4, True]}, 'its counts are no whole numbers'),
    ({'counts': [4, 2]}, 'keys-00001.bin does not have 8 bytes'),
    ({'counts': [4]}, 'it has 4 keys of 5 ids'),
  ],
)
def test_headers_that_are_not_as_files_are(tmp_path, header, change, words):
  header = copy.deepcopy(header)
  (name,) = change
  (header if name in header else header['settings']).update(change)
  with pytest.raises(ValueError, match=words):
    key_files.checked(tmp_path, header)
