"""The tokens to which demo.py's bytes are compared: BPE, the same trunk.

python train.py --config=configs/bpe.py --workdir=runs/bpe

As many training FLOPs as the demo: a token of 2048 costs 1.46 times a byte
(the head is as wide as the vocabulary) and stands for 2.84 bytes of held-out
text. The input lookups are those of the demo, with sizes in tokens.
"""

import dataclasses

from configs import base
from configs import demo
from data import text
from data import tokens
from evals import bits_per_byte
from models import ngrams
from models import recall

# FLOPs per byte relative to the demo's: 0.52, and 0.63 for 4096, whose tokens
# are 3.17 bytes long but whose head costs more than the trunk.
_VOCABULARY = 2048


def get_config() -> base.Config:
  config = demo.get_config()
  return dataclasses.replace(
    config,
    model=config.model.clone(
      vocabulary_size=_VOCABULARY,
      ngrams=ngrams.NgramEmbedding(sizes=(2, 3), rows=16384),
      recall=recall.RecallEmbedding(
        sizes=(1, 2, 3, 4, 5, 6, 8, 12),
        reach=1024,
        vocabulary_size=_VOCABULARY,
      ),
    ),
    data=text.Text(
      source=config.data.source, codec=tokens.Bpe(vocabulary_size=_VOCABULARY)
    ),
    evals=(bits_per_byte.BitsPerByte(window=1024, stride=768, batch_size=4),),
    row_length=512,
    batch_size=2,
    steps=3300,
    eval_every=1000,
    checkpoint_every=500,
  )
