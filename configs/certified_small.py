"""A certificate in three minutes, from a network of 20 kilobytes.

python -m bounds --config=configs/certified_small.py --minutes=1 \\
  --max_bytes=3000000 --out=runs/certificate
"""

import dataclasses

from configs import base
from configs import certified
from models import lm
from models import masks
from models import recall


def get_config() -> base.Config:
  return dataclasses.replace(
    certified.get_config(),
    model=lm.ByteLM(
      width=64,
      layers=2,
      heads=2,
      key_value_heads=1,
      hidden=128,
      masks=(masks.Causal(window=32),),
      recall=recall.RecallEmbedding(sizes=(3, 5, 8, 16), reach=61440),
    ),
    steps=1000,
  )
