"""Learning rates and initial sizes that hold at every width and structure.

Maximal update parametrization (arXiv 2203.03466) of matrices that are chains
of cores, each a batch of small dense layers with a fan-in and fan-out of its
own (arXiv 2406.06248, section 3.2; arXiv 2410.02117, appendix B). All that it
needs stands in the names and shapes of parameters: `kernel` [.., fan-in,
fan-out], `core_i_kernel` [.., blocks, fan-in, fan-out].

It carries rates over, and leaves open what kinds of parameters want beside each
other at the base: with small batches dense kernels may want far less than
embeddings, and cores as much less (`multipliers` of an optimizer).
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from training import sharding

RULES = ('adam', 'sgd', 'muon')
_CORE = re.compile(r'core_\d+_kernel$')
# Tables that are added to activations, those of events below their own names.
_TABLE = re.compile(
  r'(embedding|table_\d+|\bembed/(ids|since|number_kernel)|^begin|^query)$'
)


def base_shapes(base: Any) -> dict[str, tuple[int, ...]]:
  """Shapes of a Linen model's parameters by path; nothing is computed.

  Raises ValueError for one whose embeddings are its head: as embeddings they
  keep their size and rate at every width, as a head they would have to shrink.
  """
  if getattr(base, 'tie_head', False):
    raise ValueError(
      'optimizer.base.tie_head=True: no rate of an embedding that is the head,'
      ' too, holds at every width; set tie_head=False in base and model, or'
      ' optimizer.base=None.'
    )
  ids_BT = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  params = jax.eval_shape(base.init, jax.random.key(0), ids_BT)['params']
  return _shapes(params)


def rates(
  params: Any, base: dict[str, tuple[int, ...]], *, rule: str = 'adam'
) -> dict[str, float]:
  """Factor of the learning rate of every parameter, by path.

  params: tree of arrays or shapes. base: shapes for which the rate was chosen:
  the same model at another width, or that model with dense projections.

  An entry of Adam's update has the size of the rate, and those of a fan-in add
  up: the rate of a kernel goes with 1 / fan-in, against a dense base with
  base fan-in / (cores fan-in), as all cores move the output. A gradient's
  entries are smaller by the number of outputs: SGD's rate goes with outputs /
  fan-in, where the outputs of a core are blocks times fan-out, and that of
  all other arrays with their last axis, which Adam leaves alone. Muon's step of
  a matrix is as large as its shape asks for: only the number of cores counts.

  Raises ValueError for a kernel that the base has no counterpart of.
  """
  shapes = _shapes(params)
  return {path: _rate(path, shapes, base, rule) for path in shapes}


def deviations(
  params: Any, base: dict[str, tuple[int, ...]]
) -> dict[str, float]:
  """Factor of the initial size of every parameter, by path.

  For models that draw dense kernels with deviation fan-in^-1/2, embeddings
  with width^-1/2, and the cores of structured layers as they should. Then
  dense kernels go with (fan-in, fan-out)^-1/2 where the output is narrower,
  and entries of embeddings have the size they have in the base.
  """
  return {
    path: _deviation(path, shape, base)
    for path, shape in _shapes(params).items()
  }


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
  return {
    sharding.name(path): tuple(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def _rate(
  path: str,
  shapes: dict[str, tuple[int, ...]],
  base: dict[str, tuple[int, ...]],
  rule: str,
) -> float:
  shape = shapes[path]
  if not _is_kernel(path):
    same = base.get(path, shape)
    return shape[-1] / same[-1] if rule == 'sgd' and len(shape) else 1.0
  factors, reference = 1, path
  own, theirs = _cores(path, shapes), _cores(path, base)
  if path not in base or len(own) != len(theirs):
    # Against a dense layer the cores share the change of the output.
    factors = len(own) if path in own else 1
    # The parameters of a mixture stand one level below its own.
    above = [f'/{path}'.rsplit('/', i)[0] + '/kernel' for i in (1, 2)]
    found = [theirs[0]] if len(theirs) == 1 else [n[1:] for n in above]
    reference = next((name for name in found if name in base), path)
  if reference not in base:
    raise ValueError(
      f'optimizer.base has no counterpart of the parameter {path} {shape}; give'
      ' as base this model at another width, its projections as they are or'
      ' linear.Dense().'
    )
  size, size_of_base = (
    _size(path, shape, rule),
    _size(reference, base[reference], rule),
  )
  return size_of_base / (factors * size)


def _cores(path: str, shapes: dict[str, tuple[int, ...]]) -> list[str]:
  """The cores that stand beside a parameter."""
  parent = path.rpartition('/')[0]
  beside = (other for other in shapes if other.rpartition('/')[0] == parent)
  return [other for other in beside if _CORE.search(other)]


def _size(path: str, shape: tuple[int, ...], rule: str) -> float:
  """What the rate of a kernel is divided by: how far a unit rate moves."""
  if rule == 'muon':
    return 1.0
  if rule == 'adam':
    return shape[-2]
  blocks = shape[-3] if _CORE.search(path) else 1
  return shape[-2] / (blocks * shape[-1])


def _deviation(
  path: str, shape: tuple[int, ...], base: dict[str, tuple[int, ...]]
) -> float:
  same = base.get(path)
  if same is None or _CORE.search(path):
    return 1.0
  # By name: of scanned layers the scales of norms are matrices too.
  if _TABLE.search(path):
    return np.sqrt(shape[-1] / same[-1])
  if _is_kernel(path):
    return np.sqrt(_narrowing(shape) / _narrowing(same))
  return 1.0


def _narrowing(shape: tuple[int, ...]) -> float:
  return min(1.0, shape[-1] / shape[-2])


def _is_kernel(path: str) -> bool:
  return path.endswith('kernel')
