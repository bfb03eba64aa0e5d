"""Structured linear layers: fewer multiply-adds than a dense matrix needs.

Compute Better Spent (arXiv 2406.06248) and the continuous family of Searching
for Efficient Linear Layers (arXiv 2410.02117). Every class here is a prototype
as `linear.Dense`: `ByteLM(linear=BlockTensorTrain(rank=1))`. The kernel
`core_i_kernel` [blocks, fan-in, fan-out] is the i-th that meets the input.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import core_chain
from models import core_fit
from models import factorize
from models import fused_structured


class Structured(nn.Module, kw_only=True):
  """y = x W with W a chain of cores; subclasses say which.

  features: output width, set by the model that copies the prototype.
  gain: multiplies the initial deviation of the last core only, so that 0
    starts a residual branch silent and leaves the first cores to learn.
  cap: a core of larger root mean square than `deviation` is scaled down to it,
    and every core by a learnable `core_i_gain`, 1 at first. Keeps long runs of
    transformers from blowing up (arXiv 2406.06248, section 5.2).
  recompute: what is between two cores is computed again in the backward pass
    instead of being stored.
  fused: on GPUs two block cores are one kernel (models.fused_structured).
  dtype: of the computation; parameters are float32.

  The deviation of a core is fan_in^-1/2 min(1, sqrt(fan_out / fan_in)), which
  keeps activations at one scale as the width grows (arXiv 2406.06248, section
  3.2).
  """

  features: int = 0
  gain: float = 1.0
  cap: bool = False
  recompute: bool = False
  fused: bool = True
  dtype: str = 'float32'

  def chain(self, d_in: int, d_out: int) -> core_chain.Chain:
    """The cores of a layer of these widths, with their counts and rank.

    Raises ValueError for widths that the structure does not fit.
    """
    raise NotImplementedError

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    d_in = x.shape[-1]
    chain = self.chain(d_in, self.features)
    kernels = []
    for i, shape in enumerate(chain.shapes):
      size = deviation(shape)
      if i == len(chain.shapes) - 1:
        size *= self.gain
      kernel = self.param(
        kernel_name(i), nn.initializers.normal(size), shape, jnp.float32
      )
      if self.cap:
        gain = self.param(gain_name(i), nn.initializers.ones, (), jnp.float32)
        kernel = capped(kernel, gain, shape)
      kernels.append(kernel.astype(self.dtype))
    tokens = x.reshape(-1, d_in).astype(self.dtype)
    run = functools.partial(core_chain.contract, chain)
    if self.fused:
      run = fused_structured.fastest(chain, tokens.shape[0])
    if self.recompute:
      run = jax.checkpoint(run)
    out = run(kernels, tokens)
    return out.reshape(*x.shape[:-1], self.features)

  def check_widths(self, d_in: int, d_out: int) -> str:
    """How errors begin: the layer's path and its sizes."""
    path = '/'.join(self.path) if self.scope is not None else ''
    where = f'{path or type(self).__name__} {d_in} -> {d_out}'
    if d_in < 1 or d_out < 1:
      raise ValueError(
        f'{where}: widths must be at least 1; give features={d_out} its value,'
        ' as prototype.copy(features=64).'
      )
    return where


class Full(Structured, kw_only=True):
  """W itself, as a chain of one core: the dense expert of a mixture."""

  def chain(self, d_in: int, d_out: int) -> core_chain.Chain:
    self.check_widths(d_in, d_out)
    return core_chain.train(d_in, d_out, (d_in,), (d_out,))


class LowRank(Structured, kw_only=True):
  """W = U V of rank k.

  rank: k, by default ceil(sqrt(the smaller width)).
  fraction: instead of rank, k = ceil(fraction of the smaller width).
  """

  rank: int | None = None
  fraction: float | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.rank is not None:
      check_least(self, 'rank', 1)
    if self.fraction is not None:
      if self.rank is not None:
        raise ValueError(
          f'LowRank rank={self.rank}, fraction={self.fraction}: set one of'
          ' them, or neither for rank ceil(sqrt(the smaller width)).'
        )
      if not 0 < self.fraction <= 1:
        raise ValueError(
          f'LowRank fraction={self.fraction} must be above 0 and at most 1, as'
          ' 0.1.'
        )

  def chain(self, d_in: int, d_out: int) -> core_chain.Chain:
    where = self.check_widths(d_in, d_out)
    least = min(d_in, d_out)
    rank = self.rank or math.ceil(math.sqrt(least))
    if self.fraction is not None:
      rank = math.ceil(self.fraction * least)
    sizes = dict.fromkeys(core_chain.EINSUM, 1)
    sizes |= {'alpha': d_in, 'epsilon': d_out, 'rho': rank}
    return _check_bond(where, core_chain.pair(d_in, d_out, sizes), rank)


