"""Transformer blocks one after the other over one kind of position."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import attention
from models import blocks
from models import layer_cache
from models import linear
from models import masks as masks_lib
from models import positions


class Stack(nn.Module):
  """`layers` blocks, without embedding, final norm and head.

  width, heads, key_value_heads, hidden: sizes, as in models.lm.ByteLM; no
    key_value_heads means as many as heads.
  masks: attention pattern of layer i is masks[i % len(masks)].
  position: how attention tells positions apart, from models.positions.
  residual_gain: initial size of what a feed-forward layer adds.
  scan_layers: one compiled block for all layers, parameters stacked.
  remat: recompute each block in the backward pass instead of storing it.
  feed_forward: prototype of the feed-forward layers, as blocks.FeedForward.
  linear, dtype: set by the model.
  """

  width: int
  layers: int
  heads: int
  hidden: int
  key_value_heads: int | None = None
  masks: tuple[Any, ...] = (masks_lib.Causal(),)
  position: Any = positions.Rotary(theta=500_000.0)
  query_key_norm: bool = False
  residual_gain: float = 0.0
  scan_layers: bool = False
  remat: bool = False
  linear: Any = linear.Dense()
  feed_forward: nn.Module = blocks.FeedForward()
  dtype: str = 'float32'

  def init_cache(self, batch_size: int, length: int) -> Any:
    """Empty caches of all layers for up to `length` positions per row."""
    layers = tuple(
      layer_cache.empty(
        self.masks[i % len(self.masks)],
        batch_size,
        length,
        self.key_value_heads or self.heads,
        self.width // self.heads,
        self.dtype,
      )
      for i in range(self.layers)
    )
    if self.scan_layers:
      layers = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    return layers

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    tokens: masks_lib.Tokens,
    caches: Any = None,
    before: Callable[[int, jax.Array], jax.Array] | None = None,
  ) -> tuple[jax.Array, Any]:
    """The states after all blocks, and the extended caches.

    before: changes the states that layer i reads, as before(i, x_BTD).
    """
    turn = self.position.turn(tokens.position_BT, self.width // self.heads)
    block_class = blocks.Block
    if self.remat:
      block_class = nn.remat(block_class, prevent_cse=not self.scan_layers)
    if self.scan_layers:
      if len(self.masks) != 1 or before is not None:
        raise ValueError(
          f'scan_layers needs one mask, got {len(self.masks)}, and a stack'
          ' without cross-attention; use scan_layers=False.'
        )
      scan = nn.scan(
        block_class,
        variable_axes={'params': 0, 'intermediates': 0, 'counts': 0},
        split_rngs={'params': True},
        in_axes=(nn.broadcast, nn.broadcast, 0),
        length=self.layers,
      )
      return scan(**self._block_fields(0), name='blocks')(
        x_BTD, tokens, turn, caches
      )
    updated = []
    for i in range(self.layers):
      if before is not None:
        x_BTD = before(i, x_BTD)
      block = block_class(**self._block_fields(i), name=f'block_{i}')
      x_BTD, cache = block(x_BTD, tokens, turn, caches and caches[i])
      updated.append(cache)
    return x_BTD, tuple(updated)

  def _block_fields(self, layer: int) -> dict[str, nn.Module]:
    key_value_heads = self.key_value_heads or self.heads
    if self.width % self.heads or self.heads % key_value_heads:
      raise ValueError(
        f'width={self.width}, heads={self.heads},'
        f' key_value_heads={key_value_heads}: heads must divide width and'
        ' key_value_heads must divide heads.'
      )
    return {
      'attention': attention.Attention(
        heads=self.heads,
        key_value_heads=key_value_heads,
        head_width=self.width // self.heads,
        mask=self.masks[layer % len(self.masks)],
        position=self.position,
        query_key_norm=self.query_key_norm,
        dtype=self.dtype,
        linear=linear.of_role(self.linear, 'attention'),
        parent=None,
      ),
      'feed_forward': self.feed_forward.clone(
        hidden=self.hidden,
        dtype=self.dtype,
        residual_gain=self.residual_gain,
        linear=linear.of_role(self.linear, 'feed_forward'),
        parent=None,
        name=None,
      ),
    }
