"""A model file as something that predicts, and back.

The file holds the network's JSON and its arrays in the order of their paths.
Nothing of it is executed: the JSON may name modules of `models` and their
fields only, and what it describes is compared with the arrays that are there
before any memory is taken for it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from bounds import codec
from bounds import header as headers
from bounds import quantise
from bounds import structure as structures
from configs import base

_MOST = 1 << 24
_MOST_LAYERS = 1 << 10
_MOST_ITEMS = 64
_DEEPEST = 60


class Predictor(NamedTuple):
  """A decoded file: its header, network, parameters and size in bytes."""

  header: headers.Header
  model: nn.Module
  params: Any
  size: int

  @property
  def bits(self) -> int:
    """The description length that is charged."""
    return 8 * self.size


def encode(coded: dict[str, quantise.Coded], header: headers.Header) -> bytes:
  """The file of a network whose arrays, by path, are `coded`."""
  tensors = [coded[name] for name in sorted(coded)]
  return codec.encode(tensors, header.to_bytes())


def decode(data: bytes) -> Predictor:
  """Inverse of `encode`; ValueError names what is wrong with a file."""
  file = codec.decode(data)
  if file.size != len(data):
    raise ValueError(
      f'file ends after {file.size} of {len(data)} bytes; what follows belongs'
      ' to nothing, so copy the file again'
    )
  header = headers.from_bytes(file.notes)
  _check_tree(header.model, 'model', 'models.')
  model = base.from_json(header.model, 'model')
  if not isinstance(model, nn.Module):
    raise ValueError(f'file describes a {type(model).__name__}, not a network')
  structure = structures.PLAIN
  if header.structure is not None:
    _check_tree(header.structure, 'structure', 'bounds.structure.')
    structure = base.from_json(header.structure, 'structure')
  of_model = shapes_of(model)
  total = sum(map(math.prod, of_model.values()))
  if total > codec.MAX_VALUES:
    raise ValueError(
      f'file describes a network of {total} weights; at most'
      f' {codec.MAX_VALUES} are allowed'
    )
  shapes = structure.shapes(of_model)
  if len(shapes) != len(file.tensors):
    raise ValueError(
      f'damaged file: it holds {len(file.tensors)} arrays for a network of'
      f' {len(shapes)}'
    )
  params = {}
  for (name, shape), tensor in zip(
    sorted(shapes.items()), file.tensors, strict=True
  ):
    if tensor.symbols.shape != shape:
      raise ValueError(
        f'damaged file: {name} is {shape} in the network but'
        f' {tensor.symbols.shape} in the file'
      )
    params[name] = tensor.decode()
  params = structure.expand(params, of_model)
  params = {name: jnp.asarray(array) for name, array in params.items()}
  return Predictor(header, model, nested(params), file.size)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
  """The shape of every parameter by path, without computing one."""
  ids_BT = jax.ShapeDtypeStruct((1, 8), np.int32)
  try:
    found = jax.eval_shape(model.init, jax.random.key(0), ids_BT)['params']
  except Exception as error:  # Modules of any kind may meet any field.
    reason = ' '.join(str(error).split())[:200]
    raise ValueError(
      f'damaged file: its network cannot be built ({reason})'
    ) from error
  return {name: leaf.shape for name, leaf in flat(found).items()}


def flat(tree: Any) -> dict[str, Any]:
  """Leaves by path, as 'block_0/attention/key/kernel'."""
  return traverse_util.flatten_dict(tree, sep='/')


def nested(leaves: dict[str, Any]) -> Any:
  """Inverse of `flat`."""
  return traverse_util.unflatten_dict(leaves, sep='/')


def quantised(
  params: dict[str, Any], rule: Callable[[np.ndarray], quantise.Coded]
) -> dict[str, quantise.Coded]:
  """Arrays by path, each rounded by a rule, those of one axis finely.

  Raises ValueError if a weight is no finite number.
  """
  fine = quantise.Uniform(0.1)
  for name, array in params.items():
    if not np.isfinite(array).all():
      raise ValueError(
        f'{name} of the checkpoint holds NaN or infinity; its training'
        ' diverged, so take an earlier one (--step)'
      )
  return {
    name: (rule if np.ndim(array) > 1 else fine)(np.asarray(array))
    for name, array in params.items()
  }


def ideal_bits(coded: dict[str, quantise.Coded]) -> float:
  """Nearly the length of a file's arrays, without coding them."""
  rows = (np.atleast_1d(x.symbols) for x in coded.values())
  return sum(codec.ideal_bits(x.reshape(len(x), -1)) for x in rows)


def _check_tree(tree: Any, path: str, allowed: str, depth: int = 0) -> None:
  """Raises ValueError unless all classes are allowed and all sizes sane."""
  if depth > _DEEPEST:
    raise ValueError(f'file nests more than {_DEEPEST} levels in {path[:80]}')
  if isinstance(tree, dict):
    name = tree.get('class')
    if not isinstance(name, str) or not name.startswith(allowed):
      raise ValueError(
        f'file describes {path} as {str(name)[:80]!r}; only classes of'
        f' {allowed[:-1]} may be named there'
      )
    fields = tree.get('fields')
    for field, value in (fields if isinstance(fields, dict) else {}).items():
      if field == 'layers' and isinstance(value, int) and value > _MOST_LAYERS:
        raise ValueError(
          f'file has {value} layers; at most {_MOST_LAYERS} are allowed'
        )
      _check_tree(value, f'{path}.{field}', allowed, depth + 1)
  elif isinstance(tree, Sequence) and not isinstance(tree, str):
    if len(tree) > _MOST_ITEMS:
      raise ValueError(f'file has {len(tree)} items in {path}, more than 64')
    for index, value in enumerate(tree):
      _check_tree(value, f'{path}.{index}', allowed, depth + 1)
  elif isinstance(tree, int) and abs(tree) > _MOST:
    raise ValueError(f'file has {path}={tree}; at most {_MOST} is allowed')
