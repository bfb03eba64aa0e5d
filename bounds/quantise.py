"""Weights as small integers times coded scales.

Rounding rules differ; what they make is always a `Coded`, so that the decoder
knows one formula: sign(s) (|s| - shift / 32) scale for a symbol s != 0, and 0
for s = 0, or levels[|s| - 1] / 32 in place of the bracket where a codebook is
given. Scales are 2**(code / 8): a table, not a library's power function, gives
them, so that they are the same float32 on every machine.
"""

import dataclasses

import numpy as np

CODES = range(-192, 64)
SHIFTS = range(16)
LEVELS = range(1, 1 << 10)
MAX_LEVELS = 16

# 2**(j / 8), correctly rounded to float32.
_POWERS = np.array(
  [
    1.0,
    1.09050773267,
    1.18920711500,
    1.29683955465,
    1.41421356237,
    1.54221082540,
    1.68179283051,
    1.83400808641,
  ],
  np.float32,
)


@dataclasses.dataclass(frozen=True)
class Coded:
  """A float32 tensor as integers: all that the file holds of it.

  symbols: int32, of the tensor's shape.
  codes: int32, one scale code for each entry of the first axis, or just one.
  shift: how many 32nds of a step reconstruction lies closer to 0.
  levels: what sizes 1, 2, ... stand for, in 32nds of the scale; () for
    multiples of it.
  """

  symbols: np.ndarray
  codes: np.ndarray
  shift: int = 0
  levels: tuple[int, ...] = ()

  def decode(self) -> np.ndarray:
    """The float32 tensor; one rounding per product, the same everywhere."""
    if self.levels:
      table = np.array([0, *self.levels], np.float32) / np.float32(32)
      size = table[np.abs(self.symbols)]
    else:
      size = np.abs(self.symbols).astype(np.float32)
      size -= np.float32(self.shift / 32)
      size = np.where(self.symbols == 0, np.float32(0), size)
    return np.sign(self.symbols).astype(np.float32) * size * self._steps()

  def _steps(self) -> np.ndarray:
    steps_R = scales(self.codes)
    if len(steps_R) == 1:
      return steps_R[0]
    return steps_R.reshape(-1, *[1] * (self.symbols.ndim - 1))


def scales(codes_R: np.ndarray) -> np.ndarray:
  """2**(code / 8) in float32."""
  codes_R = np.asarray(codes_R, np.int32)
  return np.ldexp(_POWERS[codes_R & 7], codes_R >> 3)


def scale_codes(scales_R: np.ndarray) -> np.ndarray:
  """The nearest codes, at most 4.5 % off; 0 gives the least code."""
  with np.errstate(divide='ignore'):
    codes_R = np.rint(8 * np.log2(np.asarray(scales_R, np.float64)))
  return np.clip(codes_R, CODES[0], CODES[-1]).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Uniform:
  """Rounds to multiples of a step of `step` times the standard deviation.

  By row (an index of the first axis) or for the whole tensor. Steps of one
  deviation cost about 2 bits per weight after entropy coding, halves 3 bits.
  """

  step: float
  per_row: bool = False

  def __post_init__(self) -> None:
    Deadzone(self.step, 0.5)

  def __call__(self, tensor: np.ndarray) -> Coded:
    return Deadzone(self.step, 0.5, self.per_row)(tensor)


@dataclasses.dataclass(frozen=True)
class Deadzone:
  """Rounds up only above `rounding` (0 to 0.5 leave more zeros) of a step.

  A magnitude of a steps becomes floor(a + rounding), and reconstruction is
  shifted towards 0 by the mean distance, in 32nds. 0.5 is plain rounding.
  """

  step: float
  rounding: float = 0.35
  per_row: bool = False

  def __post_init__(self) -> None:
    if not (0 < self.step < np.inf and 0 <= self.rounding <= 0.5):
      raise ValueError(
        f'step={self.step} must be positive and rounding={self.rounding} in'
        ' [0, 0.5]'
      )

  def __call__(self, tensor: np.ndarray) -> Coded:
    tensor = _check(tensor)
    codes_R = scale_codes(self.step * _deviations(tensor, self.per_row))
    ratio = tensor / _spread(scales(codes_R), tensor)
    size = np.floor(np.abs(ratio) + self.rounding)
    symbols = (np.sign(ratio) * size).astype(np.int32)
    distance = (size - np.abs(ratio))[symbols != 0]
    shift = int(np.rint(32 * distance.mean())) if distance.size else 0
    shift = min(max(shift, SHIFTS[0]), SHIFTS[-1])
    return Coded(symbols, codes_R, shift)


