"""Builder of the Byte Latent Transformers of the paper (arXiv 2412.09871).

Sizes of its table of models, AdamW as in its section on training: 16.8 million
bytes per step, in rows of 8192, and 60,000 steps, that is 10^12 bytes. The
corpus is yours: `--set data.source.pattern=...`. The entropy model is
trained before, by configs/blt_entropy.py, and stays as it is.

Memory: weights, two gradients and two moments are 20 bytes per parameter, most
of it in the n-gram tables; 8 devices share it here. Activations of a batch fit
64 to 512 devices of 80 GB, those of the 8B model from 128 on.
`python train.py --config=configs/blt_1b.py --dry_run` shows the sums.
"""

from typing import Any, NamedTuple

import flax.linen as nn

from configs import base
from configs import initial
from data import sources
from data import text
from evals import bits_per_byte
from models import byte_latent
from models import lm
from models import masks
from models import ngrams
from models import patched
from models import patching
from models import stacks
from samplers import chain
from samplers import truncation
from training import objectives
from training import optimizer
from training import sharding

WINDOW = masks.Causal(window=512)
ROW_LENGTH = 8192
# Of the entropy model's threshold on the paper's data.
MEAN_PATCH_BYTES = 4.5
TABLE_ROWS = 500_002

SHARDINGS = sharding.BYTE_LATENT


class Size(NamedTuple):
  """What differs between the models of the table; heads are 64 to 128 wide.

  slots: vectors of local width that a patch is carried in.
  """

  local_width: int
  local_heads: int
  decoder_layers: int
  latent_width: int
  latent_heads: int
  latent_layers: int
  slots: int


def hidden(width: int) -> int:
  """SwiGLU width of a block: 8/3 of its width, rounded up to 256."""
  return 256 * -(-(8 * width // 3) // 256)


def entropy_model() -> lm.ByteLM:
  """The byte model of 99.5M parameters that sets the patches."""
  return lm.ByteLM(
    width=768,
    layers=14,
    heads=12,
    key_value_heads=12,
    hidden=hidden(768),
    masks=(WINDOW,),
    scan_layers=True,
    remat=True,
    dtype='bfloat16',
  )


def model(size: Size) -> byte_latent.ByteLatent:
  """Encoder, latent transformer and decoder, given where patches end."""
  local = stacks.Stack(
    width=size.local_width,
    layers=1,
    heads=size.local_heads,
    hidden=hidden(size.local_width),
    masks=(WINDOW,),
    remat=True,
  )
  return byte_latent.ByteLatent(
    encoder=local,
    latent=stacks.Stack(
      width=size.latent_width,
      layers=size.latent_layers,
      heads=size.latent_heads,
      hidden=hidden(size.latent_width),
      scan_layers=True,
      remat=True,
    ),
    decoder=local.copy(layers=size.decoder_layers),
    patching=patching.Patching(patching.Entropy(), max_length=64),
    slots=size.slots,
    reserve=1.15 / MEAN_PATCH_BYTES,
    ngrams=ngrams.NgramEmbedding(
      sizes=(3, 4, 5, 6, 7, 8), rows=TABLE_ROWS, multiple=512
    ),
    dtype='bfloat16',
  )


def config(size: Size) -> base.Config:
  """An experiment with the paper's training settings."""
  return experiment(
    patched.Patched(
      entropy=patched.LMEntropy(lm=entropy_model()), model=model(size)
    ),
    optimizer.AdamW(
      learning_rate=4e-4,
      warmup_steps=2000,
      final_ratio=0.0,
      frozen=(r'^entropy/',),
    ),
    initial=(initial.FromRun('entropy/lm', directory='runs/blt_entropy'),),
  )


def experiment(
  model: nn.Module, adam: optimizer.AdamW, **fields: Any
) -> base.Config:
  """What the models and their entropy model have in common."""
  return base.Config(
    model=model,
    data=text.Text(source=sources.JsonLines('corpus/*.jsonl')),
    optimizer=adam,
    objective=objectives.NextToken(),
    sampler=chain.Chain(
      rules=(truncation.Temperature(0.8), truncation.TopP(0.95))
    ),
    evals=(
      bits_per_byte.BitsPerByte(
        window=ROW_LENGTH, stride=ROW_LENGTH // 2, batch_size=8
      ),
    ),
    mesh=sharding.MeshShape(fsdp=8),
    shardings=SHARDINGS,
    row_length=ROW_LENGTH,
    batch_size=2048,
    steps=60_000,
    accumulate=4,
    eval_every=1000,
    eval_bytes=10_000_000,
    checkpoint_every=1000,
    **fields,
  )
