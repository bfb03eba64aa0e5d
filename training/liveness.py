"""Memory that a program needs, from the life of each of its results."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval

# Operations that XLA fuses into what reads their result.
_VIEWS = (
  'broadcast_in_dim',
  'expand_dims',
  'optimization_barrier',
  'reshape',
  'squeeze',
)
_ROWS = 64


def activation_bytes(
  objective: Any,
  apply: Any,
  params: Any,
  row_length: int,
  stored: tuple[str, ...] = (),
) -> int:
  """Bytes per row that are alive at most during the gradient.

  What grows with the number of rows in the traced program, views excepted.

  stored: names of what a batch holds besides a row, as float16 numbers.
  """

  def peak(rows: int) -> int:
    shape = (rows, row_length)
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    batch = dict.fromkeys(stored, jax.ShapeDtypeStruct(shape, jnp.float16))
    batch |= {
      'ids': ids,
      'targets': ids,
      'documents': ids,
      'mask': jax.ShapeDtypeStruct(shape, jnp.float32),
    }

    def loss(params: Any, batch: Any) -> jax.Array:
      return objective(apply, params, batch).loss

    jaxpr = jax.make_jaxpr(jax.grad(loss))(params, batch).jaxpr
    # Without what no gradient reads, as XLA does.
    used = [True] * len(jaxpr.outvars)
    return peak_bytes(partial_eval.dce_jaxpr(jaxpr, used)[0])

  return (peak(2 * _ROWS) - peak(_ROWS)) // _ROWS


def peak_bytes(jaxpr: core.Jaxpr) -> int:
  """Most bytes alive at once in a program, its inputs not counted.

  Each result lives from its operation to its last use. XLA fuses operations
  into one another and needs less.
  """
  roots: dict[Any, Any] = {}
  for equation in jaxpr.eqns:
    if equation.primitive.name in _VIEWS:
      for source, view in zip(equation.invars, equation.outvars, strict=False):
        if not isinstance(source, core.Literal):
          roots[view] = roots.get(source, source)
  last: dict[Any, int] = {}
  for i, equation in enumerate(jaxpr.eqns):
    for variable in equation.invars:
      if not isinstance(variable, core.Literal):
        last[roots.get(variable, variable)] = i
  for variable in jaxpr.outvars:
    if not isinstance(variable, core.Literal):
      last[roots.get(variable, variable)] = len(jaxpr.eqns)
  ends: dict[int, list[Any]] = {}
  for variable, i in last.items():
    ends.setdefault(i, []).append(variable)
  alive, live, peak = {}, 0, 0
  for i, equation in enumerate(jaxpr.eqns):
    made = {v: _bytes(v) for v in equation.outvars if v not in roots}
    inside = max(map(peak_bytes, _programs(equation)), default=0)
    if equation.primitive.name not in ('scan', 'while'):
      # What a call returns was made inside.
      inside = max(inside - sum(made.values()), 0)
    live += sum(made.values())
    peak = max(peak, live + inside)
    alive |= made
    unused = [v for v in made if v not in last]
    live -= sum(alive.pop(v, 0) for v in (*ends.get(i, ()), *unused))
  return peak


def _programs(equation: Any) -> list[core.Jaxpr]:
  """The programs that an operation runs."""
  found = []
  for value in equation.params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, core.ClosedJaxpr | core.Jaxpr):
        found.append(getattr(item, 'jaxpr', item))
  return found


def _bytes(variable: Any) -> int:
  shape = getattr(variable.aval, 'shape', ())
  return math.prod(shape) * getattr(variable.aval.dtype, 'itemsize', 4)