@dataclasses.dataclass(frozen=True)
class Ternary:
  """-scale, 0 or scale: 0 below `threshold` times the mean magnitude.

  The scale is the mean magnitude of the rest (arXiv 1605.04711).
  """

  threshold: float = 0.7
  per_row: bool = False

  def __post_init__(self) -> None:
    if not 0 <= self.threshold < np.inf:
      raise ValueError(f'threshold={self.threshold} must be at least 0')

  def __call__(self, tensor: np.ndarray) -> Coded:
    tensor = _check(tensor)
    size_RC = _rows(np.abs(tensor), self.per_row)
    kept_RC = size_RC > self.threshold * size_RC.mean(axis=1, keepdims=True)
    total_R = np.where(kept_RC, size_RC, 0).sum(axis=1)
    codes_R = scale_codes(total_R / np.maximum(kept_RC.sum(axis=1), 1))
    symbols = np.sign(tensor).astype(np.int32) * kept_RC.reshape(tensor.shape)
    return Coded(symbols, codes_R)


@dataclasses.dataclass(frozen=True)
class Codebook:
  """0 and `size` magnitudes of either sign, placed by k-means.

  Lloyd's algorithm from quantiles of the magnitudes (arXiv 1510.00149); a
  magnitude below half the least one becomes 0.
  """

  size: int = 3
  rounds: int = 20

  def __post_init__(self) -> None:
    if not 1 <= self.size <= MAX_LEVELS or self.rounds < 1:
      raise ValueError(
        f'size={self.size} must be in 1..{MAX_LEVELS} and rounds={self.rounds}'
        ' at least 1'
      )

  def __call__(self, tensor: np.ndarray) -> Coded:
    tensor = _check(tensor)
    size_N = np.abs(tensor).ravel()
    quantiles = (np.arange(self.size + 1) + 0.5) / (self.size + 1)
    centre_L = np.quantile(size_N, quantiles)[1:]
    for _ in range(self.rounds):
      index_N = self._nearest(size_N, centre_L)
      count_L = np.bincount(index_N, minlength=self.size + 1)[1:]
      total_L = np.bincount(index_N, size_N, self.size + 1)[1:]
      centre_L = np.where(
        count_L > 0, total_L / np.maximum(count_L, 1), centre_L
      )
    largest = centre_L[-1] or 1.0
    # So that the largest level is below the last that can be written.
    codes = scale_codes(np.array([largest * 32 / (LEVELS[-1] - 64)]))
    level_L = np.rint(32 * centre_L / scales(codes)[0]).astype(int)
    level_L = np.maximum(level_L, LEVELS[0])
    used_L = np.unique(level_L)  # Equal ones are of no use.
    centre_L = used_L * float(scales(codes)[0]) / 32
    index = self._nearest(size_N, centre_L).reshape(tensor.shape)
    symbols = (np.sign(tensor) * index).astype(np.int32)
    return Coded(symbols, codes, 0, tuple(used_L.tolist()))

  @staticmethod
  def _nearest(size_N: np.ndarray, centre_L: np.ndarray) -> np.ndarray:
    """0, or one more than the index of the nearest centre."""
    edges = np.concatenate([[0.0], centre_L])
    return np.searchsorted((edges[1:] + edges[:-1]) / 2, size_N)


def _check(tensor: np.ndarray) -> np.ndarray:
  tensor = np.asarray(tensor, np.float64)
  if not tensor.size or not np.isfinite(tensor).all():
    raise ValueError(
      f'tensor of shape {tensor.shape} must hold finite numbers, at least one'
    )
  return tensor


def _rows(tensor: np.ndarray, per_row: bool) -> np.ndarray:
  if per_row and tensor.ndim > 1:
    return tensor.reshape(len(tensor), -1)
  return tensor.reshape(1, -1)


def _deviations(tensor: np.ndarray, per_row: bool) -> np.ndarray:
  """Root mean squares; 1 for all zeros, so that nothing is divided by 0."""
  square_R = np.mean(_rows(tensor, per_row) ** 2, axis=1)
  return np.sqrt(np.where(square_R > 0, square_R, 1.0))


def _spread(scales_R: np.ndarray, tensor: np.ndarray) -> np.ndarray:
  if len(scales_R) == 1:
    return scales_R[0].astype(np.float64)
  return scales_R.astype(np.float64).reshape(-1, *[1] * (tensor.ndim - 1))
