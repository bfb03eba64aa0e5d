"""FLOPs per byte of the models here: their matmuls, two per multiply-add.

The count of the Byte Latent Transformer's FLOP tables (arXiv 2412.09871,
appendix on FLOPs) with what that leaves out: real masks, hidden widths,
grouped keys, structured layers and the projections between bytes and patches.
Embedding look-ups, norms and rotations are not matmuls and count nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import blocks
from models import byte_latent
from models import event_lm
from models import fused_window
from models import image_mlp
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
  """What a row asks for: bytes, latent tokens, these per byte, and keys.

  batch: bytes of all rows of the compiled pass; None counts no padding of it.
  """

  length: int
  patches: int
  rate: float
  keys: Keys
  batch: int | None = None

  def tokens(self, per_byte: float = 1.0) -> int | None:
    """Tokens of a batch of which there are so many per byte."""
    return self.batch and max(round(self.batch * per_byte), 1)


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


def computed(model: nn.Module, *, length: int, rows: int = 1) -> Parts:
  """FLOPs that the compiled forward pass spends: masked and unused ones too.

  Attention by plain matmuls; fused kernels skip a part of what is masked.
  The tiles of mixtures are filled with zeros, the less the more `rows` of a
  batch there are on a device.
  """
  inner = _unwrapped(model)
  patches, rate = length, 1.0
  if isinstance(inner, byte_latent.ByteLatent):
    patches = inner.budget(inner.rows * length)
    rate = patches / (inner.rows * length)
  return _count(
    model, _Work(length, patches, rate, computed_keys, rows * length)
  )


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
  elif isinstance(inner, event_lm.EventLM):
    again = inner.trunk.remat * parts.latent
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
  elif isinstance(model, event_lm.EventLM):
    parts = _event_lm(model, work)
  elif isinstance(model, image_mlp.ImageMLP):
    parts = _image_mlp(model, work)
  else:
    raise ValueError(
      f'model {type(model).__name__} has no FLOP count; models.flops knows'
      ' ByteLM, ByteLatent, EventLM and ImageMLP: add its matmuls there.'
    )
  return Parts(*(2 * part for part in parts[:-1]), entropy=of_entropy)


def _byte_lm(model: lm.ByteLM, work: _Work) -> Parts:
  blocks = _blocks(model, model.linear, work)
  head = _head(model, model.width, work)
  return Parts(0.0, 0.0, 0.0, 0.0, blocks, 0.0, head, 0.0)


def _byte_latent(model: byte_latent.ByteLatent, work: _Work) -> Parts:
  layer, rate = linear.of_role(model.linear, 'patches'), work.rate
  local, latent, slots = model.encoder.width, model.latent.width, model.slots
  carried, tokens = slots * local, work.tokens(rate)
  projections = macs(layer, local, carried, tokens)
  projections += macs(layer, latent, carried, tokens)
  if carried != latent:
    projections += macs(layer, carried, latent, tokens)
  # Two projections per byte and two per slot; every byte meets the slots of
  # one patch, once for the scores and once for the mixture.
  mixing, cross = linear.of_role(model.linear, 'attention'), 2.0 * carried
  for share in (1.0, rate * slots):
    cross += 2 * share * macs(mixing, local, local, work.tokens(share))
  inner = work._replace(length=work.patches, batch=tokens)
  return Parts(
    encoder=_blocks(model.encoder, model.linear, work),
    encoder_cross=cross,
    patch_projections=rate * projections,
    latent=rate * _blocks(model.latent, model.linear, inner),
    decoder=_blocks(model.decoder, model.linear, work),
    decoder_cross=model.decoder.layers * cross,
    head=_head(model, local, work),
    entropy=0.0,
  )


def _event_lm(model: event_lm.EventLM, work: _Work) -> Parts:
  """Per cell: the transformer, and all products besides, as they are traced.

  Those with one-hot vectors, which stand for look-ups, are among them.
  """
  count = len(model.columns)
  groups = count // (model.stride or count)
  events = -(-work.length // count)
  rate = events * groups / work.length
  inner = work._replace(length=events * groups, batch=work.tokens(rate))
  history = rate * _blocks(model.trunk, model.linear, inner)
  head_width = model.trunk.width // model.trunk.heads

  def listed_keys(mask: Any, length: int) -> float:
    """`computed_keys`, but of kernels none: they are no equations."""
    if fused_window.serves(mask, (1, length, 1, head_width)):
      return 0.0
    return computed_keys(mask, length)

  inner = inner._replace(keys=listed_keys)
  computed = rate * _blocks(model.trunk, model.linear, inner)
  rest = _traced(model, work.length) / work.length - computed
  return Parts(0.0, 0.0, 0.0, history, rest, 0.0, 0.0, 0.0)


def _image_mlp(model: image_mlp.ImageMLP, work: _Work) -> Parts:
  """Of a byte of an image, all of whose bytes share one pass."""
  tokens, width = work.tokens(1 / model.pixels), model.width
  layer = linear.of_role(model.linear, 'feed_forward')
  blocks = macs(layer, model.pixels, width, tokens) + model.layers * (
    macs(layer, width, 4 * width, tokens)
    + macs(layer, 4 * width, width, tokens)
  )
  head = macs(
    linear.of_role(model.linear, 'head'), width, model.classes, tokens
  )
  parts = (0.0, 0.0, 0.0, 0.0, blocks, 0.0, head, 0.0)
  return Parts(*(part / model.pixels for part in parts))


def _traced(model: nn.Module, length: int) -> int:
  """Multiply-adds of the matmuls of a row of cells, numbers and targets."""
  ids_BT = jax.ShapeDtypeStruct((1, length), jnp.int32)
  value_BT = jax.ShapeDtypeStruct((1, length), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), ids_BT)
  program = jax.make_jaxpr(
    lambda params, ids_BT, value_BT: model.apply(
      params, ids_BT, value_BT=value_BT, target_BT=ids_BT
    )
  )(params, ids_BT, value_BT)
  return _products(program.jaxpr)


def _products(program: Any) -> int:
  """Multiply-adds of every dot_general of a jaxpr, as often as it runs.

  Those of kernels are left out, for they run as often as these decide.
  """
  total = 0
  for equation in program.eqns:
    if equation.primitive.name == 'pallas_call':
      continue
    parts = [
      getattr(item, 'jaxpr', item)
      for value in equation.params.values()
      for item in (value if isinstance(value, tuple | list) else (value,))
      if hasattr(getattr(item, 'jaxpr', item), 'eqns')
    ]
    times = equation.params.get('length', 1)
    total += times * sum(map(_products, parts))
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      left = equation.invars[0].aval.shape
      out = equation.outvars[0].aval.size
      total += out * int(np.prod([left[i] for i in contracted]))
  return total


def _head(
  model: lm.ByteLM | byte_latent.ByteLatent, width: int, work: _Work
) -> float:
  if getattr(model, 'tie_head', False):
    return width * model.vocabulary_size
  layer = linear.of_role(model.linear, 'head')
  return macs(layer, width, model.vocabulary_size, work.tokens())


def _blocks(
  stack: Any, layer: nn.Module | linear.Roles, work: _Work
) -> float:
  """Multiply-adds per token of a stack of blocks, or of a ByteLM's."""
  width, tokens = stack.width, work.tokens()
  mixing = linear.of_role(layer, 'attention')
  feeding = linear.of_role(layer, 'feed_forward')
  shared = width // stack.heads * (stack.key_value_heads or stack.heads)
  projections = (
    2 * macs(mixing, width, width, tokens)
    + 2 * macs(mixing, width, shared, tokens)
    + _feeding(stack.feed_forward, feeding, (width, stack.hidden), tokens)
  )
  seen = {mask: work.keys(mask, work.length) for mask in set(stack.masks)}
  attended = sum(
    seen[stack.masks[i % len(stack.masks)]] for i in range(stack.layers)
  )
  return stack.layers * projections + 2 * width * attended


