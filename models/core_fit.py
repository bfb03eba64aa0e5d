"""Cores of a given matrix: singular values, then alternating least squares."""

from typing import Any

import numpy as np

from models import core_chain


def from_dense(
  chain: core_chain.Chain,
  matrix: np.ndarray,
  *,
  sweeps: int = 50,
  where: str = 'from_dense',
) -> list[np.ndarray]:
  """Kernels whose matrix is near W [d_in, d_out], in float64.

  Cores are split off one by one, by a truncated singular value decomposition
  per block: plain for low rank, of Van Loan's rearrangement for Kronecker
  products and tensor trains, of every block for block tensor trains. Two
  cores without padding are the nearest in the Frobenius norm, and a matrix
  that the cores can represent is returned exactly.

  sweeps: of least squares over one core after another, at most: for more
    cores, for padding, whose entries are free, and for a bond of three cores
    (core_chain.blast), which begins at random and need not find the nearest.
  where: the layer, with which errors begin. Raises ValueError for entries that
    are not finite, and for a matrix of other widths.
  """
  wrong = np.size(matrix) - np.count_nonzero(np.isfinite(matrix))
  if matrix.shape != (chain.d_in, chain.d_out) or wrong:
    raise ValueError(
      f'{where} {chain.d_in} -> {chain.d_out}: a matrix of {matrix.shape} with'
      f' {wrong} entries that are not finite cannot be converted; give one of'
      f' {(chain.d_in, chain.d_out)}, all finite, as of an earlier checkpoint.'
    )
  shape = (chain.size(chain.inputs), chain.size(chain.outputs))
  target = np.zeros(shape)
  target[: chain.d_in, : chain.d_out] = matrix
  is_shared = any(len(_holders(chain, bond)) > 2 for bond in _bonds(chain))
  kernels = _drawn(chain, target) if is_shared else _split_off(chain, target)
  if len(chain.cores) > 2 or shape != matrix.shape:
    kernels = _improved(chain, kernels, target, sweeps)
  return [
    kernel.reshape(size)
    for kernel, size in zip(kernels, chain.shapes, strict=True)
  ]


def _split_off(
  chain: core_chain.Chain, target: np.ndarray
) -> list[np.ndarray]:
  """Cores of one decomposition after another, with axes of their own."""
  axes = chain.inputs + chain.outputs
  rest = target.reshape([chain.sizes[a] for a in axes])
  kernels = []
  for i, core in enumerate(chain.cores[:-1]):
    later = {a for other in chain.cores[i + 1 :] for a in other.axes}
    bond = tuple(a for a in core.out if a not in chain.outputs)
    own = tuple(a for a in core.axes if a not in bond)
    shared = tuple(a for a in own if a in later)
    rows = tuple(a for a in own if a not in later)
    columns = tuple(a for a in axes if a not in own)
    stack = core_chain.transpose(rest, axes, shared + rows + columns)
    left, values, right = np.linalg.svd(
      stack.reshape(*map(chain.size, (shared, rows, columns))),
      full_matrices=False,
    )
    rank = chain.size(bond)
    roots = np.sqrt(values[:, :rank])
    left = left[:, :, :rank] * roots[:, None]
    rest = roots[..., None] * right[:, :rank]
    left_axes, axes = shared + rows + bond, shared + bond + columns
    left = left.reshape([chain.sizes[a] for a in left_axes])
    kernels.append(core_chain.transpose(left, left_axes, core.axes))
    rest = rest.reshape([chain.sizes[a] for a in axes])
  last = chain.cores[-1].axes
  return [*kernels, core_chain.transpose(rest, axes, last)]


def _drawn(chain: core_chain.Chain, target: np.ndarray) -> list[np.ndarray]:
  """Normal cores whose product has about the size of the target."""
  rng = np.random.default_rng(0)
  kernels = [
    rng.standard_normal([chain.sizes[a] for a in core.axes])
    for core in chain.cores
  ]
  size = np.linalg.norm(target) / np.linalg.norm(_product(chain, kernels))
  return [kernel * size ** (1 / len(kernels)) for kernel in kernels]


