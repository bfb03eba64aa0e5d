"""Decoder-only byte transformer: RMSNorm, SwiGLU, RoPE, grouped-query heads.

The Llama block (arXiv 2302.13971) over bytes, with the hashed n-gram input
embeddings of the Byte Latent Transformer (arXiv 2412.09871, section 3.2.1).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import attention
from models import blocks
from models import layer_cache
from models import linear
from models import masks as masks_lib
from models import ngrams
from models import positions
from models import recall


class Cache(NamedTuple):
  """Decoding state of a batch.

  layers: one `layer_cache.Cache` per layer (stacked when layers are
    scanned); length_B: tokens stored; recent_BC: the last ids, oldest first,
    for the n-gram embeddings, 0 where there is none.
  """

  layers: Any
  length_B: jax.Array
  recent_BC: jax.Array


class ByteLM(nn.Module):
  """Next-byte distribution after every byte of a row.

  width, layers, heads, key_value_heads, hidden: sizes; hidden is the SwiGLU
    width; heads must divide width, key_value_heads must divide heads.
  masks: attention pattern of layer i is masks[i % len(masks)].
  ngrams: hashed n-gram embeddings added to the byte embedding.
  recall: embedding of what followed the latest match, added likewise.
  linear: prototype of every projection except the head, or linear.Roles.
  feed_forward: prototype of the feed-forward layers, as blocks.FeedForward.
  tie_head: reuse the byte embedding as output layer.
  scan_layers: one compiled block for all layers, parameters stacked.
  remat: recompute each block in the backward pass instead of storing it.
  position: how attention tells positions apart, from models.positions.
  norm_epsilon: added to the mean square in every RMSNorm.
  max_length: longest row or stream the model accepts, None for any.
  dtype: of activations and matmuls; parameters, norms, logits are float32.
  """

  width: int
  layers: int
  heads: int
  key_value_heads: int
  hidden: int
  masks: tuple[Any, ...] = (masks_lib.Causal(),)
  ngrams: nn.Module = ngrams.NgramEmbedding()
  recall: nn.Module = recall.RecallEmbedding()
  linear: Any = linear.Dense()
  feed_forward: nn.Module = blocks.FeedForward()
  vocabulary_size: int = 260
  max_length: int | None = None
  position: Any = positions.Rotary()
  norm_epsilon: float = 1e-5
  query_key_norm: bool = False
  tie_head: bool = False
  scan_layers: bool = False
  remat: bool = False
  dtype: str = 'float32'

  def init_cache(self, batch_size: int, length: int) -> Cache:
    """An empty cache for up to `length` tokens per row."""
    layers = tuple(
      layer_cache.empty(
        self.masks[i % len(self.masks)],
        batch_size,
        length,
        self.key_value_heads,
        self.width // self.heads,
        self.dtype,
      )
      for i in range(self.layers)
    )
    if self.scan_layers:
      layers = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    return Cache(
      layers,
      jnp.zeros((batch_size,), jnp.int32),
      jnp.zeros((batch_size, min(self._context, length)), jnp.int32),
    )

  @nn.compact
  def __call__(
    self,
    ids_BT: jax.Array,
    documents_BT: jax.Array | None = None,
    cache: Cache | None = None,
    embeds_BTD: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """Logits for the token after each position, and the extended cache.

    ids_BT: int32 ids below vocabulary_size.
    documents_BT: equal ids may see each other, 0 is padding; None means one
      document per row. With a cache, every row continues a single document
      and padding may only stand at the row's end.
    cache: tokens seen so far; None for a forward pass over whole rows.
    embeds_BTD: replaces the sum of embeddings, e.g. for adapters and probes.

    Block outputs and the final hidden state are sown into the collection
    'intermediates' (`output` per block, `final`).
    """
    if documents_BT is None:
      documents_BT = jnp.ones_like(ids_BT)
    if cache is None:
      tokens, recent_BC = masks_lib.row_tokens(documents_BT), None
    else:
      tokens = _next_tokens(documents_BT, cache.length_B)
      recent_BC = cache.recent_BC
    embed = nn.Embed(
      self.vocabulary_size,
      self.width,
      embedding_init=nn.initializers.normal(self.width**-0.5),
      name='embed',
    )
    if embeds_BTD is None:
      embeds_BTD = embed(ids_BT)
      for name, lookup in (
        ('ngram_embed', self.ngrams),
        ('recall_embed', self.recall),
      ):
        if lookup.sizes:
          lookup = lookup.copy(name=name, features=self.width)
          before_BC = _last(recent_BC, lookup.context, ids_BT)
          embeds_BTD += lookup(ids_BT, tokens.position_BT, before_BC)
    x_BTD, layers = self._run_layers(
      embeds_BTD.astype(self.dtype), tokens, cache and cache.layers
    )
    x_BTD = attention.RMSNorm(self.norm_epsilon, name='final_norm')(x_BTD)
    self.sow('intermediates', 'final', x_BTD)
    if self.tie_head:
      logits_BTV = x_BTD @ embed.embedding.T.astype(self.dtype)
    else:
      head = linear.of_role(self.linear, 'head').copy(
        name='head', features=self.vocabulary_size, dtype=self.dtype
      )
      logits_BTV = head(x_BTD)
    logits_BTV = logits_BTV.astype(jnp.float32)
    if cache is None:
      return logits_BTV, None
    return logits_BTV, _extend(cache, layers, ids_BT, tokens)

  @property
  def _context(self) -> int:
    return max(self.ngrams.context, self.recall.context)

  def _run_layers(
    self, x_BTD: jax.Array, tokens: masks_lib.Tokens, caches: Any
  ) -> tuple[jax.Array, Any]:
    turn = self.position.turn(tokens.position_BT, self.width // self.heads)
    block_class = blocks.Block
    if self.remat:
      block_class = nn.remat(block_class, prevent_cse=not self.scan_layers)
    if self.scan_layers:
      if len(self.masks) != 1:
        raise ValueError(
          f'scan_layers needs one mask for all layers, got {len(self.masks)};'
          ' use scan_layers=False or a single mask.'
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
      block = block_class(**self._block_fields(i), name=f'block_{i}')
      x_BTD, layer_cache = block(
        x_BTD, tokens, turn, caches and caches[i]
      )
      updated.append(layer_cache)
    return x_BTD, tuple(updated)

  def _block_fields(self, layer: int) -> dict[str, Any]:
    if self.width % self.heads or self.heads % self.key_value_heads:
      raise ValueError(
        f'width={self.width}, heads={self.heads},'
        f' key_value_heads={self.key_value_heads}: heads must divide width'
        ' and key_value_heads must divide heads.'
      )
    if self.tie_head and getattr(self.linear, 'head', None) is not None:
      raise ValueError(
        f'tie_head=True takes the embedding for the head, but linear.head is'
        f' {type(self.linear.head).__name__}; set one of them.'
      )
    return {
      'attention': attention.Attention(
        heads=self.heads,
        key_value_heads=self.key_value_heads,
        head_width=self.width // self.heads,
        mask=self.masks[layer % len(self.masks)],
        position=self.position,
        epsilon=self.norm_epsilon,
        query_key_norm=self.query_key_norm,
        dtype=self.dtype,
        linear=linear.of_role(self.linear, 'attention'),
        parent=None,
      ),
      'feed_forward': self.feed_forward.clone(
        hidden=self.hidden,
        dtype=self.dtype,
        residual_gain=0.0,
        linear=linear.of_role(self.linear, 'feed_forward'),
        parent=None,
        name=None,
      ),
      'epsilon': self.norm_epsilon,
    }


def _next_tokens(
  documents_BT: jax.Array, length_B: jax.Array
) -> masks_lib.Tokens:
  """Tokens that continue the cached ones; padding only at the row's end."""
  index_1T = jnp.arange(documents_BT.shape[1], dtype=jnp.int32)[None]
  return masks_lib.Tokens(
    length_B[:, None] + index_1T, (documents_BT > 0).astype(jnp.int32)
  )


def _last(
  recent_BC: jax.Array | None, context: int, ids_BT: jax.Array
) -> jax.Array:
  """At most `context` ids before a row; none before whole rows."""
  if recent_BC is None:
    return jnp.zeros((ids_BT.shape[0], 0), jnp.int32)
  return recent_BC[:, max(recent_BC.shape[1] - context, 0) :]


def _extend(
  cache: Cache, layers: Any, ids_BT: jax.Array, tokens: masks_lib.Tokens
) -> Cache:
  """The cache after the real tokens of `ids_BT`."""
  new_B = tokens.document_BT.sum(axis=1)
  recent_BC = ngrams.latest(cache.recent_BC, ids_BT, new_B)
  return Cache(layers, cache.length_B + new_B, recent_BC)
