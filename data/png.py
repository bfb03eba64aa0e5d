"""Pixels of PNG files (RFC 2083) of 8 bits, as TFDS stores images.

Many files of one shape at once: what a row is made from is the row before it,
so that there is nothing to gain in one image, but in thousands.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

_SIGNATURE = b'\x89PNG\r\n\x1a\n'
# What the colour type is for so many channels: grey, grey and alpha, ...
_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}


def decode(
  files: Sequence[bytes], shape: tuple[int, int, int], where: str
) -> np.ndarray:
  """Pixels uint8 [N, height, width, channels].

  Raises ValueError, beginning with `where` and the number of the file, for one
  that is damaged, of another shape, interlaced or not of 8 bits.
  """
  height, width, channels = shape
  size = height * (1 + width * channels)
  lines = b''.join(
    _unpacked(file, shape, size, f'{where}{number}')
    for number, file in enumerate(files)
  )
  lines_NHR = np.frombuffer(lines, np.uint8)
  lines_NHR = lines_NHR.reshape(-1, height, 1 + width * channels)
  kind_NH = lines_NHR[:, :, 0]
  wrong_N = np.flatnonzero((kind_NH > 4).any(axis=1))
  if wrong_N.size:
    raise _damage(f'{where}{wrong_N[0]}', 'a row has a filter above 4')
  lines_NHWC = lines_NHR[:, :, 1:].reshape(-1, height, width, channels)
  pixels_NHWC = np.zeros_like(lines_NHWC)
  above_NWC = np.zeros_like(lines_NHWC[:, 0])
  for y in range(height):
    above_NWC = _unfiltered(lines_NHWC[:, y], above_NWC, kind_NH[:, y])
    pixels_NHWC[:, y] = above_NWC
  return pixels_NHWC


def _unfiltered(
  line_NWC: np.ndarray, above_NWC: np.ndarray, kind_N: np.ndarray
) -> np.ndarray:
  """A row of all images from its filtered form and the row above."""
  found_NWC = line_NWC.copy()
  for kind in np.unique(kind_N):
    chosen_N = kind_N == kind
    line, above = line_NWC[chosen_N], above_NWC[chosen_N]
    if kind == 1:
      line = np.cumsum(line, axis=1, dtype=np.uint8)
    elif kind == 2:
      line = line + above
    elif kind > 2:
      line = _along(line, above.astype(np.int16), is_mean=kind == 3)
    found_NWC[chosen_N] = line
  return found_NWC


def _along(
  line_NWC: np.ndarray, above_NWC: np.ndarray, *, is_mean: bool
) -> np.ndarray:
  """Adds to every pixel the mean of those to the left and above, or Paeth's."""
  found_NWC = np.zeros_like(line_NWC)
  left_NC = corner_NC = np.zeros_like(above_NWC[:, 0])
  for x in range(line_NWC.shape[1]):
    above_NC = above_NWC[:, x]
    guess_NC = (left_NC + above_NC) // 2
    if not is_mean:
      guess_NC = _paeth(left_NC, above_NC, corner_NC)
    left_NC = (line_NWC[:, x] + guess_NC) & 255
    found_NWC[:, x], corner_NC = left_NC, above_NC
  return found_NWC


def _paeth(
  left: np.ndarray, above: np.ndarray, corner: np.ndarray
) -> np.ndarray:
  """The one of the three that is nearest to left + above - corner."""
  to_left, to_above = abs(above - corner), abs(left - corner)
  to_corner = abs(left + above - 2 * corner)
  return np.where(
    (to_left <= to_above) & (to_left <= to_corner),
    left,
    np.where(to_above <= to_corner, above, corner),
  )


def _unpacked(
  file: bytes, shape: tuple[int, int, int], size: int, where: str
) -> bytes:
  """The filtered rows of a file, `size` bytes; never more are unpacked."""
  if file[:8] != _SIGNATURE:
    raise _damage(where, 'it does not begin as one')
  header, packed = b'', []
  for kind, content in _chunks(file, where):
    if kind == b'IHDR':
      header = content
    elif kind == b'IDAT':
      packed.append(content)
  height, width, channels = shape
  wanted = (width, height, 8, _COLOURS[channels], 0, 0, 0)
  if len(header) != 13:
    raise _damage(where, f'its header has {len(header)} bytes, not 13')
  found = struct.unpack('>IIBBBBB', header)
  if found != wanted:
    raise ValueError(
      f'{where} has width, height, bits, colour type, compression, filter and'
      f' interlacing {found}, not {wanted}; give images of one size and of 8'
      ' bits.'
    )
  unpacker = zlib.decompressobj()
  try:
    rows = unpacker.decompress(b''.join(packed), size + 1)
  except zlib.error as error:
    raise _damage(where, str(error)) from error
  if len(rows) != size:
    raise _damage(where, f'its rows do not have {size} bytes')
  return rows


def _chunks(file: bytes, where: str) -> Iterator[tuple[bytes, bytes]]:
  """Kind and content of every chunk up to the end mark."""
  place, kind = 8, b''
  while kind != b'IEND':
    if place + 12 > len(file):
      raise _damage(where, 'it has no end')
    (length,) = struct.unpack_from('>I', file, place)
    kind, content = file[place + 4 : place + 8], file[place + 8 :][:length]
    place += 12 + length
    if place > len(file):
      raise _damage(where, 'a chunk is longer than the file')
    (checksum,) = struct.unpack_from('>I', file, place - 4)
    if checksum != zlib.crc32(kind + content):
      raise _damage(where, f'the checksum of a chunk {kind!r} is wrong')
    yield kind, content


def _damage(where: str, why: str) -> ValueError:
  return ValueError(
    f'{where} is no whole PNG file ({why}); put a whole copy in its place.'
  )
