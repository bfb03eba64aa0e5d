"""Arrays of an .npz file that nobody vouches for.

Only what `np.savez` writes is read: nothing compressed, so that no array is
larger than the file, and plain numbers, so that nothing is unpickled.
"""

import os
import zipfile
from collections.abc import Mapping
from typing import IO

import numpy as np


def read(
  path: str | os.PathLike[str], kinds: Mapping[str, tuple[type, int]]
) -> dict[str, np.ndarray]:
  """The arrays of exactly these names, types and numbers of axes.

  Raises ValueError without more ado for any other file, and OSError where
  there is none.
  """
  with open(path, 'rb') as file:
    size = os.fstat(file.fileno()).st_size
    try:
      with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = sorted(f'{name}.npy' for name in kinds)
        if sorted(x.filename for x in members) != names:
          raise ValueError('other names')
        if sum(x.file_size for x in members) > size or any(
          x.compress_type != zipfile.ZIP_STORED for x in members
        ):
          raise ValueError('more arrays than file')
        return {
          name: _member(archive, f'{name}.npy', *kind)
          for name, kind in kinds.items()
        }
    except Exception as error:  # zipfile and NumPy have a dozen classes for it.
      raise ValueError(f'{path} holds other arrays ({error})') from error


def _member(
  archive: zipfile.ZipFile, name: str, dtype: type, ndim: int
) -> np.ndarray:
  with archive.open(name) as file:
    shape = _shape(file, dtype)
    data = file.read()
  array = np.frombuffer(data, dtype)
  if len(shape) != ndim or int(np.prod(shape, dtype=object)) != array.size:
    raise ValueError(f'{name} of shape {shape} in {len(data)} bytes')
  return array.reshape(shape)


def _shape(file: IO[bytes], dtype: type) -> tuple[int, ...]:
  """Of an array whose header is read; it must have this type."""
  if np.lib.format.read_magic(file) != (1, 0):
    raise ValueError('another version')
  shape, _, found = np.lib.format.read_array_header_1_0(file)
  if found != np.dtype(dtype):
    raise ValueError(f'{found} in place of {np.dtype(dtype)}')
  return shape
