"""An hour on two cores: below xz -9 on text it has never seen.

python train.py --config=configs/hour.py --workdir=runs/hour
"""

import dataclasses

from configs import base
from configs import demo
from models import lm
from models import masks
from models import ngrams
from models import recall
from training import optimizer


def get_config() -> base.Config:
  return dataclasses.replace(
    demo.get_config(),
    model=lm.ByteLM(
      width=192,
      layers=6,
      heads=3,
      key_value_heads=3,
      hidden=512,
      masks=(masks.Causal(window=128),),
      ngrams=ngrams.NgramEmbedding(sizes=(2, 3, 4, 5, 6), rows=32768),
      recall=recall.RecallEmbedding(
        sizes=(2, 3, 4, 5, 6, 8, 12, 20, 32), reach=4096
      ),
    ),
    optimizer=optimizer.AdamW(
      learning_rate=4e-3, warmup_steps=100, final_ratio=0.02
    ),
    row_length=2048,
    batch_size=2,
    steps=2400,
    eval_every=400,
    checkpoint_every=200,
  )
