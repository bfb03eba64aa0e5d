"""Chains of two block cores in one kernel, for GPUs (Pallas, by Triton).

What is between the cores stays on the chip. An output block needs all of the
input but only its own slices of both cores, so programs are independent. Tensor
cores multiply tiles of 16 and more, while a bond has few numbers: groups of
blocks are multiplied at once, as block-diagonal matrices. The zeros of these
cost multiply-adds, which such layers have to spare, and little traffic.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from models import core_chain
from models import execution

# Sides of a tile that tensor cores multiply, at least.
_SIDE = 16
# Numbers between the cores per token and tile, and columns of a tile, at most.
_MIDDLE, _COLUMNS = 32, 256
# Tokens of a tile; those for which one program adds up gradients of kernels.
_TOKENS, _RUN = 64, 2048


def fastest(
  chain: core_chain.Chain, tokens: int
) -> Callable[[Sequence[jax.Array], jax.Array], jax.Array]:
  """(kernels, x_TD) -> x W: this kernel where it is of use, else plain."""
  if execution.fuses(tokens) and blocks(chain) is not None:
    return functools.partial(contract, chain)
  return functools.partial(core_chain.contract, chain)


class Blocks(NamedTuple):
  """Sizes of two block cores [m2, m1, n1 r] and [n1, m2 r, n2]."""

  m2: int
  m1: int
  n1: int
  n2: int
  rank: int


class Tiles(NamedTuple):
  """How many blocks a tile takes at once: of the input, of the output.

  bond: numbers between two blocks, with those that fill up a tile.
  """

  ins: int
  outs: int
  bond: int


def blocks(chain: core_chain.Chain) -> Blocks | None:
  """The blocks of a chain that this kernel computes; None for another.

  Large blocks are left to plain matmuls, which are as good there.
  """

  def real(axes: Sequence[str]) -> list[str]:
    return [axis for axis in axes if chain.sizes[axis] > 1]

  if len(chain.cores) != 2:
    return None
  first, second = chain.cores
  features = chain.inputs + chain.outputs
  bond = [axis for axis in real(first.out) if axis not in features]
  fits = (
    real(chain.inputs) == real(first.batch + first.contract)
    and real(chain.outputs) == real(second.batch + second.out)
    and real(first.out) == real(second.batch) + bond
    and real(second.contract) == real(first.batch) + bond
  )
  if not fits:
    return None
  (m2, m1, _), (n1, _, n2) = chain.shapes
  found = Blocks(m2, m1, n1, n2, chain.size(bond))
  is_small = max(m1, n2) <= _COLUMNS and found.rank <= _MIDDLE
  return found if is_small else None


def tiles(sizes: Blocks) -> Tiles:
  """As many blocks as fill a tile; sizes are rounded up to powers of two."""
  m1, n2, rank = map(_power, (sizes.m1, sizes.n2, sizes.rank))
  outs = max(1, min(8, _COLUMNS // n2, _MIDDLE // rank))
  ins = max(1, min(_COLUMNS // m1, _MIDDLE // (outs * rank)))
  outs = max(outs, _SIDE // n2)
  ins = max(ins, _SIDE // m1)
  # More blocks would fill the tile as well, and the memory of a chip too.
  return Tiles(ins, outs, max(rank, _SIDE // (ins * outs)))


def contract(
  chain: core_chain.Chain,
  kernels: Sequence[jax.Array],
  x_TD: jax.Array,
  *,
  interpret: bool = False,
) -> jax.Array:
  """As core_chain.contract, for chains that have `blocks`.

  Sizes that are no powers of two are padded, which copies the input.

  interpret: computes what the kernel says on any backend, slowly.
  """
  sizes = blocks(chain)
  assert sizes is not None, 'the caller asks for `blocks` first'
  m2, m1, n1, n2, _ = sizes
  tokens, (ins, outs, _) = x_TD.shape[0], tiles(sizes)
  first, second = _expanded(sizes, kernels)
  x = jnp.pad(x_TD, [(0, 0), (0, m2 * m1 - chain.d_in)])
  x = x.reshape(tokens, m2, m1)
  many = -tokens % _run(tokens)
  x = jnp.pad(x, [(0, many), (0, -m2 % ins), (0, _power(m1) - m1)])
  y = _product(x.reshape(tokens + many, -1), first, second, interpret)
  y = y.reshape(tokens + many, -(-n1 // outs) * outs, _power(n2))
  y_TD = y[:tokens, :n1, :n2].reshape(tokens, n1 * n2)
  return y_TD[:, : chain.d_out]


def _expanded(
  sizes: Blocks, kernels: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """Block-diagonal tiles [output group, input group, fan-in, fan-out]."""
  m2, m1, n1, n2, rank = sizes
  ins, outs, bond = tiles(sizes)
  wide, tall = _power(m1), _power(n2)
  pads = {'g': -m2 % ins, 'a': wide - m1, 'f': -n1 % outs, 'e': tall - n2}
  pads['r'] = bond - rank
  # Groups c of blocks g of the input with features a, n, f and e likewise of
  # the output.
  first = kernels[0].reshape(m2, m1, n1, rank)
  first = jnp.pad(first, [(0, pads[axis]) for axis in 'gafr'])
  first = first.reshape(-1, ins, wide, (n1 + pads['f']) // outs, outs, bond)
  first = first.transpose(3, 0, 1, 2, 4, 5)[:, :, :, :, None]
  same = jnp.eye(ins, dtype=first.dtype)
  first *= same[None, None, :, None, :, None, None]
  second = kernels[1].reshape(n1, m2, rank, n2)
  second = jnp.pad(second, [(0, pads[axis]) for axis in 'fgre'])
  second = second.reshape(-1, outs, (m2 + pads['g']) // ins, ins, bond, tall)
  second = second.transpose(0, 2, 3, 1, 4, 5)[:, :, :, :, :, None]
  same = jnp.eye(outs, dtype=second.dtype)
  second *= same[None, None, None, :, None, :, None]
  groups, middle = first.shape[:2], ins * outs * bond
  return (
    first.reshape(*groups, -1, middle),
    second.reshape(*groups, middle, -1),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _product(
  x: jax.Array, first: jax.Array, second: jax.Array, interpret: bool
) -> jax.Array:
  """y [T, n e]: y_n = sum over c of x_c first_nc second_nc.

  x: [T, c a]; first: [n, c, a, q]; second: [n, c, q, e].
  """
  outs, ins, fan_in, middle = first.shape
  columns = second.shape[-1]
  rows = min(_TOKENS, x.shape[0])

  def kernel(x_ref: Any, first_ref: Any, second_ref: Any, y_ref: Any) -> None:
    def add(c: jax.Array, y: jax.Array) -> jax.Array:
      z = dot(x_ref[:, pl.ds(c * fan_in, fan_in)], first_ref[c])
      return y + dot(z.astype(x.dtype), second_ref[c])

    y = jax.lax.fori_loop(0, ins, add, jnp.zeros((rows, columns), jnp.float32))
    y_ref[...] = y.astype(x.dtype)

  return pl.pallas_call(
    kernel,
    # Programs side by side read the same tokens.
    grid=(outs, x.shape[0] // rows),
    in_specs=[
      pl.BlockSpec((rows, x.shape[1]), lambda n, t: (t, 0)),
      pl.BlockSpec((None, ins, fan_in, middle), lambda n, t: (n, 0, 0, 0)),
      pl.BlockSpec((None, ins, middle, columns), lambda n, t: (n, 0, 0, 0)),
    ],
    out_specs=pl.BlockSpec((rows, columns), lambda n, t: (t, n)),
    out_shape=jax.ShapeDtypeStruct((x.shape[0], outs * columns), x.dtype),
    compiler_params=triton.CompilerParams(num_warps=8, num_stages=2),
    interpret=interpret,
  )(x, first, second)


def _forward(
  x: jax.Array, first: jax.Array, second: jax.Array, interpret: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  return _product(x, first, second, interpret), (x, first, second)


def _backward(
  interpret: bool, kept: tuple[jax.Array, ...], change: jax.Array
) -> tuple[jax.Array, ...]:
  x, first, second = kept
  # The transposed matrix has the same form, its cores exchanged.
  turned = (w.transpose(1, 0, 3, 2) for w in (second, first))
  of_x = _product(change, *turned, interpret)
  return of_x, *_of_kernels(x, first, second, change, interpret)


_product.defvjp(_forward, _backward)


def _of_kernels(
  x: jax.Array,
  first: jax.Array,
  second: jax.Array,
  change: jax.Array,
  interpret: bool,
) -> tuple[jax.Array, jax.Array]:
  """Gradients of both kernels, with what is between them computed again."""
  outs, ins, fan_in, _ = first.shape
  columns = second.shape[-1]
  rows = min(_TOKENS, x.shape[0])
  run = min(_run(x.shape[0]), x.shape[0])
  runs = x.shape[0] // run

  found = pl.pallas_call(
    functools.partial(_add_up, rows, run // rows),
    grid=(outs, ins, runs),
    in_specs=[
      pl.BlockSpec((run, fan_in), lambda n, c, s: (s, c)),
      pl.BlockSpec((run, columns), lambda n, c, s: (s, n)),
      *(
        pl.BlockSpec((None, None, *w.shape[2:]), lambda n, c, s: (n, c, 0, 0))
        for w in (first, second)
      ),
    ],
    out_specs=[
      pl.BlockSpec(
        (None, None, None, *w.shape[2:]), lambda n, c, s: (s, n, c, 0, 0)
      )
      for w in (first, second)
    ],
    out_shape=[
      jax.ShapeDtypeStruct((runs, *w.shape), jnp.float32)
      for w in (first, second)
    ],
    compiler_params=triton.CompilerParams(num_warps=8, num_stages=2),
    interpret=interpret,
  )(x, change, first, second)
  return tuple(sums.sum(0).astype(x.dtype) for sums in found)


def _add_up(rows: int, count: int, *refs: Any) -> None:
  """The kernel of `_of_kernels`: sums over `count` times `rows` tokens."""
  x_ref, change_ref, first_ref, second_ref, *out_refs = refs

  def add(
    i: jax.Array, sums: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    x, change = (ref[pl.ds(i * rows, rows), :] for ref in (x_ref, change_ref))
    z = dot(x, first_ref[...]).astype(x.dtype)
    of_z = dot(change, second_ref[...], (1, 1)).astype(x.dtype)
    return sums[0] + dot(x, of_z, (0, 0)), sums[1] + dot(z, change, (0, 0))

  zeros = tuple(jnp.zeros(ref.shape, jnp.float32) for ref in out_refs)
  found = jax.lax.fori_loop(0, count, add, zeros)
  for ref, total in zip(out_refs, found, strict=True):
    ref[...] = total


def dot(
  a: jax.Array, b: jax.Array, axes: tuple[int, int] = (1, 0)
) -> jax.Array:
  """a b in float32, summed over one axis of each."""
  return jax.lax.dot_general(
    a,
    b,
    (((axes[0],), (axes[1],)), ((), ())),
    preferred_element_type=jnp.float32,
  )


def _run(tokens: int) -> int:
  """Tokens of a run, a power of two: few runs, and no run of many zeros."""
  return max(_TOKENS, min(_RUN, _power(tokens) // 8))


def _power(size: int) -> int:
  """The least power of two from a size on."""
  return 1 << max(size - 1, 0).bit_length()
