"""Attention patterns: who may look at whom, from positions alone.

A pattern is a frozen dataclass. `allows` is its definition; `window` lets the
attention skip whole blocks and size its cache. Document and padding limits are
combined with it by `models.attention`, so a pattern never sees them.
"""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Causal:
  """Every earlier position and itself; with a window, the last `window` ones.

  window: keys j with i - window < j <= i, the query itself included; None
    looks back without limit.
  """

  window: int | None = None

  def __post_init__(self) -> None:
    if self.window is not None and self.window < 1:
      raise ValueError(
        f'mask.window={self.window} must be >= 1 (the position itself counts),'
        ' or None for no limit.'
      )

  def allows(
    self, query_position: jax.Array, key_position: jax.Array
  ) -> jax.Array:
    """Boolean mask for broadcastable integer positions."""
    allowed = key_position <= query_position
    if self.window is not None:
      allowed &= key_position > query_position - self.window
    return allowed

  def slots(self, length: int) -> int:
    """Cache entries that suffice to decode `length` positions."""
    return length if self.window is None else min(length, self.window)
