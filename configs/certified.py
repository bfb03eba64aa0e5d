"""A network whose file is small: the best certificate of an hour on two cores.

python -m bounds --config=configs/certified.py --minutes=25 --out=runs/certified
"""

import dataclasses

from configs import base
from configs import demo
from models import lm
from models import masks
from models import recall
from training import optimizer


def get_config() -> base.Config:
  return dataclasses.replace(
    demo.get_config(),
    model=lm.ByteLM(
      width=96,
      layers=3,
      heads=2,
      key_value_heads=2,
      hidden=192,
      masks=(masks.Causal(window=64),),
      recall=recall.RecallEmbedding(sizes=(3, 5, 8, 16), reach=61440),
    ),
    optimizer=optimizer.AdamW(
      learning_rate=5e-3, warmup_steps=100, final_ratio=0.02
    ),
    row_length=1024,
    batch_size=2,
    steps=5000,
  )
