"""Byte Latent Transformer: local byte layers around a patch transformer.

Bytes pass a small local encoder; each patch of them becomes one token of the
latent transformer, whose outputs a local decoder turns into the distribution
of every next byte (Pagnoni et al., arXiv 2412.09871). Where the paper and its
published code disagree, this is the code.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import attention
from models import cross_attention
from models import latent_cache
from models import linear
from models import masks
from models import ngrams
from models import patch_rows
from models import patching as patching_lib
from models import recall
from models import stacks


class ByteLatent(nn.Module):
  """Next-byte distribution after every byte of a row, by way of patches.

  encoder, latent, decoder: the three stacks. encoder and decoder run over
    bytes at the same width, latent over patches.
  patching: where patches end.
  slots: vectors of local width that a patch is carried in, k in the paper.
  reserve: latent tokens per byte that arrays have room for, rounded up to a
    multiple of 16; 1.15 over the mean patch length is a good choice.
  overflow: what becomes of bytes whose patch finds no room. 'cut': they are
    padding, and their logits are all 0, so that the loss shows them. 'stale':
    they go on reading their document's last patch that had room.
  rows: batch rows that share one latent row and its budget, which evens out
    their patch counts; batches they do not divide share fewer.
  ngrams, recall: embeddings added to that of the byte, as models.lm.ByteLM.
  linear, dtype: as models.lm.ByteLM, for all parts.

  Sown into 'counts': `patches` and `overflow`, the counts of latent
  tokens used and of bytes without room.
  """

  encoder: stacks.Stack
  latent: stacks.Stack
  decoder: stacks.Stack
  patching: patching_lib.Patching = patching_lib.Patching()
  slots: int = 2
  reserve: float = 0.4
  overflow: str = 'cut'
  rows: int = 1
  ngrams: nn.Module = ngrams.NgramEmbedding(sizes=(3, 4, 5, 6, 7, 8))
  recall: nn.Module = recall.RecallEmbedding()
  linear: Any = linear.Dense()
  vocabulary_size: int = 260
  max_length: int | None = None
  dtype: str = 'float32'

  def setup(self) -> None:
    self._check()
    width, dtype = self.encoder.width, self.dtype
    layer = functools.partial(linear.of_role, self.linear)
    mixing = layer('attention')

    def project(features: int, role: str = 'patches') -> nn.Module:
      return layer(role).copy(features=features, dtype=dtype)

    def cross(heads: int) -> nn.Module:
      return cross_attention.CrossAttention(width, heads, dtype, mixing)

    def stack(prototype: stacks.Stack) -> stacks.Stack:
      return prototype.copy(linear=self.linear, dtype=dtype)

    drawn = nn.initializers.normal(width**-0.5)
    self.embed = nn.Embed(self.vocabulary_size, width, embedding_init=drawn)
    self.ngram_embed = self.ngrams.copy(features=width)
    self.recall_embed = self.recall.copy(features=width)
    self.local_encoder = stack(self.encoder)
    self.patch_query = project(self.slots * width)
    self.encoder_cross = cross(self.encoder.heads)
    if self.slots * width != self.latent.width:
      self.latent_input = project(self.latent.width)
    self.latent_transformer = stack(self.latent)
    self.patch_slots = project(self.slots * width)
    self.decoder_cross = [
      cross(self.decoder.heads) for _ in range(self.decoder.layers)
    ]
    self.local_decoder = stack(self.decoder)
    self.final_norm = attention.RMSNorm()
    self.head = project(self.vocabulary_size, 'head')

  def __call__(
    self,
    ids_BT: jax.Array,
    documents_BT: jax.Array | None = None,
    cache: latent_cache.Cache | None = None,
    *,
    entropy_BT: jax.Array | None = None,
    closes_BT: jax.Array | None = None,
    embeds_BTD: jax.Array | None = None,
  ) -> tuple[jax.Array, latent_cache.Cache | None]:
    """Logits for the byte after each position, and the extended cache.

    ids_BT, documents_BT, cache: as models.lm.ByteLM.
    entropy_BT: nats after each byte, for patching rules that look at them.
    closes_BT: stored decisions, True where a patch ends after the byte; they
      replace the rule in a forward pass over whole rows.
    embeds_BTD: replaces the sum of embeddings, as models.lm.ByteLM; with a
      cache only.
    """
    if documents_BT is None:
      documents_BT = jnp.ones_like(ids_BT)
    if self.is_initializing() and entropy_BT is None:
      entropy_BT = jnp.zeros(ids_BT.shape)
    if cache is not None:
      if closes_BT is not None:
        raise ValueError(
          'closes_BT are for whole rows; with a cache pass entropy_BT, from'
          ' which the rule decides.'
        )
      position_BT = cache.length_B[:, None] + jnp.arange(ids_BT.shape[1])[None]
      tokens = masks.Tokens(position_BT, (documents_BT > 0).astype(jnp.int32))
      if embeds_BTD is None:
        embeds_BTD = self._embed(ids_BT, position_BT, cache.recent_BC)
      x_BTD = embeds_BTD.astype(self.dtype)
      return self._extend(ids_BT, x_BTD, tokens, cache, entropy_BT)
    if closes_BT is None:
      closes_BT = self.patching.closes(ids_BT, documents_BT, entropy_BT)
    else:
      first_BT = masks.row_tokens(documents_BT).position_BT == 0
      closes_BT = (closes_BT | first_BT) & (documents_BT > 0)
    return self._forward(ids_BT, documents_BT, closes_BT), None

  def budget(self, length: int) -> int:
    """Latent tokens that `length` bytes have room for."""
    return min(16 * math.ceil(self.reserve * length / 16), length)

  def init_cache(self, batch_size: int, length: int) -> latent_cache.Cache:
    """An empty cache for up to `length` bytes per row.

    Beyond its budget of patches the latent transformer forgets the oldest.
    """
    heads, width = self.encoder.heads, self.encoder.width
    longest = self.patching.max_length or length
    slot_shape = (
      self.decoder.layers,
      batch_size,
      self.slots,
      self.decoder.heads,
      width // self.decoder.heads,
    )
    context = max(self.ngrams.context, self.recall.context)
    stack_lengths = (
      (self.encoder, length),
      (self.latent, self.budget(length)),
      (self.decoder, length),
    )
    return latent_cache.Cache(
      *(
        stack.copy(parent=None, dtype=self.dtype).init_cache(batch_size, slots)
        for stack, slots in stack_lengths
      ),
      patching=self.patching.init(batch_size),
      patches_B=jnp.zeros(batch_size, jnp.int32),
      open=latent_cache.empty(batch_size, longest, heads, width, self.dtype),
      slots_YBMHK=(
        jnp.zeros(slot_shape, self.dtype),
        jnp.zeros(slot_shape, self.dtype),
      ),
      recent_BC=jnp.zeros((batch_size, context), jnp.int32),
    )

  def _check(self) -> None:
    if self.encoder.width != self.decoder.width:
      raise ValueError(
        f'encoder.width={self.encoder.width} and'
        f' decoder.width={self.decoder.width} must be equal: the decoder goes'
        ' on from the states of the encoder.'
      )
    if self.overflow not in ('cut', 'stale'):
      raise ValueError(f"overflow={self.overflow!r} must be 'cut' or 'stale'.")
    if not 0 < self.reserve <= 1 or self.slots < 1 or self.rows < 1:
      raise ValueError(
        f'reserve={self.reserve} must be in (0, 1], slots={self.slots} and'
        f' rows={self.rows} at least 1.'
      )

  def _embed(
    self, ids_BT: jax.Array, age_BT: jax.Array, recent_BC: jax.Array
  ) -> jax.Array:
    x_BTD = self.embed(ids_BT)
    for lookup in (self.ngram_embed, self.recall_embed):
      if lookup.sizes:
        start = max(recent_BC.shape[1] - lookup.context, 0)
        x_BTD += lookup(ids_BT, age_BT, recent_BC[:, start:])
    return x_BTD.astype(self.dtype)

  def _forward(
    self, ids_BT: jax.Array, documents_BT: jax.Array, closes_BT: jax.Array
  ) -> jax.Array:
    """Logits of whole rows."""
    plan = patch_rows.plan(
      documents_BT, closes_BT, rows=self.rows, budget=self.budget
    )
    self.sow('counts', 'overflow', plan.overflow)
    self.sow('counts', 'patches', jnp.sum(plan.tokens.document_BT > 0))
    pooled_BT = plan.pooled_WT.reshape(ids_BT.shape)
    cut_BT = jnp.zeros_like(pooled_BT)
    if self.overflow == 'cut':
      cut_BT = (documents_BT > 0) & ~pooled_BT
      documents_BT = jnp.where(cut_BT, 0, documents_BT)
    tokens = masks.row_tokens(documents_BT)
    none_B0 = jnp.zeros((ids_BT.shape[0], 0), jnp.int32)
    x_BTD = self._embed(ids_BT, tokens.position_BT, none_B0)
    x_BTD, _ = self.local_encoder(x_BTD, tokens)
    grouped = (*plan.patch_WT.shape, -1)
    x_WTD = x_BTD.reshape(grouped)
    peak_WPD = cross_attention.max_patches(
      jnp.where(plan.pooled_WT[:, :, None], x_WTD, -jnp.inf),
      plan.patch_WT,
      plan.tokens.document_BT.shape[1],
    )
    keys = self.encoder_cross.keys(x_WTD)
    x_WPD = self._read_patches(peak_WPD, *keys, plan.patch_WT, plan.pooled_WT)
    x_WPD, _ = self.latent_transformer(x_WPD, plan.tokens)
    slots_WPMD = self._split(self.patch_slots(x_WPD))

    def cross(i: int, x_BTD: jax.Array) -> jax.Array:
      layer = self.decoder_cross[i]
      mixed = cross_attention.look_up(
        layer.queries(x_BTD.reshape(grouped)),
        *layer.keys(slots_WPMD),
        plan.slot_WT,
        plan.reads_WT,
      )
      return 2 * x_BTD + layer.result(mixed).reshape(x_BTD.shape)

    x_BTD, _ = self.local_decoder(x_BTD, tokens, before=cross)
    logits_BTV = self._logits(x_BTD)
    return jnp.where(cut_BT[:, :, None], 0.0, logits_BTV)

  def _read_patches(
    self,
    peak_BPD: jax.Array,
    key_BTHK: jax.Array,
    value_BTHK: jax.Array,
    patch_BT: jax.Array,
    real_BT: jax.Array,
  ) -> jax.Array:
    """The latent transformer's input: peaks query the bytes of their patch."""
    peak_BPD = jnp.where(jnp.isneginf(peak_BPD), 0.0, peak_BPD)
    query_BPMD = self._split(self.patch_query(peak_BPD))
    mixed = cross_attention.pool_bytes(
      self.encoder_cross.queries(query_BPMD),
      key_BTHK,
      value_BTHK,
      patch_BT,
      real_BT,
    )
    out_BPMD = 2 * query_BPMD + self.encoder_cross.result(mixed)
    out_BPD = out_BPMD.reshape(*peak_BPD.shape[:2], -1)
    if out_BPD.shape[-1] != self.latent.width:
      out_BPD = self.latent_input(out_BPD)
    return out_BPD

  def _split(self, x: jax.Array) -> jax.Array:
    """[..., M D] as M slots [..., M, D]."""
    return x.reshape(*x.shape[:-1], self.slots, self.encoder.width)

  def _logits(self, x_BTD: jax.Array) -> jax.Array:
    return self.head(self.final_norm(x_BTD)).astype(jnp.float32)

  def _extend(
    self,
    ids_BT: jax.Array,
    x_BTD: jax.Array,
    tokens: masks.Tokens,
    cache: latent_cache.Cache,
    entropy_BT: jax.Array | None,
  ) -> tuple[jax.Array, latent_cache.Cache]:
    """Logits of more bytes of each row, and the cache with them.

    x_BTD: embeddings; tokens: where they stand, 0 for padding. Here patch 0 is
    the open one, and those that it starts follow.
    """
    real_BT = tokens.document_BT > 0
    x_BTD, encoder = self.local_encoder(x_BTD, tokens, cache.encoder)
    closes_BT, state = self.patching.extend(
      cache.patching, ids_BT, real_BT, entropy_BT
    )
    patch_BT = jnp.cumsum(closes_BT, axis=1, dtype=jnp.int32) - closes_BT
    new_B = jnp.sum(closes_BT, axis=1, dtype=jnp.int32)
    encoded = latent_cache.Bytes(
      x_BTD, *self.encoder_cross.keys(x_BTD), patch_BT, real_BT
    )
    peak_BPD, patch_bytes, pending = latent_cache.extend(
      cache.open, encoded, cache.patching.length_B, new_B
    )
    latent, slots_YBPMHK = self._run_latent(peak_BPD, patch_bytes, new_B, cache)
    slots_YBPMHK = tuple(
      jnp.concatenate([old_YBMHK[:, :, None], new_YBPMHK], axis=2)
      for old_YBMHK, new_YBPMHK in zip(
        cache.slots_YBMHK, slots_YBPMHK, strict=True
      )
    )

    def cross(i: int, x_BTD: jax.Array) -> jax.Array:
      layer = self.decoder_cross[i]
      mixed = cross_attention.look_up(
        layer.queries(x_BTD),
        *(x_YBPMHK[i] for x_YBPMHK in slots_YBPMHK),
        patch_BT + closes_BT,
        real_BT,
      )
      return 2 * x_BTD + layer.result(mixed)

    x_BTD, decoder = self.local_decoder(
      x_BTD, tokens, cache.decoder, before=cross
    )
    return self._logits(x_BTD), latent_cache.Cache(
      encoder,
      latent,
      decoder,
      state,
      cache.patches_B + new_B,
      pending,
      tuple(x[:, jnp.arange(len(new_B)), new_B] for x in slots_YBPMHK),
      ngrams.latest(
        cache.recent_BC, ids_BT, jnp.sum(real_BT, axis=1, dtype=jnp.int32)
      ),
    )

  def _run_latent(
    self,
    peak_BPD: jax.Array,
    patch_bytes: latent_cache.Bytes,
    new_B: jax.Array,
    cache: latent_cache.Cache,
  ) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """Latent cache, and decoder keys and values of the patches just closed.

    Runs at one of two sizes, or not at all for a byte that closes no patch.
    """
    length = peak_BPD.shape[1] - 1

    def run(size: int, mdl: 'ByteLatent', latent: Any) -> tuple[Any, Any]:
      x_BPD = mdl._read_patches(
        peak_BPD[:, :size],
        patch_bytes.key_BTHK,
        patch_bytes.value_BTHK,
        jnp.minimum(patch_bytes.patch_BT, size - 1),
        patch_bytes.real_BT & (patch_bytes.patch_BT < size),
      )
      place_1P = jnp.arange(size, dtype=jnp.int32)[None]
      tokens = masks.Tokens(
        cache.patches_B[:, None] + place_1P,
        (place_1P < new_B[:, None]).astype(jnp.int32),
      )
      x_BPD, latent = mdl.latent_transformer(x_BPD, tokens, latent)
      slots_BPMD = mdl._split(mdl.patch_slots(x_BPD))
      pairs = [layer.keys(slots_BPMD) for layer in mdl.decoder_cross]
      room = [(0, 0)] * 2 + [(0, length - size)] + [(0, 0)] * 3
      return latent, tuple(
        jnp.pad(jnp.stack(x), room) for x in zip(*pairs, strict=True)
      )

    if length == 1:
      # Of no or one round: a conditional would copy the caches every time.
      return nn.while_loop(
        lambda _, carry: carry[0],
        lambda mdl, carry: (jnp.array(False), *run(1, mdl, carry[1])),
        self,
        (
          jnp.any(new_B > 0),
          cache.latent,
          tuple(x[:, :, None] for x in cache.slots_YBMHK),
        ),
      )[1:]
    small = self.budget(length)
    if small == length:
      return run(length, self, cache.latent)
    return nn.cond(
      jnp.max(new_B) <= small,
      functools.partial(run, small),
      functools.partial(run, length),
      self,
      cache.latent,
    )
