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

from models import byte_latent
from models import linear
from models import lm
from models import masks
from models import patched
from models import structured

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
  forward pass, of which XLA leaves out the last matmul of each block. The
  entropy model is not part of it: what it says of a corpus is stored once.
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
  if type(mask) is masks.Causal:
    window = min(mask.window or length, length)
    return window - window * (window - 1) / (2 * length)
  key_1S = np.arange(length)[None]
  seen = 0
  for start in range(0, length, 512):
    query_T1 = key_1S[0, start : start + 512, None]
    seen += np.count_nonzero(np.asarray(mask.allows(query_T1, key_1S)))
  return seen / length


def computed_keys(mask: Any, length: int) -> float:
  """Keys per query that models.attention multiplies over whole rows."""
  window = mask.window
  if window is None or length <= 2 * window:
    return length
  padded = -(-length // window) * window
  return 2 * window * padded / length


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
  head = model.width * model.vocabulary_size
  return Parts(0.0, 0.0, 0.0, 0.0, blocks, 0.0, head, 0.0)


def _byte_latent(model: byte_latent.ByteLatent, work: _Work) -> Parts:
  layer, keys = model.linear, work.keys
  local, latent, slots = model.encoder.width, model.latent.width, model.slots
  carried = slots * local
  projections = _macs(layer, local, carried) + _macs(layer, latent, carried)
  if carried != latent:
    projections += _macs(layer, carried, latent)
  # Two projections per byte and two per slot; every byte meets the slots of
  # one patch, once for the scores and once for the mixture.
  cross = 2 * _macs(layer, local, local) * (1 + work.rate * slots) + 2 * carried
  return Parts(
    encoder=_blocks(model.encoder, layer, work.length, keys),
    encoder_cross=cross,
    patch_projections=work.rate * projections,
    latent=work.rate * _blocks(model.latent, layer, work.patches, keys),
    decoder=_blocks(model.decoder, layer, work.length, keys),
    decoder_cross=model.decoder.layers * cross,
    head=local * model.vocabulary_size,
    entropy=0.0,
  )


def _blocks(stack: Any, layer: nn.Module, length: int, keys: Keys) -> float:
  """Multiply-adds per token of a stack of blocks, or of a ByteLM's."""
  width = stack.width
  shared = width // stack.heads * (stack.key_value_heads or stack.heads)
  projections = (
    2 * _macs(layer, width, width)
    + 2 * _macs(layer, width, shared)
    + 2 * _macs(layer, width, stack.hidden)
    + _macs(layer, stack.hidden, width)
  )
  seen = {mask: keys(mask, length) for mask in set(stack.masks)}
  attended = sum(
    seen[stack.masks[i % len(stack.masks)]] for i in range(stack.layers)
  )
  return stack.layers * projections + 2 * width * attended


def _macs(layer: nn.Module, d_in: int, d_out: int) -> int:
  """Multiply-adds per token of one projection."""
  if isinstance(layer, linear.Dense):
    return d_in * d_out
  if isinstance(layer, structured.Structured):
    return layer.chain(d_in, d_out).macs
  raise ValueError(
    f'linear={type(layer).__name__} has no FLOP count; use linear.Dense or a'
    ' class of models.structured.'
  )


def _unwrapped(model: nn.Module) -> nn.Module:
  """The model that computes logits, without what computes its patches."""
  return model.model if isinstance(model, patched.Patched) else model
