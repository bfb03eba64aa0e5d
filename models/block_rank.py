"""Layers whose blocks have low rank: block-dense and BLAST.

As models.structured, whose chains of cores they are: BlockDense is a point of
the einsum family, BLAST has three cores that hold one bond.
"""

import numpy as np

from models import core_chain
from models import structured


class BlockDense(structured.Structured, kw_only=True):
  """A block-diagonal matrix and a dense one after it (arXiv 2406.16450).

  blocks: of the first matrix, which cut the input.
  rank: width between the two, a multiple of `blocks`; by default half the
    smaller width, rounded up.
  """

  blocks: int = 4
  rank: int | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    structured.check_least(self, 'blocks', 1)
    if self.rank is not None and (self.rank < 1 or self.rank % self.blocks):
      raise ValueError(
        f'BlockDense rank={self.rank} must be a multiple of'
        f' blocks={self.blocks}, as {4 * self.blocks}.'
      )

  def chain(self, d_in: int, d_out: int) -> core_chain.Chain:
    where = self.check_widths(d_in, d_out)
    least = min(d_in, d_out)
    if self.blocks > d_in:
      raise ValueError(
        f'{where}: blocks={self.blocks} is more than the input width; use at'
        f' most {d_in}.'
      )
    rank = self.rank or -(-least // (2 * self.blocks)) * self.blocks
    most = -(-least // self.blocks) * self.blocks
    if rank > most:
      raise ValueError(
        f'{where}: rank={rank} is more than the smaller width; use at most'
        f' {most}.'
      )
    sizes = dict.fromkeys(core_chain.EINSUM, 1)
    sizes |= {'alpha': -(-d_in // self.blocks), 'gamma': self.blocks}
    sizes |= {'epsilon': d_out, 'rho': rank // self.blocks}
    return core_chain.pair(d_in, d_out, sizes)


class Blast(structured.Structured, kw_only=True):
  """Blocks V_j diag(s_ij) U_i of a matrix of blocks^2 (arXiv 2410.21262).

  blocks: that each width is cut into.
  rank: of the diagonals; by default ceil(smaller width / blocks).
  """

  blocks: int = 4
  rank: int | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    structured.check_least(self, 'blocks', 1)
    if self.rank is not None:
      structured.check_least(self, 'rank', 1)

  def chain(self, d_in: int, d_out: int) -> core_chain.Chain:
    where = self.check_widths(d_in, d_out)
    least = min(d_in, d_out)
    if self.blocks > least:
      raise ValueError(
        f'{where}: blocks={self.blocks} is more than the smaller width; use at'
        f' most {least}.'
      )
    block = -(-least // self.blocks)
    rank = self.rank or block
    # With so many every block is any matrix.
    most = block * self.blocks
    if rank > most:
      raise ValueError(
        f'{where}: rank={rank} is more than {self.blocks} x {self.blocks}'
        f' blocks can use; use at most {most}.'
      )
    return core_chain.blast(d_in, d_out, self.blocks, rank)


def from_butterfly(
  first: np.ndarray, second: np.ndarray
) -> dict[str, np.ndarray]:
  """Parameters of structured.Monarch of the released factors of a Monarch.

  Output features stand there as (feature of a block, block), here the other
  way round: reshape [blocks, block_out] and swap to compare.

  first: [blocks, middle, block_in]; second: [blocks, block_out, middle]
  (arXiv 2204.00595).
  """
  blocks, middle, block_in = first.shape
  if middle % blocks:
    near = middle // blocks * blocks
    raise ValueError(
      f'block_rank.from_butterfly: the middle width {middle} is no multiple of'
      f' the {blocks} blocks; use {max(near, blocks)} or {near + blocks}.'
    )
  # The columns of a block are (bond, block after), the last one fastest.
  parts = first.reshape(blocks, -1, blocks, block_in)
  return {
    structured.kernel_name(0): parts.transpose(0, 3, 2, 1).reshape(
      blocks, block_in, middle
    ),
    structured.kernel_name(1): second.transpose(0, 2, 1),
  }


def to_butterfly(
  params: dict[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
  """The released factors that `from_butterfly` makes these parameters of.

  params: of structured.Monarch without a cap, or of a block tensor train of two
  cores that has as many blocks of the output as of the input.
  """
  first, second = (params[structured.kernel_name(i)] for i in range(2))
  blocks, block_in, middle = first.shape
  if len(second) != blocks or middle % blocks:
    raise ValueError(
      f'block_rank.to_butterfly: cores {first.shape} and {second.shape} have'
      f' {blocks} blocks of the input and {len(second)} of the output; give'
      ' those of structured.Monarch, which has as many of both.'
    )
  parts = first.reshape(blocks, block_in, blocks, -1)
  return (
    parts.transpose(0, 3, 2, 1).reshape(blocks, middle, block_in),
    second.transpose(0, 2, 1),
  )
