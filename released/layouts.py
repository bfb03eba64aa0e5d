"""Which tensor of a released checkpoint is which of our parameters.

A family of models (released.blt) lists a `Leaf` for each parameter; this file
checks the list against the model and the files, and moves the numbers, one
parameter at a time.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from released import tensor_files


class Leaf(NamedTuple):
  """The place of a parameter, or of one layer of it, in a checkpoint.

  name: of the tensor.
  transposed: their linear maps are [out, in], our kernels [in, out].
  turned_heads: heads of a query or key projection whose rotary pairs are
    features (2i, 2i + 1) of a head there, (i, i + K/2) here; 0 if none.
  part, parts: it is row block `part` of `parts` equal ones of the tensor.
  layer: index into the first axis of a parameter that stacks those of scanned
    layers; None if the parameter is of one layer.
  """

  name: str
  transposed: bool = False
  turned_heads: int = 0
  part: int = 0
  parts: int = 1
  layer: int | None = None

  def pick(self, array: Any) -> Any:
    """The layer of a parameter, as a view."""
    return array if self.layer is None else array[self.layer]


# One leaf per parameter, or one per layer of a stacked parameter.
Leaves = dict[str, tuple[Leaf, ...]]


class Plan(NamedTuple):
  """Parameter paths with their places, and their shapes in our model."""

  leaves: Leaves
  shapes: dict[str, tuple[int, ...]]


# Parameters of a block (models.blocks) and of a cross-attention: ours, theirs.
ATTENTION = {
  'query': 'q_proj',
  'key': 'k_proj',
  'value': 'v_proj',
  'output': 'o_proj',
}
FEED_FORWARD = {'gate': 'gate_proj', 'up': 'up_proj', 'down': 'down_proj'}
NORMS = {
  'attention_norm': 'input_layernorm',
  'feed_forward_norm': 'post_attention_layernorm',
}
# Older versions of transformers stored the rotary frequencies.
_CONSTANT = 'rotary_emb.inv_freq'
_LARGEST_F16 = 65504


def kernel(path: str, name: str, turned_heads: int = 0) -> Leaves:
  """A linear map without bias."""
  return {f'{path}/kernel': (Leaf(f'{name}.weight', True, turned_heads),)}


def scale(path: str, name: str) -> Leaves:
  """The scale of an RMSNorm."""
  return {f'{path}/scale': (Leaf(f'{name}.weight'),)}


def embedding(path: str, name: str) -> Leaves:
  """An embedding table."""
  return {f'{path}/embedding': (Leaf(f'{name}.weight'),)}


def tables(paths: Sequence[str], name: str) -> Leaves:
  """Embedding tables of equal size that are one tensor there."""
  return {
    path: (Leaf(f'{name}.weight', part=part, parts=len(paths)),)
    for part, path in enumerate(paths)
  }


def blocks(prefix: str, name: str, stack: Any, *, interleaved: bool) -> Leaves:
  """All blocks of a stacks.Stack or lm.ByteLM, of transformers' Llama kind.

  prefix: of our paths, '' or ending in '/'.
  interleaved: there, rotary pairs are neighbours.
  """
  turned = (stack.heads, stack.key_value_heads or stack.heads)
  if not interleaved:
    turned = (0, 0)
  found: Leaves = {}
  for i in range(stack.layers):
    ours = 'blocks' if stack.scan_layers else f'block_{i}'
    block = _block(f'{prefix}{ours}', f'{name}.layers.{i}', turned)
    for key, (leaf,) in block.items():
      layer = i if stack.scan_layers else None
      found[key] = (*found.get(key, ()), leaf._replace(layer=layer))
  return found


def _block(path: str, name: str, turned: tuple[int, int]) -> Leaves:
  """A models.blocks.Block; turned: heads of query and key, see Leaf."""
  leaves: Leaves = {}
  heads = dict(zip(('query', 'key'), turned, strict=True))
  for ours, theirs in ATTENTION.items():
    leaves |= kernel(
      f'{path}/attention/{ours}',
      f'{name}.self_attn.{theirs}',
      heads.get(ours, 0),
    )
  for ours, theirs in FEED_FORWARD.items():
    leaves |= kernel(f'{path}/feed_forward/{ours}', f'{name}.mlp.{theirs}')
  for ours, theirs in NORMS.items():
    leaves |= scale(f'{path}/{ours}', f'{name}.{theirs}')
  return leaves


def plan(model: nn.Module, leaves: Leaves) -> Plan:
  """The places of all parameters of a model.

  Raises ValueError if it has others, which the released form cannot hold.
  """
  ids_BT = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  tree = jax.eval_shape(model.init, jax.random.key(0), ids_BT)['params']
  shapes = {path: leaf.shape for path, leaf in _flat(tree)}
  refuse(
    [path for path in shapes if path not in leaves],
    'the released form of this model has no place for the parameters',
    'export a model without what they belong to',
  )
  refuse(
    [path for path in leaves if path not in shapes],
    'this model lacks the parameters',
    'export a model that has them, of Dense projections',
  )
  return Plan({path: leaves[path] for path in shapes}, shapes)


def load(
  plan: Plan,
  tensors: Mapping[str, tensor_files.Stored],
  *,
  ignored: Iterable[str] = (),
) -> dict[str, Any]:
  """Our parameters (float32) from the tensors of a checkpoint.

  ignored: names that may be there and are not read. Raises ValueError before
  anything is read if tensors are missing, unexpected or of another shape.
  """
  wanted = planned(plan, 'F32')
  check_names(plan.leaves, tensors, ignored=ignored)
  refuse(
    [
      f'{name} {list(tensors[name].shape)} instead of {list(target.shape)}'
      for name, target in wanted.items()
      if tensors[name].shape != target.shape
    ],
    'the checkpoint has tensors of a shape that its config.json denies:',
    'correct one of the two',
  )
  refuse(
    [
      f'{name} {tensors[name].dtype}'
      for name in wanted
      if tensors[name].dtype not in tensor_files.DTYPES
    ],
    f'tensors must be {", ".join(tensor_files.DTYPES)}, but the checkpoint has',
    'convert them with the library that wrote them',
  )
  params: dict[str, Any] = {}
  for path, leaves in plan.leaves.items():
    *parents, last = path.split('/')
    node = params
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = _load(leaves, plan.shapes[path], tensors)
  return params


def check_names(
  leaves: Leaves,
  tensors: Mapping[str, tensor_files.Stored],
  *,
  ignored: Iterable[str] = (),
) -> None:
  """Raises ValueError if tensors are missing or unexpected.

  Takes no time, so that no model is built for a config.json that describes
  another one than the files hold.
  """
  wanted = {leaf.name: None for group in leaves.values() for leaf in group}
  known = {*wanted, *ignored}
  refuse(
    [name for name in wanted if name not in tensors],
    'the checkpoint lacks the tensors',
    'copy all of its files, or correct its config.json',
  )
  refuse(
    [
      name[:80]
      for name in tensors
      if name not in known and not name.endswith(_CONSTANT)
    ],
    'the checkpoint has unexpected tensors',
    'correct its config.json if that describes another model',
  )


def planned(plan: Plan, dtype: str) -> dict[str, tensor_files.Planned]:
  """Names and shapes of the released tensors, in the order of our leaves."""
  tensors = {}
  for path, leaves in plan.leaves.items():
    for leaf in leaves:
      shape = plan.shapes[path][0 if leaf.layer is None else 1 :]
      if leaf.transposed:
        shape = shape[::-1]
      shape = (leaf.parts * shape[0], *shape[1:])
      tensors[leaf.name] = tensor_files.Planned(dtype, shape)
  return tensors


def rows(
  plan: Plan, params: Mapping[str, Any], dtype: str
) -> Callable[[str], Iterator[np.ndarray]]:
  """Function for `tensor_files.write`: the arrays of a tensor, by its name.

  Raises ValueError if the parameters are not those of the plan's model, or
  later if they are beyond what `dtype` can hold.
  """
  flat = dict(_flat(params))
  refuse(
    [
      path
      for path in {**plan.shapes, **flat}
      if np.shape(flat.get(path)) != plan.shapes.get(path)
    ],
    'the run does not have the parameters of its own config:',
    'train it again, or take another checkpoint',
  )
  by_name = collections.defaultdict(list)
  for path, leaves in plan.leaves.items():
    for leaf in leaves:
      by_name[leaf.name].append((leaf, path))

  def arrays(name: str) -> Iterator[np.ndarray]:
    for leaf, path in sorted(by_name[name], key=lambda pair: pair[0].part):
      array = leaf.pick(np.asarray(flat[path]))
      if dtype == 'F16' and np.max(np.abs(array), initial=0) > _LARGEST_F16:
        raise ValueError(
          f'{path} has numbers beyond {_LARGEST_F16}, the largest of F16; use'
          ' --dtype=bfloat16 or float32.'
        )
      yield _theirs(leaf, array, tensor_files.DTYPES[dtype])

  return arrays


def refuse(names: list[str], problem: str, way_out: str) -> None:
  """Raises ValueError naming up to three of the names, if there are any."""
  if names:
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    listed = ', '.join(names[:3])
    raise ValueError(f'{problem} {listed}{more}; {way_out}.')


def _flat(tree: Any) -> Iterator[tuple[str, Any]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield jax.tree_util.keystr(path, simple=True, separator='/'), leaf


def _load(
  leaves: Sequence[Leaf],
  shape: tuple[int, ...],
  tensors: Mapping[str, tensor_files.Stored],
) -> np.ndarray:
  """A parameter of ours, layer by layer if it stacks them."""
  stacked = None
  for leaf in leaves:
    rows = tensors[leaf.name].shape[0] // leaf.parts
    part = slice(leaf.part * rows, (leaf.part + 1) * rows)
    found = _ours(leaf, tensor_files.read(tensors[leaf.name], part))
    if leaf.layer is None:
      return found
    if stacked is None:
      stacked = np.empty(shape, np.float32)
    stacked[leaf.layer] = found
  return stacked


def _ours(leaf: Leaf, array: np.ndarray) -> np.ndarray:
  """A tensor of theirs as a parameter of ours, in one copy at most."""
  if not leaf.transposed:
    return array.astype(np.float32, copy=False)
  inputs, outputs = array.shape[1], array.shape[0]
  if leaf.turned_heads:
    half = outputs // leaf.turned_heads // 2
    array = array.reshape(leaf.turned_heads, half, 2, inputs).swapaxes(1, 2)
    array = array.transpose(3, 0, 1, 2)
  else:
    array = array.T
  return array.astype(np.float32, order='C').reshape(inputs, outputs)


def _theirs(leaf: Leaf, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """Inverse of `_ours`."""
  if not leaf.transposed:
    return array.astype(dtype, copy=False)
  inputs, outputs = array.shape
  if leaf.turned_heads:
    half = outputs // leaf.turned_heads // 2
    array = array.reshape(inputs, leaf.turned_heads, 2, half).swapaxes(2, 3)
    array = array.transpose(1, 2, 3, 0)
  else:
    array = array.T
  return array.astype(dtype, order='C').reshape(outputs, inputs)
