"""Caches by rows, whatever axis of which array these are on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


class Axes:
  """The axis of the rows in each leaf of a tree, -1 where there is none.

  Hashable, so that it can be a static argument.
  """

  def __init__(self, small: Any, large: Any) -> None:
    """From the shapes of a tree for some rows, and for more of them."""

    def find(a: jax.ShapeDtypeStruct, b: jax.ShapeDtypeStruct) -> int:
      sizes = enumerate(zip(a.shape, b.shape, strict=True))
      return next((axis for axis, (x, y) in sizes if x != y), -1)

    self.tree = jax.tree.map(find, small, large)
    leaves, structure = jax.tree.flatten(self.tree)
    self._identity = (tuple(leaves), structure)

  def __hash__(self) -> int:
    return hash(self._identity)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Axes) and self._identity == other._identity


def cache_axes(init_cache: Callable[[int], Any]) -> Axes:
  """The axes of what makes an empty cache for so many rows."""
  return Axes(*(jax.eval_shape(lambda n=n: init_cache(n)) for n in (1, 2)))


def take(tree: Any, axes: Axes, index_N: jax.Array) -> Any:
  """The tree with these rows, in this order; a row may come several times."""

  def pick(leaf: jax.Array, axis: int) -> jax.Array:
    return leaf if axis < 0 else jnp.take(leaf, index_N, axis=axis)

  return jax.tree.map(pick, tree, axes.tree)
