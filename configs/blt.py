"""The Byte Latent Transformer on the standard library's text, for minutes.

python train.py --config=configs/blt.py --workdir=runs/blt

Better than the demo's bytes for the FLOPs that it trains with, at every budget
of `python -m bench.budgets`. It is not what `make demo` trains, since on a CPU
a FLOP of it takes longer: two stacks of narrow layers, and look-ups between
bytes and patches that are no matmuls.
"""

import dataclasses

from configs import base
from configs import demo
from configs import initial
from models import byte_latent
from models import masks
from models import ngram_entropy
from models import patched
from models import patching
from models import stacks

# Narrow byte layers and long patches: so small a model gains most from reading
# more bytes for its FLOPs, up to the largest budget that was compared.
_LOCAL = stacks.Stack(
  width=96,
  layers=1,
  heads=2,
  hidden=288,
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
        latent=stacks.Stack(width=192, layers=1, heads=3, hidden=512),
        decoder=_LOCAL,
        patching=patching.Patching(
          patching.Entropy(threshold=2.6), max_length=16
        ),
        reserve=0.25,
        rows=2,
        ngrams=config.model.ngrams,
        recall=config.model.recall,
      ),
    ),
    initial=(initial.FitNgramEntropy(),),
    optimizer=dataclasses.replace(config.optimizer, frozen=('^entropy/',)),
  )
