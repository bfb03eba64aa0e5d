"""The file of a predictor: notes and coded tensors, and nothing else.

  'PW' | version | length of body | body | CRC-32 of all before

The length makes files prefix-free, so a file of n bytes has prior probability
2**-8n and is charged 8n bits. The body is one range-coded stream: the notes
(bytes that belong to the caller, such as the architecture), then each tensor:
shape, context rule, shift or levels, scale codes and symbols. Names are not
stored; the order is the caller's. Decoding executes nothing and allocates
nothing before the checksum holds and the sizes are within limits.
"""

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bounds import quantise
from bounds import rangecoder

MAGIC = b'PW'
VERSION = 2
MAX_VALUES = 1 << 26
MAX_TENSORS = 1 << 16
MAX_NOTES = 1 << 16
MAX_AXES = 8

# Weights per byte of body, and as many in any; tensors likewise.
_DENSEST, _SPARE, _SPARE_TENSORS = 1 << 10, 1 << 20, 1 << 8

# A symbol's context: nothing, or the sizes of those to its left and above.
_CONTEXTS = (1, 9)


class File(NamedTuple):
  """What a file says, and how many bytes of the input it took."""

  notes: bytes
  tensors: list[quantise.Coded]
  size: int


def encode(tensors: Sequence[quantise.Coded], notes: bytes = b'') -> bytes:
  """The bytes of a file; 8 times their number is its description length."""
  if len(notes) > MAX_NOTES or len(tensors) > MAX_TENSORS:
    raise ValueError(
      f'{len(notes)} bytes of notes and {len(tensors)} tensors exceed the'
      f' limits of a file, {MAX_NOTES} and {MAX_TENSORS}'
    )
  total = sum(tensor.symbols.size for tensor in tensors)
  if total > MAX_VALUES:
    raise ValueError(f'{total} weights exceed the limit of {MAX_VALUES}')
  coder = rangecoder.Encoder()
  sizes = rangecoder.Integers(1)
  sizes.code(coder, 0, len(notes))
  for byte in notes:
    coder.number(8, byte)
  sizes.code(coder, 0, len(tensors))
  for tensor in tensors:
    _check(tensor)
    _encode_tensor(coder, sizes, tensor)
  body = coder.finish()
  check_density('weights', total, len(body))
  _limited('tensors', len(tensors), _SPARE_TENSORS + len(body))
  return sealed(body)


def decode(data: bytes, *, max_values: int = MAX_VALUES) -> File:
  """Reads one file from the start of `data`; bytes after it change nothing.

  Compare `size` with len(data) where nothing may follow. Raises ValueError for
  anything that `encode` does not write: a file cut short, changed, of another
  version, or of more than `max_values` weights.
  """
  body, size = opened(data)
  notes, tensors = _decode_body(body, max_values)
  return File(notes, tensors, size)


def sealed(body: bytes, magic: bytes = MAGIC) -> bytes:
  """A body as a file: with its length, so that files are prefix-free."""
  head = magic + bytes([VERSION]) + _varint(len(body))
  return head + body + zlib.crc32(head + body).to_bytes(4, 'big')


def opened(data: bytes, magic: bytes = MAGIC) -> tuple[bytes, int]:
  """The body of the file at the start of `data`, and the file's size.

  Raises ValueError for a file cut short, changed or of another version.
  """
  if data[:2] != magic:
    raise ValueError(
      f'file starts with {data[:2]!r}, not {magic!r}: it is no model file, or'
      ' its first bytes are damaged'
    )
  if len(data) > 2 and data[2] != VERSION:
    raise ValueError(
      f'file has format version {data[2]}, this decoder reads {VERSION}; use'
      ' the release that wrote it, or check for damage'
    )
  start, length = _read_varint(data, 3)
  end = start + length
  if len(data) < end + 4:
    raise ValueError(
      f'file is cut short: it needs {end + 4} bytes and has {len(data)}'
    )
  if zlib.crc32(data[:end]).to_bytes(4, 'big') != data[end : end + 4]:
    raise ValueError('file is damaged: its checksum differs; copy it again')
  return data[start:end], end + 4


def check_density(name: str, number: int, size: int) -> None:
  """ValueError for more than a body of so many bytes will be read as.

  Adaptive codes of numbers that are all equal hardly take space, so that a few
  bytes could be made to keep a reader busy for hours.
  """
  limit = _SPARE + _DENSEST * size
  if number > limit:
    raise ValueError(
      f'file has {number} {name} in {size} bytes of body; at most {limit} are'
      ' allowed in as many'
    )


