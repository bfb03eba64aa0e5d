"""The shapes of bench.accelerator: such that fill a device, and tiny ones."""

from typing import NamedTuple

import flax.linen as nn

from configs import blt_paper
from models import lm
from models import masks
from models import ngrams
from models import patched
from models import patching
from models import stacks


class Sizes(NamedTuple):
  """What is measured.

  models: trained on rows of `length` bytes, as many as fit; `rows` where a
  device does not say what it has. batches, new_bytes: of decoding.
  vocabularies: of samplers. heads: of attention, and their width, with `mask`
  against none at `lengths`. matmuls: widths of square ones.
  """

  models: dict[str, nn.Module]
  length: int
  rows: int
  batches: tuple[int, ...]
  new_bytes: int
  vocabularies: tuple[int, ...]
  heads: tuple[int, int]
  mask: masks.Lambda
  lengths: tuple[int, ...]
  matmuls: tuple[int, ...]


def _byte_lm(width: int, layers: int, heads: int) -> lm.ByteLM:
  return lm.ByteLM(
    width=width,
    layers=layers,
    heads=heads,
    key_value_heads=heads,
    hidden=blt_paper.hidden(width),
    masks=(blt_paper.WINDOW,),
    scan_layers=True,
    dtype='bfloat16',
  )


def _byte_latent(size: blt_paper.Size, entropy: nn.Module) -> patched.Patched:
  """A preset with smaller tables and nothing computed twice."""
  model = blt_paper.model(size)

  def whole(stack: stacks.Stack) -> stacks.Stack:
    return stack.copy(remat=False)

  return patched.Patched(
    entropy=patched.LMEntropy(lm=entropy),
    model=model.clone(
      encoder=whole(model.encoder),
      latent=whole(model.latent),
      decoder=whole(model.decoder),
      ngrams=ngrams.NgramEmbedding(sizes=(3, 4, 5, 6, 7, 8), rows=1 << 16),
    ),
  )


# The latent transformer does most of the work, as in the presets.
FULL = Sizes(
  models={
    'byte LM': _byte_lm(2048, 16, 16),
    'BLT': _byte_latent(
      blt_paper.Size(
        local_width=1024,
        local_heads=16,
        decoder_layers=4,
        latent_width=3072,
        latent_heads=24,
        latent_layers=20,
        slots=3,
      ),
      blt_paper.entropy_model(),
    ),
  },
  length=8192,
  rows=1,
  batches=(1, 32, 256),
  new_bytes=256,
  vocabularies=(260, 128_256),
  heads=(16, 128),
  mask=masks.Lambda(n_global=16, n_local=1024),
  lengths=(4096, 16_384, 65_536),
  matmuls=(4096, 8192),
)

_LOCAL = stacks.Stack(16, 1, 2, 32, masks=(masks.Causal(window=8),))
_TINY = lm.ByteLM(
  width=16,
  layers=1,
  heads=2,
  key_value_heads=2,
  hidden=32,
  dtype='bfloat16',
)
QUICK = FULL._replace(
  models={
    'byte LM': _TINY,
    'BLT': patched.Patched(
      entropy=patched.LMEntropy(lm=_TINY),
      model=FULL.models['BLT'].model.clone(
        encoder=_LOCAL,
        latent=_LOCAL.copy(width=24, masks=(masks.Causal(),)),
        decoder=_LOCAL,
        slots=2,
        ngrams=ngrams.NgramEmbedding(sizes=(3,), rows=16),
        patching=patching.Patching(patching.Entropy(), max_length=16),
      ),
    ),
  },
  length=64,
  rows=2,
  batches=(2,),
  new_bytes=2,
  vocabularies=(260,),
  heads=(2, 8),
  mask=masks.Lambda(n_global=2, n_local=16),
  lengths=(64,),
  matmuls=(64,),
)
