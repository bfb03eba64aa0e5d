"""Rounding that weighs what a symbol costs against how far off it is.

A weight goes to the neighbour of least bits + weight * (distance in steps)**2,
under the prices of the code that the file is written in. Rate-distortion
optimised quantisation, as of video coders (Sullivan and Wiegand 1998).
"""

import dataclasses
import math

import numpy as np

from bounds import codec
from bounds import quantise

# Prices follow the symbols and symbols the prices; it settles at once.
_ROUNDS = 3
# Larger symbols are the nearest ones, whatever they cost.
_LARGEST = 30


@dataclasses.dataclass(frozen=True)
class RateDistortion:
  """Symbols of least bits + weight * (distance in steps)**2.

  step: of the quantiser, in standard deviations. weight: in bits; at a uniform
  density a finer step saves as much distortion per bit if it is 6 / ln 2 = 8.7.
  """

  step: float
  weight: float = 8.7

  def __post_init__(self) -> None:
    quantise.Deadzone(self.step)
    if not 0 < self.weight < math.inf:
      raise ValueError(f'weight={self.weight} must be positive')

  def __call__(self, tensor: np.ndarray) -> quantise.Coded:
    plain = quantise.Uniform(self.step)(tensor)
    ratio = np.asarray(tensor, np.float64) / quantise.scales(plain.codes)[0]
    return quantise.Coded(*shifted(ratio, self.weight, plain.codes))


def shifted(
  ratio: np.ndarray, weight: np.ndarray | float, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
  """The fields of a `Coded`, its reconstruction moved to the mean."""
  shift = 0
  for _ in range(2):
    symbols = rounded(ratio, weight, shift=shift)
    used = symbols != 0
    distance = (np.abs(symbols) - np.abs(ratio))[used]
    shift = int(np.rint(32 * distance.mean())) if distance.size else 0
    shift = min(max(shift, quantise.SHIFTS[0]), quantise.SHIFTS[-1])
  return symbols, codes, shift


def rounded(
  ratio: np.ndarray, weight: np.ndarray | float, *, shift: int = 0
) -> np.ndarray:
  """int32 symbols for weights in steps.

  weight: bits per squared step, one number or one for every weight.
  shift: of the reconstruction, as `quantise.Coded.shift`.
  """
  ratio = np.asarray(ratio, np.float64)
  width = ratio.shape[-1] if ratio.ndim else 1
  ratio_RC = ratio.reshape(-1, width)
  weight_RC = np.broadcast_to(weight, ratio.shape).reshape(-1, width)
  whole_RC = np.rint(ratio_RC)
  symbol_RC = np.clip(whole_RC, -_LARGEST, _LARGEST).astype(np.int32)
  nearest_RC = np.abs(symbol_RC)
  sign_RC = np.where(ratio_RC < 0, -1, 1)
  for _ in range(_ROUNDS):
    context_RC = codec.chosen_contexts(symbol_RC)
    bits_CK = prices(symbol_RC, context_RC)
    best_RC, least_RC = symbol_RC, np.full(ratio_RC.shape, np.inf)
    for size_RC in (nearest_RC, np.maximum(nearest_RC - 1, 0), 0 * nearest_RC):
      offset_RC = np.abs(ratio_RC) - size_RC + shift / 32 * (size_RC > 0)
      cost_RC = bits_CK[context_RC, sign_RC * size_RC + _LARGEST]
      cost_RC = cost_RC + weight_RC * offset_RC**2
      best_RC = np.where(cost_RC < least_RC, sign_RC * size_RC, best_RC)
      least_RC = np.minimum(cost_RC, least_RC)
    symbol_RC = best_RC
  symbol_RC = np.where(np.abs(whole_RC) > _LARGEST, whole_RC, symbol_RC)
  return symbol_RC.astype(np.int32).reshape(ratio.shape)


def prices(symbols_RC: np.ndarray, context_RC: np.ndarray) -> np.ndarray:
  """Bits [contexts, symbol + 30] of a next symbol, after these were coded.

  Those of the KT models of `rangecoder.Integers`, exactly up to size 14.
  """
  count = int(context_RC.max()) + 1
  bits_CK = np.zeros((count, 2 * _LARGEST + 1))
  for context in range(count):
    chosen_N = symbols_RC[context_RC == context]
    more_S = np.bincount(np.abs(chosen_N), minlength=_LARGEST + 2)
    more_S = more_S[::-1].cumsum()[::-1]  # How many are at least so large.
    stop_S = -np.log2((more_S[:-1] - more_S[1:] + 0.5) / (more_S[:-1] + 1))
    goes_S = -np.log2((more_S[1:] + 0.5) / (more_S[:-1] + 1))
    size_S = stop_S + np.concatenate([[0.0], goes_S[:-1].cumsum()])
    for sign in (-1, 1):
      share = ((chosen_N * sign > 0).sum() + 0.5) / (more_S[1] + 1)
      place_S = _LARGEST + sign * np.arange(1, _LARGEST + 1)
      bits_CK[context, place_S] = size_S[1 : _LARGEST + 1] - math.log2(share)
    bits_CK[context, _LARGEST] = size_S[0]
  return bits_CK