def _decode_body(
  body: bytes, max_values: int
) -> tuple[bytes, list[quantise.Coded]]:
  coder = rangecoder.Decoder(body)
  sizes = rangecoder.Integers(1)
  length = _limited('bytes of notes', sizes.code(coder, 0), MAX_NOTES)
  notes = bytes(coder.number(8) for _ in range(length))
  count = _limited('tensors', sizes.code(coder, 0), MAX_TENSORS)
  # A tensor takes two bytes at least.
  _limited('tensors', count, _SPARE_TENSORS + len(body))
  tensors, total = [], 0
  for _ in range(count):
    tensor = _decode_tensor(coder, sizes, max_values - total, total, len(body))
    total += tensor.symbols.size
    tensors.append(tensor)
  coder.finish()
  return notes, tensors


def _encode_tensor(
  coder: rangecoder.Encoder,
  sizes: rangecoder.Integers,
  tensor: quantise.Coded,
) -> None:
  shape, codes_R = tensor.symbols.shape, tensor.codes
  sizes.code(coder, 0, len(shape))
  for axis in shape:
    sizes.code(coder, 0, axis)
  symbols_RC = tensor.symbols.reshape(-1, shape[-1] if shape else 1)
  neighbours = int(_prefers_neighbours(symbols_RC))
  coder.number(1, neighbours)
  coder.number(1, int(len(codes_R) > 1))
  coder.number(1, int(bool(tensor.levels)))
  if tensor.levels:
    coder.number(4, len(tensor.levels) - 1)
    for level in tensor.levels:
      coder.number(10, level)
  else:
    coder.number(4, tensor.shift)
  coder.number(8, int(codes_R[0]) - quantise.CODES[0])
  steps = rangecoder.Integers(1)
  for step in np.diff(codes_R).tolist():
    steps.code(coder, 0, step)
  _code_symbols(coder, symbols_RC.astype(np.int32), neighbours)