def _feeding(
  block: nn.Module,
  layer: nn.Module,
  widths: tuple[int, int],
  tokens: int | None,
) -> float:
  """Multiply-adds per token of one feed-forward layer."""
  width, hidden = widths
  if isinstance(block, mixture.MixtureFeedForward):
    expert = mixture.expert_of(layer)
    found = 2 * macs(expert, width, hidden) + macs(expert, hidden, width)
    rows = mixture.computed_share(tokens, block.experts, block.active)
    return rows * found + block.experts * width
  if isinstance(block, blocks.FeedForward):
    found = 2 * macs(layer, width, hidden, tokens)
    return found + macs(layer, hidden, width, tokens)
  raise ValueError(
    f'feed_forward={type(block).__name__} has no FLOP count; use'
    ' blocks.FeedForward or mixture.MixtureFeedForward.'
  )


def macs(
  layer: nn.Module, d_in: int, d_out: int, tokens: int | None = None
) -> float:
  """Multiply-adds per token of one projection; of a mixture, what is used.

  tokens: given at once, for what a mixture computes with its padding.
  """
  if isinstance(layer, linear.Dense):
    return d_in * d_out
  if isinstance(layer, mixture.Mixture):
    return layer.macs(d_in, d_out, tokens)
  if isinstance(layer, structured.Structured):
    return layer.chain(d_in, d_out).macs
  raise ValueError(
    f'linear={type(layer).__name__} has no FLOP count; use linear.Dense or a'
    ' class of models.structured.'
  )


def _unwrapped(model: nn.Module) -> nn.Module:
  """The model that computes logits, without what computes its patches."""
  return model.model if isinstance(model, patched.Patched) else model
