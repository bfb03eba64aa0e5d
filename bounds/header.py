"""The notes of a model file: what is predicted, how it is smoothed and read.

Everything here was, or may have been, chosen after the stream was seen, so it
is in the file and paid for there.
"""

import dataclasses
import json
import struct
import zlib
from typing import Any

from bounds import alphabet

_FIELDS = struct.Struct('<BBBHH')
_LARGEST_MODEL = 1 << 16

BASES = range(256)
SLOPES = range(64)


@dataclasses.dataclass(frozen=True)
class Header:
  """alpha_i = min(2**(-base / 16 - slope / 32 H_i), 0.9), entropy H_i in bits.

  alphabet: name in alphabet.ALPHABETS; base, slope: codes as above.
  window, stride: how documents are read, as evals.bits_per_byte.
  model, structure: the JSON forms of the network and of the structure.Structure
    of its parameters, None for structure.Plain.
  """

  alphabet: str
  base: int
  slope: int
  window: int
  stride: int
  model: Any
  structure: Any = None

  def __post_init__(self) -> None:
    alphabet.named(self.alphabet)
    if self.base not in BASES or self.slope not in SLOPES:
      raise ValueError(
        f'smoothing codes {self.base} and {self.slope} must be in {BASES} and'
        f' {SLOPES}'
      )
    if not 0 < self.stride <= self.window < 1 << 16:
      raise ValueError(
        f'stride={self.stride} must be in 1..window={self.window}, and that'
        ' below 65536'
      )

  @property
  def smoothing(self) -> tuple[float, float]:
    """Base and slope of alpha."""
    return smoothing_of(self.base, self.slope)

  def to_bytes(self) -> bytes:
    code = list(alphabet.ALPHABETS).index(self.alphabet)
    numbers = (code, self.base, self.slope, self.window, self.stride)
    model = dict(self.model)
    if self.structure is not None:
      model['structure'] = self.structure
    text = json.dumps(model, separators=(',', ':')).encode()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return _FIELDS.pack(*numbers) + deflate.compress(text) + deflate.flush()


def smoothing_of(base: int, slope: int) -> tuple[float, float]:
  """The base and the slope per bit that two codes stand for."""
  return 2.0 ** (-base / 16), slope / 32


def from_bytes(notes: bytes) -> Header:
  """Inverse of `Header.to_bytes`; ValueError for anything else."""
  if len(notes) <= _FIELDS.size:
    raise ValueError(
      f'file has {len(notes)} bytes of notes, too few to be a predictor: it'
      ' was not written by python -m bounds'
    )
  code, base, slope, window, stride = _FIELDS.unpack(notes[: _FIELDS.size])
  names = list(alphabet.ALPHABETS)
  if code >= len(names):
    raise ValueError(
      f'file has alphabet {code}, this decoder knows {len(names)}; use the'
      ' release that wrote it'
    )
  inflate = zlib.decompressobj(-15)
  try:
    text = inflate.decompress(notes[_FIELDS.size :], _LARGEST_MODEL)
    complete = inflate.eof and not inflate.unused_data
    model = json.loads(text) if complete else None
  except (zlib.error, ValueError, RecursionError) as error:
    raise ValueError(
      'damaged file: the description of its network cannot be read'
    ) from error
  if not isinstance(model, dict):
    raise ValueError('damaged file: it describes no network')
  structure = model.pop('structure', None)
  return Header(names[code], base, slope, window, stride, model, structure)