def _decode_tensor(
  coder: rangecoder.Decoder,
  sizes: rangecoder.Integers,
  room: int,
  before: int,
  body_size: int,
) -> quantise.Coded:
  axes = _limited('axes', sizes.code(coder, 0), MAX_AXES)
  limit = rangecoder.Integers.LARGEST
  shape = [_limited('rows', sizes.code(coder, 0), limit) for _ in range(axes)]
  size = _limited('weights', math.prod(shape), room)
  if not size:
    raise ValueError('damaged file: a tensor without weights')
  check_density('weights', before + size, body_size)
  neighbours, per_row = coder.number(1), coder.number(1)
  shift, levels = 0, ()
  if coder.number(1):
    count = coder.number(4) + 1
    levels = tuple(coder.number(10) for _ in range(count))
  else:
    shift = coder.number(4)
  codes = [coder.number(8) + quantise.CODES[0]]
  steps = rangecoder.Integers(1)
  for _ in range(shape[0] - 1 if per_row and shape else 0):
    codes.append(codes[-1] + steps.code(coder, 0))
  if min(codes) < quantise.CODES[0] or max(codes) > quantise.CODES[-1]:
    raise ValueError('damaged file: a scale code is out of range')
  width = shape[-1] if shape else 1
  symbols_RC = np.zeros((size // width, width), np.int32)
  _code_symbols(coder, symbols_RC, neighbours)
  if levels and np.abs(symbols_RC).max() > len(levels):
    raise ValueError('damaged file: a symbol is beyond its codebook')
  codes_R = np.array(codes, np.int32)
  return quantise.Coded(symbols_RC.reshape(shape), codes_R, shift, levels)


def _code_symbols(
  coder: rangecoder.Coder, symbols_RC: np.ndarray, neighbours: int
) -> None:
  """Writes the symbols, or, with a decoder, replaces them by what it reads."""
  code = rangecoder.Integers(_CONTEXTS[neighbours]).code
  above = [0] * symbols_RC.shape[1]
  for index in range(len(symbols_RC)):
    row = symbols_RC[index].tolist()
    left = context = 0
    for place, symbol in enumerate(row):
      if neighbours:
        context = 3 * min(abs(left), 2) + min(abs(above[place]), 2)
      left = row[place] = code(coder, context, symbol)
    symbols_RC[index] = above = row


def _prefers_neighbours(symbols_RC: np.ndarray) -> bool:
  """Whether the neighbours' contexts shorten the code, by its ideal length."""
  context_RC = neighbour_contexts(symbols_RC)
  return ideal_bits(symbols_RC, context_RC) < ideal_bits(symbols_RC)


def neighbour_contexts(symbols_RC: np.ndarray) -> np.ndarray:
  """The context of every symbol by the sizes to its left and above."""
  size_RC = np.abs(symbols_RC)
  left_RC = np.pad(size_RC, ((0, 0), (1, 0)))[:, :-1]
  above_RC = np.pad(size_RC, ((1, 0), (0, 0)))[:-1]
  return 3 * np.minimum(left_RC, 2) + np.minimum(above_RC, 2)


def chosen_contexts(symbols_RC: np.ndarray) -> np.ndarray:
  """The contexts in which `encode` would write the symbols."""
  if _prefers_neighbours(symbols_RC):
    return neighbour_contexts(symbols_RC)
  return np.zeros(symbols_RC.shape, np.int64)


def ideal_bits(
  symbols_RC: np.ndarray, context_RC: np.ndarray | int = 0
) -> float:
  """Bits of symbols by `rangecoder.Integers`.

  The KT code length of n zeros and k ones is known in closed form and does not
  depend on their order: -log2 B(n + 1/2, k + 1/2) / B(1/2, 1/2).
  """
  context_RC = np.broadcast_to(context_RC, symbols_RC.shape)
  bits = 0.0
  for context in np.unique(context_RC):
    chosen_N = symbols_RC[context_RC == context]
    size_N = np.minimum(np.abs(chosen_N), 15)
    bits += _kt_bits((chosen_N > 0).sum(), (chosen_N < 0).sum())
    reached = np.bincount(size_N, minlength=16)[::-1].cumsum()[::-1]
    for stop, more in zip(reached[:-1] - reached[1:], reached[1:], strict=True):
      bits += _kt_bits(stop, more)
  # What is beyond 14 is told in digits, after their number.
  rest_N = np.abs(symbols_RC[np.abs(symbols_RC) > 14]) - 14
  length_N = np.frexp(rest_N)[1] - 1
  for length in range(length_N.max(initial=-1) + 1):
    bits += _kt_bits((length_N == length).sum(), (length_N > length).sum())
  return bits + float(length_N.sum())


def _kt_bits(zeros: int, ones: int) -> float:
  gamma = math.lgamma
  total = gamma(zeros + 0.5) + gamma(ones + 0.5) - gamma(zeros + ones + 1)
  return (math.log(math.pi) - total) / math.log(2)


def _check(tensor: quantise.Coded) -> None:
  symbols, codes_R = tensor.symbols, tensor.codes
  if not symbols.size or symbols.ndim > MAX_AXES:
    raise ValueError(
      f'tensor of shape {symbols.shape} must have weights and at most'
      f' {MAX_AXES} axes'
    )
  limit = rangecoder.Integers.LARGEST
  if max(abs(int(symbols.min())), int(symbols.max()), *symbols.shape) > limit:
    raise ValueError(
      f'symbols and axes must be at most {limit}; use a larger quantiser step'
    )
  rows = symbols.shape[0] if symbols.ndim else 1
  if codes_R.shape not in ((1,), (rows,)):
    raise ValueError(
      f'{codes_R.shape} scale codes fit neither the tensor nor its {rows} rows'
    )
  in_range = codes_R.min() in quantise.CODES and codes_R.max() in quantise.CODES
  if not in_range or tensor.shift not in quantise.SHIFTS:
    raise ValueError(
      f'scale codes {codes_R.min()} to {codes_R.max()} or shift {tensor.shift}'
      f' are not in {quantise.CODES} and {quantise.SHIFTS}'
    )
  _check_levels(tensor)


def _check_levels(tensor: quantise.Coded) -> None:
  levels = tensor.levels
  if not levels:
    return
  most = max(abs(int(tensor.symbols.min())), int(tensor.symbols.max()))
  in_range = all(level in quantise.LEVELS for level in levels)
  if not in_range or not most <= len(levels) <= quantise.MAX_LEVELS:
    raise ValueError(
      f'codebook {levels} must have a number of {quantise.LEVELS} for each of'
      f' the sizes 1 to {most}, and at most {quantise.MAX_LEVELS}'
    )
  if tensor.shift:
    raise ValueError(f'shift={tensor.shift} has no meaning with a codebook')


def _limited(name: str, number: int, limit: int) -> int:
  if not 0 <= number <= limit:
    raise ValueError(f'file has {number} {name}; at most {limit} are allowed')
  return number


def _varint(number: int) -> bytes:
  """Seven bits a byte, the lowest first; the high bit says that more follow."""
  out = bytearray()
  while number > 127:
    out.append(number & 127 | 128)
    number >>= 7
  return bytes([*out, number])


def _read_varint(data: bytes, start: int) -> tuple[int, int]:
  """The place after the number, and the number."""
  number = 0
  for place in range(start, start + 5):
    if place >= len(data):
      raise ValueError(f'file is cut short: it has {len(data)} bytes')
    number |= (data[place] & 127) << 7 * (place - start)
    if data[place] < 128:
      return place + 1, number
  raise ValueError('damaged file: the length of its body is not a number')
