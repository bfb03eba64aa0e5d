"""Files that may be compressed, read without trusting what they become."""

import gzip
import io
import pathlib
import zlib
from typing import Any, BinaryIO

# Bytes per byte of a .gz file; deflate can make a thousand of one.
_DENSEST, _SPARE = 200, 2**26


def opened(path: pathlib.Path) -> BinaryIO:
  """A file, or what a .gz file holds.

  Reading raises ValueError for a .gz file that is damaged, and for one that
  becomes so large that it was made to fill a disk or the memory.
  """
  if path.suffix != '.gz':
    return path.open('rb')
  return io.BufferedReader(_Unpacked(path), 2**16)


class _Unpacked(io.RawIOBase):
  """A .gz file that counts what it has given."""

  def __init__(self, path: pathlib.Path) -> None:
    self._path = path
    self._file = gzip.GzipFile(path, 'rb')
    self._room = _SPARE + _DENSEST * path.stat().st_size

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    """Fills the buffer as far as it can; 0 at the end."""
    try:
      count = self._file.readinto(buffer)
    except (OSError, EOFError, zlib.error) as error:
      reason = ' '.join(str(error).split())
      raise ValueError(
        f'{self._path} is damaged ({reason}); compress it anew.'
      ) from error
    self._room -= count
    if self._room < 0:
      raise ValueError(
        f'{self._path} becomes more than {_DENSEST} times as large; if it is'
        ' what you think, decompress it first and name that file.'
      )
    return count

  def close(self) -> None:
    self._file.close()
    super().close()
