"""What every bound returns, and the checks and the cost that all share."""

import dataclasses
import decimal
import math
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Bound:
  """An upper bound on the risk, and the numbers that it is made of."""

  value: float
  terms: Mapping[str, float]

  def rounded_up(self, digits: int = 3) -> decimal.Decimal:
    """The value for print, never below what was certified."""
    place = decimal.Decimal(1).scaleb(-digits)
    value = decimal.Decimal(self.value)
    return value.quantize(place, rounding=decimal.ROUND_CEILING)


def check_delta(delta: float) -> None:
  """Raises ValueError unless 0 < delta < 1."""
  if not 0 < delta < 1:
    raise ValueError(
      f'delta={delta} must lie strictly between 0 and 1; 0.05 certifies with'
      ' confidence 95 %'
    )


def check_grid(name: str, grid: tuple[float, ...]) -> None:
  """Raises ValueError unless the grid has finite positive numbers only."""
  if not grid or not all(0 < value < math.inf for value in grid):
    raise ValueError(
      f'{name}={grid!r} must be a tuple of finite positive numbers, fixed'
      ' before the stream is seen'
    )


def cost(description_bits: float, delta: float, count: int) -> float:
  """Charge per symbol, in nats: (K ln 2 + ln 1/delta) / count."""
  check_delta(delta)
  if not 0 <= description_bits < math.inf:
    raise ValueError(
      f'description_bits={description_bits} must be a finite number >= 0:'
      ' eight times the bytes of the file'
    )
  return (description_bits * math.log(2) - math.log(delta)) / count


def as_losses(losses_N: np.ndarray) -> np.ndarray:
  """The losses as float64; they must be a non-empty row of finite numbers."""
  losses_N = np.asarray(losses_N, np.float64)
  if losses_N.ndim != 1 or not losses_N.size or not _finite(losses_N):
    raise ValueError(
      f'losses of shape {losses_N.shape} must be a non-empty row of finite'
      ' numbers; smooth the predictor so that no symbol has probability 0'
    )
  return losses_N


def as_row(name: str, values: np.ndarray | float, count: int) -> np.ndarray:
  """One finite float64 per loss, out of such a row or one number for all."""
  values_N = np.asarray(values, np.float64)
  if values_N.shape not in ((), (count,)) or not _finite(values_N):
    raise ValueError(
      f'{name} of shape {values_N.shape} must be one finite number, or one for'
      f' each of the {count} losses'
    )
  return np.broadcast_to(values_N, (count,))


def check_within(losses_N: np.ndarray, low: float, high: float) -> None:
  """Raises ValueError unless low < high and all losses are in between."""
  if not -math.inf < low < high < math.inf:
    raise ValueError(
      f'loss interval [{low}, {high}] must be finite, low < high'
    )
  if losses_N.min() < low or losses_N.max() > high:
    raise ValueError(
      f'losses from {losses_N.min()} to {losses_N.max()} leave their interval'
      f' [{low}, {high}]; it must hold every loss that could have occurred, not'
      ' only those that did'
    )


def _finite(values: np.ndarray) -> bool:
  return bool(np.isfinite(values).all())