def _improved(
  chain: core_chain.Chain,
  kernels: list[np.ndarray],
  target: np.ndarray,
  sweeps: int,
) -> list[np.ndarray]:
  """The kernels after sweeps, as long as these bring them nearer.

  What stands in the padding of the target counts nothing.
  """
  real = np.zeros(target.shape, bool)
  real[: chain.d_in, : chain.d_out] = True
  error = np.linalg.norm((_product(chain, kernels) - target)[real])
  for _ in range(sweeps):
    if error <= 1e-12 * np.linalg.norm(target):
      break
    tried = list(kernels)
    for i in range(len(tried)):
      tried[i] = _solved(chain, tried, i, target, real)
    now = np.linalg.norm((_product(chain, tried) - target)[real])
    if not now < error:
      break
    gain, error, kernels = 1 - now / error, now, tried
    if gain < 1e-4:
      break
  return kernels


def _solved(
  chain: core_chain.Chain,
  kernels: list[np.ndarray],
  i: int,
  target: np.ndarray,
  real: np.ndarray,
) -> np.ndarray:
  """The i-th core that is best beside the others, by normal equations."""
  core, features = chain.cores[i], chain.inputs + chain.outputs
  others = {
    a for j, other in enumerate(chain.cores) if j != i for a in other.axes
  }
  bonds = tuple(a for a in core.axes if a not in features)
  own = [a for a in core.axes if a in features]
  shared = tuple(a for a in own if a in others)
  rows = tuple(a for a in own if a not in others)
  columns = tuple(a for a in features if a not in own)
  rest = _einsum(chain, kernels, shared + bonds + columns, without=i)
  rest_SBC = rest.reshape(*map(chain.size, (shared, bonds, columns)))

  def by_row(x: np.ndarray) -> np.ndarray:
    x = x.reshape([chain.sizes[a] for a in features])
    x = core_chain.transpose(x, features, shared + rows + columns)
    return x.reshape(*map(chain.size, (shared, rows, columns)))

  # Rows of a core have their own columns that are padding, but few sets.
  weight_SRC, turned_SCB = by_row(real), rest_SBC.swapaxes(1, 2)
  packed = np.packbits(weight_SRC.reshape(-1, weight_SRC.shape[2]), axis=1)
  _, first, which = np.unique(
    packed, axis=0, return_index=True, return_inverse=True
  )
  which_SR1 = which.reshape(*weight_SRC.shape[:2], 1)
  right_SRB = (by_row(target) * weight_SRC) @ turned_SCB
  kernel = np.zeros_like(right_SRB)
  for number, row in enumerate(first):
    weight_C = weight_SRC.reshape(-1, weight_SRC.shape[2])[row]
    square_SBB = (rest_SBC * weight_C) @ turned_SCB
    inverse_SBB = np.linalg.pinv(square_SBB, hermitian=True)
    kernel = np.where(which_SR1 == number, right_SRB @ inverse_SBB, kernel)
  axes = shared + rows + bonds
  kernel = kernel.reshape([chain.sizes[a] for a in axes])
  return core_chain.transpose(kernel, axes, core.axes)


def _product(
  chain: core_chain.Chain, kernels: list[np.ndarray]
) -> np.ndarray:
  """The matrix of the kernels, padding included."""
  matrix = _einsum(chain, kernels, chain.inputs + chain.outputs)
  return matrix.reshape(chain.size(chain.inputs), -1)


def _einsum(
  chain: core_chain.Chain,
  kernels: list[np.ndarray],
  axes: tuple[str, ...],
  without: int | None = None,
) -> np.ndarray:
  numbers = {axis: i for i, axis in enumerate(chain.sizes)}
  operands: list[Any] = []
  for i, (core, kernel) in enumerate(zip(chain.cores, kernels, strict=True)):
    if i != without:
      operands += [kernel, [numbers[a] for a in core.axes]]
  return np.einsum(*operands, [numbers[a] for a in axes], optimize=True)


def _bonds(chain: core_chain.Chain) -> list[str]:
  features = chain.inputs + chain.outputs
  return [axis for axis in chain.sizes if axis not in features]


def _holders(chain: core_chain.Chain, axis: str) -> list[int]:
  return [i for i, core in enumerate(chain.cores) if axis in core.axes]
