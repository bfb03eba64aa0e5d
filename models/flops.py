"""FLOPs per byte of the models here: their matmuls, two per multiply-add.

The count of the Byte Latent Transformer's FLOP tables (arXiv 2412.09871,
appendix on FLOPs) with what that leaves out: real masks, hidden widths,
grouped keys, structured layers and the projections between bytes and patches.
Embedding look-ups, norms and rotations are not matmuls and count nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from models import blocks
from models import byte_latent
from models import linear
from models import lm
from models import masks
from models import mixture
from models import patched
from models import structured
from models import window_attention

# Mean keys per query of a mask over a row of so many positions.
Keys = Callable[[Any, int], float]

# Latent tokens that `ByteLatent.reserve` advises per patch.
_ROOM = 1.15


class Parts(NamedTuple):
  """Forward FLOPs per byte; a ByteLM is all `decoder` and `head`.

  patch_projections: bytes to patches and back, which the paper leaves out.
  entropy: of the model that says where patches end.
  """

  encoder: float
  encoder_cross: float
  patch_projections: float
  latent: float
  decoder: float
  decoder_cross: float
  head: float
  entropy: float

  @property
  def total(self) -> float:
    """Of the model alone: all parts but `entropy`, as published."""
    return sum(self) - self.entropy


class _Work(NamedTuple):
  """What a row asks for: bytes, latent tokens, these per byte, and keys."""

  length: int
  patches: int
  rate: float
  keys: Keys


def per_byte(
  model: nn.Module, *, length: int, patch_bytes: float | None = None
) -> Parts:
  """FLOPs that the result needs, for one document per row of `length` bytes.

  Attention counts visible keys only, the latent transformer real patches.

  patch_bytes: mean bytes of a patch; None for `usual_patch`.
  """
  if patch_bytes is None:
    patch_bytes = usual_patch(model) or 1.0
  if length < 1 or patch_bytes < 1:
    raise ValueError(
      f'length={length} and patch_bytes={patch_bytes} must be at least 1.'
    )
  patches = max(round(length / patch_bytes), 1)
  return _count(model, _Work(length, patches, 1 / patch_bytes, visible_keys))


def usual_patch(model: nn.Module) -> float | None:
  """Mean bytes of a patch that `reserve` is meant for; None without patches."""
  inner = _unwrapped(model)
  if not isinstance(inner, byte_latent.ByteLatent):
    return None
  return max(_ROOM / inner.reserve, 1.0)


def computed(model: nn.Module, *, length: int) -> Parts:
  """FLOPs that the compiled forward pass spends: masked and unused ones too.

  Attention by plain matmuls; fused kernels skip a part of what is masked.
  """
  inner = _unwrapped(model)
  patches, rate = length, 1.0
  if isinstance(inner, byte_latent.ByteLatent):
    patches = inner.budget(inner.rows * length)
    rate = patches / (inner.rows * length)
  return _count(model, _Work(length, patches, rate, computed_keys))


def training(model: nn.Module, parts: Parts) -> float:
  """FLOPs per byte of a train step.

  The backward pass is two forward passes; stacks with `remat` do one more
  forward pass, of which XLA leaves out the last matmul of each block. Left
  out are the logits of windows, which rows of several blocks compute twice,
  and the entropy model: what it says of a corpus is stored once.
  """
  inner = _unwrapped(model)
  again = 0.0
  if isinstance(inner, byte_latent.ByteLatent):
    for name in ('encoder', 'latent', 'decoder'):
      again += getattr(inner, name).remat * getattr(parts, name)
  elif isinstance(inner, lm.ByteLM):
    again = inner.remat * parts.decoder
  return 3 * parts.total + again


def visible_keys(mask: Any, length: int) -> float:
  """Mean number of keys that a query may see in one document of a row."""
  if type(mask) in (masks.Causal, masks.Lambda):
    window = min(mask.window or length, length)
    seen = _ramp(length, window) + _ramp(length - window, mask.n_global)
    between = length - window - mask.n_global
    return (seen + _ramp(between, mask.top_k)) / length
  key_1S = np.arange(length)[None]
  seen = 0
  for start in range(0, length, 512):
    query_T1 = key_1S[0, start : start + 512, None]
    seen += np.count_nonzero(np.asarray(mask.allows(query_T1, key_1S)))
  return seen / length


def computed_keys(mask: Any, length: int) -> float:
  """Keys per query that models.attention multiplies over whole rows."""
  laid = window_attention.plan_rows(mask, length)
  if laid is None:
    return length
  padded = laid.blocks * laid.size
  if laid.before is None:
    return padded**2 / length
  keys = laid.before + laid.size + laid.sets * mask.n_global
  if mask.top_k:
    keys += 1.5 * length  # The half is the product that they are chosen by.
  return keys * padded / length


def _ramp(count: int, largest: int) -> int:
  """The sum of min(i, largest) over i = 1..count."""
  rising = max(min(count, largest), 0)
  return rising * (rising + 1) // 2 + max(count - rising, 0) * largest


def _count(model: nn.Module, work: _Work) -> Parts:
  of_entropy = 0.0
  # Entropy models of tables are look-ups.
  if isinstance(getattr(model, 'entropy', None), patched.LMEntropy):
    of_entropy = _count(model.entropy.lm, work).total
  model = _unwrapped(model)
  if isinstance(model, lm.ByteLM):
    parts = _byte_lm(model, work)
  elif isinstance(model, byte_latent.ByteLatent):
    parts = _byte_latent(model, work)
  else:
    raise ValueError(
      f'model {type(model).__name__} has no FLOP count; models.flops knows'
      ' ByteLM and ByteLatent: add its matmuls there.'
    )
  return Parts(*(2 * macs for macs in parts[:-1]), entropy=of_entropy)


def _byte_lm(model: lm.ByteLM, work: _Work) -> Parts:
  blocks = _blocks(model, model.linear, work.length, work.keys)
  head = _head(model, model.width)
  return Parts(0.0, 0.0, 0.0, 0.0, blocks, 0.0, head, 0.0)


def _byte_latent(model: byte_latent.ByteLatent, work: _Work) -> Parts:
  layer, keys = linear.of_role(model.linear, 'patches'), work.keys
  local, latent, slots = model.encoder.width, model.latent.width, model.slots
  carried = slots * local
  projections = _macs(layer, local, carried) + _macs(layer, latent, carried)
  if carried != latent:
    projections += _macs(layer, carried, latent)
  # Two projections per byte and two per slot; every byte meets the slots of
  # one patch, once for the scores and once for the mixture.
  mixing = linear.of_role(model.linear, 'attention')
  cross = 2 * _macs(mixing, local, local) * (1 + work.rate * slots)
  cross += 2 * carried
  return Parts(
    encoder=_blocks(model.encoder, model.linear, work.length, keys),
    encoder_cross=cross,
    patch_projections=work.rate * projections,
    latent=work.rate * _blocks(model.latent, model.linear, work.patches, keys),
    decoder=_blocks(model.decoder, model.linear, work.length, keys),
    decoder_cross=model.decoder.layers * cross,
    head=_head(model, local),
    entropy=0.0,
  )


def _head(model: lm.ByteLM | byte_latent.ByteLatent, width: int) -> int:
  if getattr(model, 'tie_head', False):
    return width * model.vocabulary_size
  layer = linear.of_role(model.linear, 'head')
  return _macs(layer, width, model.vocabulary_size)


def _blocks(
  stack: Any, layer: nn.Module | linear.Roles, length: int, keys: Keys
) -> float:
  """Multiply-adds per token of a stack of blocks, or of a ByteLM's."""
  width = stack.width
  mixing = linear.of_role(layer, 'attention')
  feeding = linear.of_role(layer, 'feed_forward')
  shared = width // stack.heads * (stack.key_value_heads or stack.heads)
  projections = (
    2 * _macs(mixing, width, width)
    + 2 * _macs(mixing, width, shared)
    + _feeding(stack.feed_forward, feeding, width, stack.hidden)
  )
  seen = {mask: keys(mask, length) for mask in set(stack.masks)}
  attended = sum(
    seen[stack.masks[i % len(stack.masks)]] for i in range(stack.layers)
  )
  return stack.layers * projections + 2 * width * attended


