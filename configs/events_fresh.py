"""configs/events_card.py with users that never come twice.

python train.py --config=configs/events_fresh.py --workdir=runs/events_fresh
"""

import dataclasses

from configs import base
from configs import events_card
from data import event_fresh
from training import column_nats


def get_config() -> base.Config:
  config = events_card.get_config()
  judge = config.model.judge
  stack = judge.stack.clone(width=96, layers=3, hidden=192)
  return dataclasses.replace(
    config,
    # Nobody is seen twice, so that the whole model may learn from frauds.
    model=config.model.clone(
      judge=judge.clone(stack=stack, hidden=192, alone=False)
    ),
    rows=event_fresh.FreshRows(**dataclasses.asdict(config.rows)),
    objective=column_nats.ColumnNats(label_weight=10.0),
    # 256,000 users.
    steps=8000,
    eval_every=4000,
    checkpoint_every=1000,
    keep=2,
  )