class TensorTrain(Structured, kw_only=True):
  """W = sum over bonds of a Kronecker product of `cores` small matrices.

  cores: factors of each width. rank: size of every bond.
  factors: 'balanced' widths (factorize.balanced, padded where that helps),
    'greedy' (factorize.greedy, the released code's, never padded), or those of
    every width there is, as ((24, 32), (48, 64)) for 768 and 3072.
  """

  cores: int = 2
  rank: int = 1
  factors: factorize.Factors = 'balanced'

  def __post_init__(self) -> None:
    super().__post_init__()
    check_least(self, 'cores', 2)
    check_least(self, 'rank', 1)
    factorize.check(self.factors, self.cores, type(self).__name__)

  def chain(self, d_in: int, d_out: int) -> core_chain.Chain:
    where = self.check_widths(d_in, d_out)
    ins, outs = (
      factorize.choose(self.factors, width, self.cores, where)
      for width in (d_in, d_out)
    )
    chain = core_chain.train(d_in, d_out, ins, outs, rank=self.rank)
    return _check_bond(where, chain, self.rank)


class Kronecker(Structured, kw_only=True):
  """W = A (x) B: the tensor train of two cores and rank one.

  factors: as TensorTrain's.
  """

  factors: factorize.Factors = 'balanced'

  def __post_init__(self) -> None:
    super().__post_init__()
    factorize.check(self.factors, 2, 'Kronecker')

  def chain(self, d_in: int, d_out: int) -> core_chain.Chain:
    where = self.check_widths(d_in, d_out)
    ins, outs = (
      factorize.choose(self.factors, width, 2, where) for width in (d_in, d_out)
    )
    return core_chain.train(d_in, d_out, ins, outs)


class BlockTensorTrain(Structured, kw_only=True):
  """A tensor train whose cores depend on every axis that is idle (BTT).

  Two cores cut W into blocks of rank `rank`: input (m2, m1), output (n1, n2),
  cores (m2, m1, n1 r) and (n1, m2 r, n2), all of the matrix's rank reached at
  rank one where the widths are squares.

  cores, rank, factors: as TensorTrain's.
  """

  rank: int = 1
  cores: int = 2
  factors: factorize.Factors = 'balanced'

  def __post_init__(self) -> None:
    super().__post_init__()
    check_least(self, 'cores', 2)
    check_least(self, 'rank', 1)
    factorize.check(self.factors, self.cores, type(self).__name__)

  def chain(self, d_in: int, d_out: int) -> core_chain.Chain:
    where = self.check_widths(d_in, d_out)
    ins, outs = (
      factorize.choose(self.factors, width, self.cores, where)
      for width in (d_in, d_out)
    )
    chain = core_chain.block_train(d_in, d_out, ins, outs, rank=self.rank)
    if isinstance(self.factors, str) and chain.rank < min(d_in, d_out):
      # The large factor first costs more, and has the rank.
      turned = core_chain.block_train(
        d_in, d_out, ins, outs[::-1], rank=self.rank
      )
      chain = turned if turned.rank > chain.rank else chain
    return _check_bond(where, chain, self.rank)


