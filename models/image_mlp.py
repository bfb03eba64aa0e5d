"""Residual perceptron over the bytes of an image: its class.

The multi-layer perceptron of Compute Better Spent (arXiv 2406.06248, section
4), on whose widths structured layers were compared with dense ones.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import linear


class Block(nn.Module):
  """x += W_down gelu(W_up norm(x)), of four times the width inside."""

  linear: nn.Module
  dtype: str

  @nn.compact
  def __call__(self, x_BD: jax.Array) -> jax.Array:
    width = x_BD.shape[-1]
    inner = nn.LayerNorm(use_bias=False, dtype=self.dtype, name='norm')(x_BD)
    for name, features, gain in (('up', 4 * width, 1.0), ('down', width, 0.0)):
      layer = self.linear.copy(
        name=name, features=features, gain=gain, dtype=self.dtype
      )
      inner = layer(nn.gelu(inner) if name == 'down' else inner)
    x_BD += inner
    self.sow('intermediates', 'output', x_BD)
    return x_BD


class ImageMLP(nn.Module):
  """Logits of the classes of images, [B, 1, classes].

  width, layers: of the residual blocks.
  pixels: bytes of an image; ids are those of data.codec.Bytes.
  classes: of the images.
  order: seed of the order in which pixels are read, so that no structure has
    an advantage from neighbours; None for that of the rows.
  linear: prototype of every projection except the head, or linear.Roles.
  dtype: of activations and matmuls; parameters and logits are float32.
  """

  width: int
  layers: int = 3
  pixels: int = 3072
  classes: int = 10
  order: int | None = 0
  linear: Any = linear.Dense()
  vocabulary_size: int = 260
  dtype: str = 'float32'

  # Rows have the length of an image.
  max_length = None

  @nn.compact
  def __call__(
    self,
    ids_BT: jax.Array,
    documents_BT: jax.Array | None = None,
    cache: None = None,
  ) -> tuple[jax.Array, None]:
    """As models.lm.ByteLM, but for one answer a row and no cache."""
    del documents_BT
    if cache is not None:
      raise ValueError('ImageMLP reads whole images; call it without a cache.')
    if self.is_initializing():
      # Parameters are drawn with a few ids.
      ids_BT = jnp.resize(ids_BT, (ids_BT.shape[0], self.pixels))
    if ids_BT.shape[1] != self.pixels:
      raise ValueError(
        f'ImageMLP: rows of {ids_BT.shape[1]} ids are no images of'
        f' model.pixels={self.pixels} bytes; set it to the row_length.'
      )
    # The bytes from 0 to 255 follow on four special ids.
    x_BT = (ids_BT.astype(jnp.float32) - 4) / 255
    x_BT = (x_BT - 0.5) / 0.25
    if self.order is not None:
      rng = np.random.default_rng(self.order)
      x_BT = x_BT[:, rng.permutation(self.pixels)]
    layer = linear.of_role(self.linear, 'feed_forward')
    first = layer.copy(name='input', features=self.width, dtype=self.dtype)
    x_BD = nn.gelu(first(x_BT.astype(self.dtype)))
    for i in range(self.layers):
      x_BD = Block(layer, self.dtype, name=f'block_{i}')(x_BD)
    norm = nn.LayerNorm(use_bias=False, dtype=self.dtype, name='final_norm')
    x_BD = norm(x_BD)
    self.sow('intermediates', 'final', x_BD)
    head = linear.of_role(self.linear, 'head').copy(
      name='head', features=self.classes, dtype=self.dtype
    )
    return head(x_BD).astype(jnp.float32)[:, None], None
