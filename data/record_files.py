"""What array_record files claim to hold, before any of it is unpacked.

Such a file is in the format of Riegeli (github.com/google/riegeli): chunks,
each with a header that says how large it is and what it becomes, to which the
reader keeps; every 64 KiB a header of 24 bytes lies in between.
"""

import pathlib
from typing import BinaryIO

_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 2**16, 24, 40
# Bytes of records per byte of file, beyond those that any may hold.
_DENSEST, _SPARE = 1000, 2**28


def check(path: pathlib.Path) -> None:
  """ValueError for records that were made to fill the memory.

  A file that is no array_record is left to the reader.
  """
  size = path.stat().st_size
  total = place = 0
  with path.open('rb') as file:
    while place < size:
      header = _read(file, place, _CHUNK_HEADER)
      stored, records, made = (
        int.from_bytes(header[start:stop], 'little')
        for start, stop in ((8, 16), (25, 32), (32, 40))
      )
      total += made
      if total > _SPARE + _DENSEST * size:
        raise ValueError(
          f'{path} of {size} bytes holds records of {total}; it is damaged or'
          ' made to fill the memory, so copy it anew.'
        )
      place = max(
        _after(place, _CHUNK_HEADER + stored), _possible(place + records)
      )


def _after(place: int, size: int) -> int:
  """The end of so many bytes of a chunk, block headers included."""
  usable = _BLOCK - _BLOCK_HEADER
  blocks = (size + (place + usable - 1) % _BLOCK) // usable
  return place + size + blocks * _BLOCK_HEADER


def _possible(place: int) -> int:
  """The next place where a chunk may begin: not within a block header."""
  left = -place % _BLOCK
  return place + max(left - (_BLOCK - _BLOCK_HEADER - 1), 0)


def _read(file: BinaryIO, place: int, size: int) -> bytes:
  """So many bytes of a chunk, block headers left out."""
  found = b''
  while len(found) < size:
    if place % _BLOCK == 0:
      place += _BLOCK_HEADER
    file.seek(place)
    part = file.read(min(size - len(found), _BLOCK - place % _BLOCK))
    if not part:
      return found.ljust(size, b'\0')
    found += part
    place += len(part)
  return found
