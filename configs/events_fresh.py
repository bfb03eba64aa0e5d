"""configs/events_card.py with users that never come twice.

python train.py --config=configs/events_fresh.py --workdir=runs/events_fresh
"""

import dataclasses

from configs import base
from configs import events_card
from data import event_fresh


def get_config() -> base.Config:
  config = events_card.get_config()
  return dataclasses.replace(
    config,
    rows=event_fresh.FreshRows(**dataclasses.asdict(config.rows)),
    steps=15_000,
  )
