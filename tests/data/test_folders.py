"""Prepared data that is damaged is named and never read."""

import dataclasses
import errno
import os
import pathlib
import shutil

import numpy as np
import pytest

from data import folders
from data import sources
from data import text


@dataclasses.dataclass(frozen=True)
class Few:
  """Ten texts."""

  def documents(self):
    for number in range(10):
      yield sources.Document(f'{number}', f'{number}', b'word ' * number)

  def fingerprint(self):
    return 'always the same'


def truncate(path):
  os.truncate(path, path.stat().st_size // 2)


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  before = path.stat()
  path.write_bytes(data)
  # A disk that fails does not tell the time of it to anybody.
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize('damage', [truncate, flip, pathlib.Path.unlink])
def test_damage_of_every_file_is_named(tmp_path, damage):
  whole = text.Text(Few(), str(tmp_path / 'whole'))
  folder = whole.prepare()
  wanted = {s: bytes(whole.open(s).bytes) for s in text.SPLITS}
  names = [p.relative_to(folder) for p in folder.rglob('*') if p.is_file()]
  read = [name for name in names if '.array_record' not in name.name]
  assert {'bytes.bin', 'offsets.npy', 'names.json'} <= {n.name for n in read}
  for number, name in enumerate(read):
    copy = tmp_path / str(number)
    shutil.copytree(tmp_path / 'whole', copy)
    corpus = text.Text(Few(), str(copy))
    damaged = corpus.prepare() / name
    folders._digest_of.cache_clear()  # As in a process that begins.
    damage(damaged)
    if damage is pathlib.Path.unlink and str(name) in (
      'metadata.json', 'checksums.json',
    ):  # fmt: skip
      # It is made anew, or as whole as one made before there were checksums.
      assert {s: bytes(corpus.open(s).bytes) for s in wanted} == wanted
      continue
    with pytest.raises(ValueError, match='the prepared data is damaged') as it:
      corpus.open('train')
    message = str(it.value)
    assert str(damaged) in message
    assert f'remove {copy / folder.name} to have it' in message
  shutil.rmtree(copy / folder.name)
  assert bytes(corpus.open('train').bytes) == wanted['train']


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
  corpus = text.Text(Few(), str(tmp_path))
  place = corpus.prepare() / 'train' / 'bytes.bin'
  read = folders._digest

  def fail(path):
    if path == place:
      raise OSError(errno.EIO, os.strerror(errno.EIO))
    return read(path)

  folders._digest_of.cache_clear()
  monkeypatch.setattr(folders, '_digest', fail)
  with pytest.raises(ValueError, match=r'bytes\.bin cannot be read .Input/o'):
    corpus.open('test')


def test_files_that_came_later_are_not_compared(tmp_path):
  def build(folder):
    np.save(folder / 'numbers.npy', np.arange(3))
    (folder / 'metadata.json').write_text('{}')

  folder = folders.make_once(tmp_path / 'made', build)
  (folder / 'numbers_of_a_model.npy').write_bytes(b'more')
  assert folders.make_once(tmp_path / 'made', None) == folder


@pytest.mark.parametrize(
  'error',
  [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    # As array_record and TFDS have it.
    RuntimeError('Failed: write() failed: No space left on device; at byte 8'),
    OSError('Failed to write: No space left on device'),
  ],
)
def test_full_disk_names_the_folder_and_leaves_nothing(tmp_path, error):
  def build(folder):
    del folder
    raise error

  with pytest.raises(OSError, match='No space left on device') as caught:
    folders.make_once(tmp_path / 'made', build)
  assert caught.value.filename == str(tmp_path / 'made')
  assert caught.value.errno == errno.ENOSPC
  assert [path.name for path in tmp_path.iterdir()] == ['made.lock']


@pytest.mark.parametrize(
  'error', [RuntimeError('a bug'), FileNotFoundError(2, 'No such file', 'a')]
)
def test_other_errors_stay_as_they_are(tmp_path, error):
  def build(folder):
    del folder
    raise error

  with pytest.raises(type(error)) as caught:
    folders.make_once(tmp_path / 'made', build)
  assert caught.value is error
