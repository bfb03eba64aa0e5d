"""configs/tiny.py of structured layers, with a rate that holds at any width.

python train.py --config=configs/btt.py --workdir=runs/btt
"""

import dataclasses

from configs import base
from configs import initial
from configs import tiny
from models import linear
from models import structured
from training import optimizer
from training import sharding


def get_config() -> base.Config:
  config = tiny.get_config()
  dense = config.model.clone(
    width=16, heads=1, key_value_heads=1, hidden=64
  )
  return dataclasses.replace(
    config,
    model=dense.clone(
      linear=linear.Roles(
        structured.BlockTensorTrain(cap=True), head=linear.Dense(gain=0.0)
      ),
    ),
    # Found at width 16, where dense layers of blocks want an eighth of the rate
    # of embeddings and head, too.
    optimizer=optimizer.AdamW(
      learning_rate=0.1,
      warmup_steps=10,
      base=dense,
      multipliers=(('core_', 0.125),),
    ),
    initial=(initial.LikeBase(),),
    shardings=sharding.STRUCTURED,
  )
