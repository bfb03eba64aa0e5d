"""The byte latent transformer of the benchmarks: 18.9M parameters.

Local layers of width 256, latent ones of 512, an entropy model of 128: 18.3M
and 0.6M parameters. Per byte the local parts do more work than the latent
one, as in the comparison with transformers that bench/ makes.

python train.py --config=configs/blt_bench.py --workdir=runs/blt_bench
"""

from configs import base
from configs import blt_paper
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

_WINDOW = masks.Causal(window=512)


def get_config() -> base.Config:
  local = stacks.Stack(
    width=256,
    layers=1,
    heads=4,
    hidden=blt_paper.hidden(256),
    masks=(_WINDOW,),
  )
  entropy_model = lm.ByteLM(
    width=128,
    layers=2,
    heads=2,
    key_value_heads=2,
    hidden=blt_paper.hidden(128),
    masks=(_WINDOW,),
  )
  model = byte_latent.ByteLatent(
    encoder=local,
    latent=stacks.Stack(
      width=512, layers=3, heads=8, hidden=blt_paper.hidden(512)
    ),
    decoder=local.copy(layers=3),
    patching=patching.Patching(patching.Entropy(), max_length=32),
    slots=2,
    ngrams=ngrams.NgramEmbedding(sizes=(3, 4, 5, 6, 7, 8), rows=2000),
  )
  return base.Config(
    model=patched.Patched(
      entropy=patched.LMEntropy(lm=entropy_model), model=model
    ),
    data=text.Text(source=sources.StandardLibrary()),
    optimizer=optimizer.AdamW(
      learning_rate=2e-3, warmup_steps=100, frozen=(r'^entropy/',)
    ),
    objective=objectives.NextToken(),
    sampler=chain.Chain(
      rules=(truncation.Temperature(0.8), truncation.TopP(0.95))
    ),
    evals=(bits_per_byte.BitsPerByte(window=512, stride=256, batch_size=4),),
    mesh=sharding.MeshShape(),
    shardings=blt_paper.SHARDINGS,
    row_length=512,
    batch_size=4,
    steps=1000,
  )
