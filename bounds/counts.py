"""A table of counts as a predictor, and its file: what a network has to beat.

How often each class followed each context of up to `order` classes, in steps
of half an octave. Contexts below `least` occurrences are left out, and so are
successors that occur less often. Probabilities interpolate with those of the
next shorter context (Witten and Bell 1991, method C, its weight multiplied).
"""

import dataclasses
import struct
from collections.abc import Iterator

import numpy as np

from bounds import codec
from bounds import rangecoder

MAGIC = b'PK'
MAX_ORDER = 6
MAX_ENTRIES = 1 << 27
# Entries per byte of a file, empty ones included: a context takes a bit or more
# and has up to 257.
_DENSEST, _SPARE = 1 << 12, 1 << 20
_FIELDS = struct.Struct('<BBBBBBB')
_LARGEST = 63


@dataclasses.dataclass(frozen=True)
class Options:
  """What the file says beside the counts.

  alphabet: its code. least: occurrences needed to be listed. weight: of the
  shorter context, in quarters. base, slope: codes of `header.Header`.
  """

  alphabet: int
  classes: int
  order: int
  least: int = 1
  weight: int = 4
  base: int = 0
  slope: int = 0

  def __post_init__(self) -> None:
    for name, value in dataclasses.asdict(self).items():
      if not 0 <= value < 256:
        raise ValueError(f'{name}={value} must be in 0..255')
    if self.order > MAX_ORDER or self.classes < 2 or self.least < 1:
      raise ValueError(
        f'order={self.order} must be at most {MAX_ORDER}, classes='
        f'{self.classes} at least 2 and least={self.least} at least 1'
      )


@dataclasses.dataclass(frozen=True)
class Level:
  """Contexts of one length: buckets of their successors' counts.

  bucket_RC: 0 for none, else 1 + 2 log2(count), rounded (uint8).
  suffix_R: the row of the context without its oldest class, one level up.
  child_RC: row, one level down, of the context with this class appended; -1.
  """

  bucket_RC: np.ndarray
  suffix_R: np.ndarray
  child_RC: np.ndarray


def _level(bucket_RC: np.ndarray, suffix_R: np.ndarray) -> Level:
  child_RC = np.full(bucket_RC.shape, -1, np.int32)
  listed_RC = bucket_RC > 0
  child_RC[listed_RC] = np.arange(listed_RC.sum(), dtype=np.int32)
  return Level(bucket_RC, suffix_R, child_RC)


def _suffixes(levels: list[Level]) -> np.ndarray:
  """Suffixes of the contexts that the last level's entries make."""
  last = levels[-1]
  rows_R, classes_R = np.nonzero(last.bucket_RC)
  if len(levels) == 1:
    return np.zeros(len(rows_R), np.int32)
  suffix_R = levels[-2].child_RC[last.suffix_R[rows_R], classes_R]
  if (suffix_R < 0).any():
    raise ValueError('damaged file: a context is listed without its suffix')
  return suffix_R


def count(
  class_N: np.ndarray, place_N: np.ndarray, options: Options
) -> list[Level]:
  """Levels 0 to `order` of a stream of classes.

  place_N: of each class in its document, from 0; contexts do not cross.
  """
  levels: list[Level] = []
  row_N = np.zeros(len(class_N), np.int32)
  for order in range(options.order + 1):
    suffix_R = np.zeros(1, np.int32)
    if order:
      suffix_R = _suffixes(levels)
      row_N = _deeper(levels[-1], row_N, class_N, place_N)
    if len(suffix_R) * options.classes > MAX_ENTRIES:
      raise ValueError(
        f'order {order} has {len(suffix_R)} contexts; take a lower order or'
        ' list only those that occur more often'
      )
    seen_N = row_N >= 0
    index_N = row_N[seen_N].astype(np.int64) * options.classes
    count_RC = np.bincount(
      index_N + class_N[seen_N], minlength=len(suffix_R) * options.classes
    ).reshape(-1, options.classes)
    with np.errstate(divide='ignore'):
      bucket_RC = 1 + np.rint(2 * np.log2(count_RC))
    bucket_RC = np.where(count_RC >= options.least, bucket_RC, 0)
    levels.append(_level(bucket_RC.astype(np.uint8), suffix_R))
  return levels


def _deeper(
  level: Level, row_N: np.ndarray, class_N: np.ndarray, place_N: np.ndarray
) -> np.ndarray:
  """Rows one level down: of the class before in the row of its own context."""
  before_N = np.roll(row_N, 1)
  child_N = level.child_RC[before_N, np.roll(class_N, 1)]
  return np.where((place_N > 0) & (before_N >= 0), child_N, -1)


def encode(levels: list[Level], options: Options) -> bytes:
  """The file of a table: self-delimiting and free of names."""
  coder = rangecoder.Encoder()
  for byte in _FIELDS.pack(*dataclasses.astuple(options)):
    coder.number(8, byte)
  models = _Models()
  for order, level in enumerate(levels):
    above = levels[order - 1].bucket_RC if order else None
    for _ in _coded(coder, models, level, above):
      pass
  return codec.sealed(coder.finish(), MAGIC)


