"""Every projection of a model, found by tracing it; their matrices exchanged.

Works for any model whose projections are prototypes of models.linear,
models.structured or models.mixture; nothing is computed to find them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from models import execution
from models import linear
from models import mixture
from models import structured

_KINDS = (
  linear.Dense,
  structured.Structured,
  mixture.Mixture,
  mixture.MixtureFeedForward,
)


class Projection(NamedTuple):
  """One layer of a model, as it is called.

  path: of its parameters. layer: a prototype with its features.
  tokens: of the pass that was traced.
  copies: layers of a scan that share the path, stacked on the first axis of
    the parameters; None without a scan.
  """

  path: str
  layer: nn.Module
  d_in: int
  d_out: int
  tokens: int
  copies: int | None


def find(model: nn.Module, *, rows: int, length: int) -> list[Projection]:
  """The projections of a pass over `rows` rows of `length` ids, in order.

  A mixture counts as one, and a head that is the embedding is none.
  """
  found: dict[str, Projection] = {}

  def watch(
    run: Callable[..., Any], args: Any, kwargs: Any, context: Any
  ) -> Any:
    module = context.module
    out = run(*args, **kwargs)
    if context.method_name == '__call__' and isinstance(module, _KINDS):
      path, (x, *_) = '/'.join(module.path), args
      sizes = (x.shape[-1], out.shape[-1], x.size // x.shape[-1])
      found[path] = Projection(path, _unbound(module), *sizes, None)
    return out

  def trace() -> Any:
    with nn.intercept_methods(watch):
      return model.init(
        jax.random.key(0), jnp.zeros((rows, length), jnp.int32)
      )

  params = jax.eval_shape(trace)['params']
  return [
    one._replace(copies=_copies(one.layer, below(params, one.path)))
    for one in found.values()
  ]


def below(params: Any, path: str) -> Any:
  """The parameters under a path."""
  for name in path.split('/'):
    params = params[name]
  return params


def matrix(projection: Projection, params: Any) -> np.ndarray:
  """What a projection multiplies by, [d_in, d_out]; params of one copy.

  Raises ValueError for a mixture, which is no matrix.
  """
  layer, sizes = projection.layer, (projection.d_in, projection.d_out)
  if isinstance(layer, linear.Dense):
    return np.asarray(params['kernel'])
  if isinstance(layer, structured.Structured):
    return np.asarray(
      structured.to_dense(layer, params, d_in=sizes[0], d_out=sizes[1])
    )
  raise ValueError(
    f'{projection.path} {sizes[0]} -> {sizes[1]}: a {type(layer).__name__} is'
    ' no single matrix; take a model of dense or structured projections.'
  )


def exchange(
  source: nn.Module, params: Any, target: nn.Module
) -> dict[str, Any]:
  """Parameters of `target` that are those of `source` but for projections.

  Of projections the matrix is taken, and the nearest of the target's
  structure found (structured.from_dense); dense ones are exact. The models
  differ in nothing else: ValueError names the first parameter that does.
  """
  if source == target:
    return params
  theirs = {one.path: one for one in find(source, rows=1, length=8)}
  ours = find(target, rows=1, length=8)
  ids_BT = jnp.zeros((1, 8), jnp.int32)
  wanted = jax.eval_shape(target.init, jax.random.key(0), ids_BT)['params']
  result: dict[str, Any] = {}
  for one in ours:
    if one.path not in theirs:
      raise ValueError(
        f'{one.path} {one.d_in} -> {one.d_out} has no counterpart in the'
        ' source; give models that differ in their projections only.'
      )
    given = below(params, one.path)
    if theirs[one.path].layer == one.layer:
      new = given
    else:
      convert = functools.partial(_convert, theirs[one.path], one)
      new = _over_copies(convert, given, one.copies)
    flat = traverse_util.flatten_dict(new, sep='/')
    result |= {f'{one.path}/{name}': x for name, x in flat.items()}
  kept = traverse_util.flatten_dict(params, sep='/')
  flat = traverse_util.flatten_dict(wanted, sep='/')
  for name, shape in flat.items():
    leaf = result.setdefault(name, kept.get(name))
    if leaf is None or leaf.shape != shape.shape:
      here = 'absent' if leaf is None else leaf.shape
      raise ValueError(
        f'{name} is {here} in the source but {shape.shape} in the target; give'
        ' models that differ in their projections only.'
      )
  result = {name: result[name] for name in flat}
  return traverse_util.unflatten_dict(result, sep='/')


def merged(model: nn.Module, params: Any) -> tuple[nn.Module, Any]:
  """The same function with every structured projection multiplied out.

  For decoding few tokens at a time, where what counts is the number of
  products and not their size. Mixtures stay.
  """
  inner = model.model if hasattr(model, 'model') else model
  layer = linear.mapped(
    inner.linear,
    lambda one: linear.Dense()
    if isinstance(one, structured.Structured)
    else one,
  )
  dense = linear.with_linear(model, layer)
  return dense, exchange(model, params, dense)


def decodes_faster_merged(model: nn.Module) -> bool:
  """Whether one token at a time is read faster by the model of `merged`."""
  layer = getattr(getattr(model, 'model', model), 'linear', linear.Dense())
  roles = [linear.of_role(layer, role) for role in linear.ROLES]
  if not any(isinstance(one, structured.Structured) for one in roles):
    return False
  saved = count = 0
  for one in find(model, rows=1, length=8):
    if isinstance(one.layer, structured.Structured):
      copies, chain = one.copies or 1, one.layer.chain(one.d_in, one.d_out)
      saved += copies * (one.d_in * one.d_out - chain.params)
      count += copies
  return execution.decodes_faster_dense(saved / count)


def _convert(
  source: Projection, target: Projection, params: Any
) -> dict[str, np.ndarray]:
  """Parameters of one copy of the target."""
  dense = matrix(source, params)
  if isinstance(target.layer, linear.Dense):
    return {'kernel': dense}
  if isinstance(target.layer, structured.Structured):
    dense = dense.astype(np.float64)
    found = structured.from_dense(target.layer, dense, target.path)
    return {name: np.asarray(x, np.float32) for name, x in found.items()}
  raise ValueError(
    f'{target.path} {target.d_in} -> {target.d_out}: no matrix is near a'
    f' {type(target.layer).__name__}; convert to a class of models.structured.'
  )


def _over_copies(
  convert: Callable[[Any], Any], params: Any, copies: int | None
) -> dict[str, Any]:
  """What `convert` gives for each copy, stacked as the parameters are."""
  if copies is None:
    return convert(params)
  each = [
    convert(jax.tree.map(lambda x, i=i: x[i], params)) for i in range(copies)
  ]
  return jax.tree.map(lambda *x: np.stack(x), *each)


def _copies(layer: nn.Module, params: Any) -> int | None:
  """The length of the axis that kernels have before their own."""
  axes, name = 2, 'kernel'
  if isinstance(layer, structured.Structured):
    axes, name = 3, structured.kernel_name(0)
  elif not isinstance(layer, linear.Dense):
    name = 'router/kernel'
  shape = below(params, name).shape
  return shape[0] if len(shape) > axes else None


def _unbound(module: nn.Module) -> nn.Module:
  """The module as a prototype, outside of any model."""
  fields = {
    field.name: _unbound(value)
    for field in dataclasses.fields(module)
    if field.name != 'parent'
    and isinstance(value := getattr(module, field.name), nn.Module)
  }
  return module.clone(parent=None, name=None, **fields)