class Monarch(Structured, kw_only=True):
  """Two block-diagonal matrices of `blocks` blocks, shuffled in between.

  The block tensor train with m2 = n1 = blocks and rank q / blocks, where q,
  the middle width of a block, is the smaller of a block's two widths, rounded
  up to a multiple of `blocks`. Square layers cost 2 / blocks of a dense one.

  blocks: number of blocks, -1 for ceil(sqrt(input width)).
  """

  blocks: int = 4

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.blocks != -1:
      check_least(self, 'blocks', 1)

  def chain(self, d_in: int, d_out: int) -> core_chain.Chain:
    where = self.check_widths(d_in, d_out)
    blocks = self.blocks
    if blocks == -1:
      blocks = min(math.ceil(math.sqrt(d_in)), d_out)
    if blocks > min(d_in, d_out):
      raise ValueError(
        f'{where}: blocks={blocks} is more than the smaller width; use at most'
        f' {min(d_in, d_out)}, or -1 for ceil(sqrt(input width)).'
      )
    block_in, block_out = -(-d_in // blocks), -(-d_out // blocks)
    return core_chain.block_train(
      d_in,
      d_out,
      (block_in, blocks),
      (blocks, block_out),
      rank=-(-min(block_in, block_out) // blocks),
    )


class Einsum(Structured, kw_only=True):
  """Y_δεφ = sum over αβγρ of A_αγδφρ B_βγεφρ X_αβγ (arXiv 2410.02117).

  Features are ordered (γ, α, β) and (φ, δ, ε); the core is contracted first
  that makes it cheaper.

  theta: exponents of (α, β, γ, δ, ε, φ, ρ): α, β, γ sum to one and so do δ, ε,
    φ; sizes are near width^theta, that of the bond near (smaller width)^ρ.
  tolerance: largest padding of a width, relative to it.
  """

  theta: tuple[float, ...] = (0.5, 0.0, 0.5, 0.0, 0.5, 0.5, 0.0)
  tolerance: float = 0.15

  def __post_init__(self) -> None:
    super().__post_init__()
    if len(self.theta) != 7 or not all(0 <= e < math.inf for e in self.theta):
      raise ValueError(
        f'Einsum theta={self.theta} must be seven exponents of'
        f' {core_chain.EINSUM}, none negative, as'
        ' (0.5, 0.0, 0.5, 0.0, 0.5, 0.5, 0.0).'
      )

  def chain(self, d_in: int, d_out: int) -> core_chain.Chain:
    where = self.check_widths(d_in, d_out)
    self._check_sums(where)
    sizes = {}
    for width, axes, exponents in (
      (d_in, core_chain.EINSUM[:3], self.theta[:3]),
      (d_out, core_chain.EINSUM[3:6], self.theta[3:6]),
    ):
      factors = factorize.by_exponents(width, exponents)
      padding = math.prod(factors) / width - 1
      if padding > self.tolerance:
        raise ValueError(
          f'{where}: theta={self.theta} needs the factors {factors} for'
          f' {width}, which pad it by {padding:.3f}, over'
          f' tolerance={self.tolerance}; use the width {math.prod(factors)}'
          f' or a larger tolerance.'
        )
      sizes |= dict(zip(axes, factors, strict=True))
    rank = round(min(d_in, d_out) ** self.theta[6])
    chain = core_chain.pair(d_in, d_out, sizes | {'rho': rank})
    return _check_bond(where, chain, rank)

  def _check_sums(self, where: str) -> None:
    """ValueError unless the exponents of each width sum to one."""
    sums = [round(sum(self.theta[i : i + 3]), 9) for i in (0, 3)]
    if not all(math.isclose(total, 1, abs_tol=1e-6) for total in sums):
      near = [
        round(exponent / (sums[i // 3] or 1), 6)
        for i, exponent in enumerate(self.theta[:6])
      ]
      if not all(sums):
        near = [0.5, 0.0, 0.5, 0.0, 0.5, 0.5]
      raise ValueError(
        f'{where}: theta={self.theta} must sum to one over'
        f' {core_chain.EINSUM[:3]} and over {core_chain.EINSUM[3:6]}, not to'
        f' {sums[0]:g} and {sums[1]:g}; use {(*near, self.theta[6])}.'
      )


def kernel_name(core: int) -> str:
  """The parameter of a core; it ends as those that weight decay applies to."""
  return f'core_{core}_kernel'


def gain_name(core: int) -> str:
  """The parameter that scales a core of a layer with `cap`."""
  return f'core_{core}_gain'


def deviation(shape: tuple[int, int, int]) -> float:
  """Initial deviation of a core [blocks, fan-in, fan-out]."""
  _, fan_in, fan_out = shape
  return min(fan_in, fan_out) ** 0.5 / fan_in


def capped(
  kernel: jax.Array, gain: jax.Array, shape: tuple[int, int, int]
) -> jax.Array:
  """gain W / max(1, rms(W) / deviation), over all of W.

  shape: of the core; W may have more axes before these.
  """
  rms = jnp.sqrt(jnp.mean(jnp.square(kernel)) + 1e-8)
  return gain * kernel / jnp.maximum(1.0, rms / deviation(shape))


def to_dense(
  layer: Structured, params: dict[str, jax.Array], *, d_in: int, d_out: int
) -> jax.Array:
  """The matrix [d_in, d_out] that a layer with these parameters applies."""
  chain = layer.chain(d_in, d_out)
  kernels = [params[kernel_name(i)] for i in range(len(chain.cores))]
  if layer.cap:
    kernels = [
      capped(kernel, params[gain_name(i)], shape)
      for i, (kernel, shape) in enumerate(
        zip(kernels, chain.shapes, strict=True)
      )
    ]
  return core_chain.to_dense(chain, kernels)


def from_dense(
  layer: Structured, matrix: np.ndarray, path: str = ''
) -> dict[str, np.ndarray]:
  """Parameters of a layer whose matrix is near `matrix` [d_in, d_out].

  `core_fit.from_dense` says how near. Float64, for the caller to cast. Gains
  undo the cap. path: of the layer, for errors.
  """
  chain = layer.chain(*matrix.shape)
  where, params = path or type(layer).__name__, {}
  for i, kernel in enumerate(core_fit.from_dense(chain, matrix, where=where)):
    params[kernel_name(i)] = kernel
    if layer.cap:
      rms = np.sqrt(np.mean(kernel**2) + 1e-8)
      params[gain_name(i)] = np.maximum(1.0, rms / deviation(chain.shapes[i]))
  return params


def check_least(layer: Structured, field: str, least: int) -> None:
  """ValueError unless a field has at least this value."""
  value = getattr(layer, field)
  if value < least:
    raise ValueError(
      f'{type(layer).__name__} {field}={value} must be at least {least}.'
    )


def _check_bond(
  where: str, chain: core_chain.Chain, rank: int
) -> core_chain.Chain:
  if rank > chain.max_bond:
    raise ValueError(
      f'{where}: rank={rank} is more than the cores {chain.shapes} can use;'
      f' use at most {chain.max_bond}.'
    )
  return chain
