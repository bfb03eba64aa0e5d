"""Networks of fewer free numbers than weights: what the file holds instead.

A structure maps free arrays, by path, to the parameters of a network, with
operators that arrays of NumPy and of JAX share. What it takes besides is drawn
from a seed that is part of the file, so it costs nothing and fits nothing.
"""

import dataclasses
import functools
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]

_LAYER = re.compile(r'^(.*?block_)(\d+)(/.*)$')


@dataclasses.dataclass(frozen=True)
class Plain:
  """Every weight is free."""

  def shapes(self, of_model: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes of the free arrays."""
    return dict(of_model)

  def shrink(self, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Free arrays whose expansion is near `params`."""
    return dict(params)

  def expand(self, free: Mapping[str, Any], of_model: Shapes) -> dict[str, Any]:
    """The parameters of the network."""
    del of_model
    return dict(free)


@dataclasses.dataclass(frozen=True)
class Shared:
  """Block i of the network is block i modulo `blocks` (arXiv 1807.03819)."""

  blocks: int = 1

  def __post_init__(self) -> None:
    if self.blocks < 1:
      raise ValueError(f'structure: blocks={self.blocks} must be at least 1')

  def shapes(self, of_model: Shapes) -> dict[str, tuple[int, ...]]:
    return {x: shape for x, shape in of_model.items() if self._source(x) == x}

  def shrink(self, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of the first blocks."""
    return {x: array for x, array in params.items() if self._source(x) == x}

  def expand(self, free: Mapping[str, Any], of_model: Shapes) -> dict[str, Any]:
    return {name: free[self._source(name)] for name in of_model}

  def _source(self, name: str) -> str:
    found = _LAYER.match(name)
    if not found:
      return name
    return f'{found[1]}{int(found[2]) % self.blocks}{found[3]}'


@dataclasses.dataclass(frozen=True)
class LowRankOnRandom:
  """A matrix of a block is W0 + B A, W0 random and frozen (arXiv 2312.17173).

  rank: of B A, at most half the smaller width; seed: of every W0, which has
    deviation gain fan_in^-1/2.
  """

  rank: int = 4
  seed: int = 0
  gain: float = 1.0

  def __post_init__(self) -> None:
    if self.rank < 1 or not 0 <= self.seed < 1 << 32:
      raise ValueError(
        f'structure: rank={self.rank} must be at least 1 and seed={self.seed}'
        ' in 0..2**32 - 1'
      )

  def shapes(self, of_model: Shapes) -> dict[str, tuple[int, ...]]:
    free = {}
    for name, shape in of_model.items():
      if self._is_replaced(name, shape):
        free[f'{name}_a'] = (self.rank, shape[1])
        free[f'{name}_b'] = (shape[0], self.rank)
      else:
        free[name] = tuple(shape)
    return free

  def shrink(self, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The nearest B A to the difference from W0, its scale shared evenly."""
    free = {}
    for name, array in params.items():
      if not self._is_replaced(name, np.shape(array)):
        free[name] = array
        continue
      rest = np.asarray(array, np.float64) - self._base(name, array.shape)
      u, sizes, v = np.linalg.svd(rest, full_matrices=False)
      root = np.sqrt(sizes[: self.rank])
      free[f'{name}_a'] = (root[:, None] * v[: self.rank]).astype(np.float32)
      free[f'{name}_b'] = (u[:, : self.rank] * root).astype(np.float32)
    return free

  def expand(self, free: Mapping[str, Any], of_model: Shapes) -> dict[str, Any]:
    params = {}
    for name, shape in of_model.items():
      if self._is_replaced(name, shape):
        product = free[f'{name}_b'] @ free[f'{name}_a']
        params[name] = product + self._base(name, shape)
      else:
        params[name] = free[name]
    return params

  def _is_replaced(self, name: str, shape: tuple[int, ...]) -> bool:
    wide = len(shape) == 2 and min(shape) >= 2 * self.rank
    return wide and bool(_LAYER.match(name))

  def _base(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
    # The legacy generator: its stream is frozen for all versions of NumPy.
    seed = (zlib.crc32(name.encode()) + self.seed) % (1 << 32)
    normal = np.random.RandomState(seed).standard_normal(shape)
    return (self.gain * shape[0] ** -0.5 * normal).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Subspace:
  """The factors of LowRankOnRandom lie in a random subspace (SubLoRA).

  All factors in a row are the vector of Q1 Z Q2^T: a Kronecker product of two
  random matrices of orthonormal columns times Z, which is free (arXiv
  2312.17173, section 4.1).

  rank, seed: of LowRankOnRandom. share: of the factors' number that Z has.
  """

  rank: int = 4
  seed: int = 0
  share: float = 0.5

  def __post_init__(self) -> None:
    LowRankOnRandom(self.rank, self.seed)
    if not 0 < self.share <= 1:
      raise ValueError(f'structure: share={self.share} must be in (0, 1]')

  def shapes(self, of_model: Shapes) -> dict[str, tuple[int, ...]]:
    free = self._factors.shapes(of_model)
    inside = self._inside(of_model)
    sides = _sides(sum(math.prod(free.pop(name)) for name in inside))
    root = math.sqrt(self.share)
    return free | {'subspace': tuple(math.ceil(root * x) for x in sides)}

  def shrink(self, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The projection of the factors that LowRankOnRandom has."""
    free = self._factors.shrink(params)
    shapes = {name: np.shape(array) for name, array in params.items()}
    parts = [np.ravel(free.pop(name)) for name in self._inside(shapes)]
    vector = np.concatenate(parts)
    size = self.shapes(shapes)['subspace']
    left, right = self._bases(len(vector), size)
    whole = np.zeros(len(left) * len(right), np.float32)
    whole[: len(vector)] = vector
    whole = whole.reshape(len(left), len(right))
    return free | {'subspace': left.T @ whole @ right}

  def expand(self, free: Mapping[str, Any], of_model: Shapes) -> dict[str, Any]:
    factors = self._factors.shapes(of_model)
    inside = self._inside(of_model)
    count = sum(math.prod(factors[name]) for name in inside)
    middle = free['subspace']
    left, right = self._bases(count, middle.shape)
    vector = (left @ middle @ right.T).reshape(-1)
    found, start = dict(free), 0
    for name in inside:
      stop = start + math.prod(factors[name])
      found[name] = vector[start:stop].reshape(factors[name])
      start = stop
    return self._factors.expand(found, of_model)

  @property
  def _factors(self) -> LowRankOnRandom:
    return LowRankOnRandom(self.rank, self.seed)

  def _inside(self, of_model: Shapes) -> list[str]:
    """Names of the factors, in the order of the vector."""
    inside = sorted(self._factors.shapes(of_model).keys() - of_model.keys())
    if not inside:
      raise ValueError(
        f'structure: no matrix of a block has both widths above rank'
        f' {2 * self.rank - 1}; take a smaller rank'
      )
    return inside

  def _bases(
    self, count: int, size: tuple[int, ...]
  ) -> tuple[np.ndarray, np.ndarray]:
    left, right = (
      _orthonormal(side, columns, (self.seed + 1 + index) % (1 << 32))
      for index, (side, columns) in enumerate(
        zip(_sides(count), size, strict=True)
      )
    )
    return left, right


def _sides(count: int) -> tuple[int, int]:
  """The sides of a matrix of at least so many entries."""
  side = math.ceil(math.sqrt(count))
  return side, -(-count // side)


@functools.lru_cache(maxsize=8)
def _orthonormal(rows: int, columns: int, seed: int) -> np.ndarray:
  normal = np.random.RandomState(seed).standard_normal((rows, columns))
  return np.linalg.qr(normal)[0].astype(np.float32)


PLAIN = Plain()
Structure = Plain | Shared | LowRankOnRandom | Subspace

_NAMES = {
  'none': Plain, 'shared': Shared, 'lora': LowRankOnRandom, 'sublora': Subspace,
}  # fmt: skip


def parse(text: str) -> Structure:
  """The structure of 'none', 'shared:2' (blocks), or 'lora:4' (rank)."""
  name, _, number = text.partition(':')
  if name not in _NAMES or not (number or '1').isdecimal():
    raise ValueError(
      f'--structure={text} is unknown; write none, shared:BLOCKS, lora:RANK or'
      ' sublora:RANK, as shared:1; low-rank, Monarch and Kronecker layers are'
      ' set in the config, as model.linear of models.structured'
    )
  return _NAMES[name](int(number)) if number else _NAMES[name]()