def _feeding(
  block: nn.Module, layer: nn.Module, width: int, hidden: int
) -> int:
  """Multiply-adds per token of one feed-forward layer."""
  macs = 2 * _macs(layer, width, hidden) + _macs(layer, hidden, width)
  if isinstance(block, mixture.MixtureFeedForward):
    return block.active * macs + block.experts * width
  if isinstance(block, blocks.FeedForward):
    return macs
  raise ValueError(
    f'feed_forward={type(block).__name__} has no FLOP count; use'
    ' blocks.FeedForward or mixture.MixtureFeedForward.'
  )


def _macs(layer: nn.Module, d_in: int, d_out: int) -> int:
  """Multiply-adds per token of one projection; of a mixture, what is used."""
  if isinstance(layer, linear.Dense):
    return d_in * d_out
  if isinstance(layer, mixture.Mixture):
    return layer.macs(d_in, d_out)
  if isinstance(layer, structured.Structured):
    return layer.chain(d_in, d_out).macs
  raise ValueError(
    f'linear={type(layer).__name__} has no FLOP count; use linear.Dense or a'
    ' class of models.structured.'
  )


def _unwrapped(model: nn.Module) -> nn.Module:
  """The model that computes logits, without what computes its patches."""
  return model.model if isinstance(model, patched.Patched) else model
