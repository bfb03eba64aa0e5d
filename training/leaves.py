"""The arrays of a checkpoint: what they are, and parameters read from them."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp


def describe(tree: Any) -> dict[str, list[Any]]:
  """Maps every leaf's path to its dtype and shape."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): [
      str(leaf.dtype),
      list(leaf.shape),
    ]
    for path, leaf in leaves
  }


def check(
  stored: dict[str, list[Any]],
  wanted: dict[str, list[Any]],
  path: pathlib.Path,
) -> None:
  """Raises ValueError naming the first leaf that differs."""
  for name in [*wanted, *stored]:
    there, here = stored.get(name), wanted.get(name)
    if there != here:
      raise ValueError(
        f'{path}: {name} is {_spell(there)} in the checkpoint but'
        f' {_spell(here)} in this config; use the config of the run or another'
        ' --workdir'
      )


def read_params(arrays: pathlib.Path, listed: dict[str, list[Any]]) -> Any:
  """The entry 'params' of stored arrays, in NumPy; nothing else is read.

  listed: what the manifest says of the leaves. Memory is taken for these only,
  of which it is known that they fit into the files; ValueError for others, and
  for files that Orbax cannot read.
  """
  with explained(arrays):
    target = dict(ocp.metadata(arrays).metadata)
    params = target.pop('params')
    described = describe({'params': params})
  for name, leaf in described.items():
    if listed.get(name) != leaf:
      raise ValueError(
        f'{arrays}: {name[:80]} is {_spell(leaf)} but'
        f' {_spell(listed.get(name))} in the manifest; take another checkpoint'
      )
  target = jax.tree.map(lambda _: ocp.PLACEHOLDER, target)
  target['params'] = jax.tree.map(
    lambda leaf: np.empty(leaf.shape, leaf.dtype), params
  )
  with explained(arrays):
    return ocp.load(arrays, target)['params']


@contextlib.contextmanager
def explained(arrays: pathlib.Path) -> Iterator[None]:
  """Says in one sentence what Orbax says of files that it cannot read."""
  try:
    yield
  except Exception as error:  # Orbax and TensorStore have no class for it.
    reason = ' '.join(str(error).split())[:200] or type(error).__name__
    raise ValueError(
      f'{arrays} cannot be read ({reason}); take another checkpoint, or copy'
      ' this one anew'
    ) from error


def _spell(leaf: list[Any] | None) -> str:
  return 'absent' if leaf is None else f'{leaf[0]}{leaf[1]}'
