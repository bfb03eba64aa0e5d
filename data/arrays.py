"""Arrays of prepared folders, mapped once their file is what it says."""

import pathlib

import numpy as np


def offsets(path: pathlib.Path) -> np.ndarray:
  """Where parts begin and the last one ends: int64, from 0 and never falling.

  Raises ValueError for any other file; nothing is unpickled or taken into
  memory.
  """
  way_out = f'remove {path.parent.parent} to have it prepared again.'
  with path.open('rb') as file:
    try:
      if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError('another version')
      shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # NumPy has a dozen classes for it.
      reason = ' '.join(str(error).split())[:200]
      raise ValueError(f'{path} is damaged ({reason}); {way_out}') from error
    start = file.tell()
  size = path.stat().st_size - start
  if dtype != np.int64 or shape != (size // 8,) or size % 8 or not size:
    raise ValueError(
      f'{path} is damaged: {str(shape)[:80]} of {str(dtype)[:80]} in {size}'
      f' bytes are no row of int64; {way_out}'
    )
  found = np.memmap(path, np.int64, 'r', offset=start, shape=shape)
  if found[0] or (found[1:] < found[:-1]).any():
    raise ValueError(f'{path} is damaged: it does not rise from 0; {way_out}')
  return found
