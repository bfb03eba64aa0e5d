"""The Byte Latent Transformer in five minutes, on the standard library's text.

python train.py --config=configs/blt.py --workdir=runs/blt
"""

import dataclasses

from configs import base
from configs import demo
from configs import initial
from models import byte_latent
from models import masks
from models import ngram_entropy
from models import ngrams
from models import patched
from models import patching
from models import recall
from models import stacks

_LOCAL = stacks.Stack(
  width=128,
  layers=1,
  heads=2,
  hidden=384,
  masks=(masks.Causal(window=64),),
)


def get_config() -> base.Config:
  config = demo.get_config()
  return dataclasses.replace(
    config,
    model=patched.Patched(
      entropy=ngram_entropy.NgramEntropy(sizes=(1, 2, 3)),
      model=byte_latent.ByteLatent(
        encoder=_LOCAL,
        latent=stacks.Stack(width=256, layers=3, heads=4, hidden=704),
        decoder=_LOCAL.copy(layers=2),
        patching=patching.Patching(
          patching.Entropy(threshold=2.2), max_length=16
        ),
        reserve=0.35,
        rows=2,
        ngrams=ngrams.NgramEmbedding(sizes=(3, 4, 5, 6), rows=16384),
        recall=recall.RecallEmbedding(
          sizes=(2, 3, 4, 5, 6, 8, 12, 20), reach=2048
        ),
      ),
    ),
    initial=(initial.FitNgramEntropy(),),
    optimizer=dataclasses.replace(config.optimizer, frozen=('^entropy/',)),
  )