def decode(data: bytes) -> tuple[list[Level], Options]:
  """Inverse of `encode`; ValueError for anything else."""
  body, size = codec.opened(data, MAGIC)
  if size != len(data):
    raise ValueError(f'file ends after {size} of {len(data)} bytes')
  coder = rangecoder.Decoder(body)
  fields = bytes(coder.number(8) for _ in range(_FIELDS.size))
  options = Options(*_FIELDS.unpack(fields))
  models, levels, entries = _Models(), [], 0
  for order in range(options.order + 1):
    suffix_R = _suffixes(levels) if order else np.zeros(1, np.int32)
    entries += len(suffix_R) * options.classes
    if entries > min(MAX_ENTRIES, _SPARE + _DENSEST * len(body)):
      raise ValueError('damaged file: its table is larger than allowed')
    bucket_RC = np.zeros((len(suffix_R), options.classes), np.uint8)
    level = Level(bucket_RC, suffix_R, bucket_RC)
    above = levels[-1].bucket_RC if order else None
    for row, row_C in enumerate(_coded(coder, models, level, above)):
      bucket_RC[row] = row_C
    levels.append(_level(bucket_RC, suffix_R))
  coder.finish()
  return levels, options


class _Models:
  """Adaptive models by the bucket above and how full the row is so far."""

  def __init__(self) -> None:
    self._integers = rangecoder.Integers(1 + (_LARGEST + 1) * 3)

  def code(self, coder: rangecoder.Coder, context: int, bucket: int) -> int:
    found = self._integers.code(coder, context, bucket)
    if not 0 <= found <= _LARGEST:
      raise ValueError('damaged file: a count is out of range')
    return found


def _coded(
  coder: rangecoder.Coder,
  models: _Models,
  level: Level,
  above: np.ndarray | None,
) -> Iterator[list[int]]:
  """Rows as written, or as read with a decoder.

  A successor that the shorter context lacks cannot occur and takes no bits.
  """
  classes = level.bucket_RC.shape[1]
  for row_C, suffix in zip(level.bucket_RC, level.suffix_R, strict=True):
    values = row_C.tolist()
    if above is None:
      limits = [_LARGEST] * classes
    else:
      limits = above[suffix].tolist()
    found = 0
    for index, limit in enumerate(limits):
      if not limit:
        values[index] = 0
        continue
      context = 1 + 3 * limit + min(found, 2) if above is not None else 0
      bucket = models.code(coder, context, values[index])
      values[index] = bucket
      found += bucket > 0
    yield values


@dataclasses.dataclass(frozen=True)
class Predictions:
  """Of every context listed: probabilities of classes and their entropy."""

  probability: list[np.ndarray]
  entropy: list[np.ndarray]


def predict(levels: list[Level], weight: float) -> Predictions:
  """Interpolated probabilities [rows, classes] of every level, and bits."""
  shorter_RC = np.full((1, levels[0].bucket_RC.shape[1]), 1.0)
  shorter_RC /= shorter_RC.sum()
  probabilities, entropies = [], []
  for level in levels:
    count_RC = np.where(
      level.bucket_RC > 0, np.exp2((level.bucket_RC - 1.0) / 2), 0.0
    )
    kinds_R1 = weight * (level.bucket_RC > 0).sum(1, keepdims=True)
    kinds_R1 = np.maximum(kinds_R1, 1e-3)
    total_R1 = count_RC.sum(1, keepdims=True) + kinds_R1
    p_RC = (count_RC + kinds_R1 * shorter_RC[level.suffix_R]) / total_R1
    probabilities.append(p_RC)
    entropies.append(-(p_RC * np.log2(p_RC)).sum(1))
    shorter_RC = p_RC
  return Predictions(probabilities, entropies)


def score(
  levels: list[Level],
  predictions: Predictions,
  class_N: np.ndarray,
  place_N: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Probability, entropy and rank of every class, from the longest context.

  Rows of equal probabilities rank the lower class first.
  """
  row_N = np.zeros(len(class_N), np.int32)
  probability_N = np.zeros(len(class_N))
  entropy_N = np.zeros(len(class_N), np.float32)
  rank_N = np.zeros(len(class_N), np.int16)
  for order, level in enumerate(levels):
    if order:
      row_N = _deeper(levels[order - 1], row_N, class_N, place_N)
    seen_N = row_N >= 0
    where = row_N[seen_N], class_N[seen_N]
    p_RC = predictions.probability[order]
    probability_N[seen_N] = p_RC[where]
    entropy_N[seen_N] = predictions.entropy[order][where[0]]
    order_RC = np.argsort(-p_RC, axis=1, kind='stable')
    rank_RC = np.empty(p_RC.shape, np.int16)
    ranks_1C = np.arange(p_RC.shape[1], dtype=np.int16)[None]
    np.put_along_axis(
      rank_RC, order_RC, np.broadcast_to(ranks_1C, p_RC.shape), 1
    )
    rank_N[seen_N] = rank_RC[where]
    del level
  return probability_N, entropy_N, rank_N
