"""configs/events_csv.py for labels of an entity, which all its events have.

python train.py --config=configs/events_entity.py --set data.path=FILE \\
  --set data.schema=schema.json --workdir=runs/events_entity

No label is ever shown: that of an earlier event would be the answer.
"""

import dataclasses

from configs import base
from configs import events_csv
from evals import event_imputation
from evals import event_orders
from evals import event_scores


def get_config() -> base.Config:
  config = events_csv.get_config()
  return dataclasses.replace(
    config,
    rows=dataclasses.replace(config.rows, mask_all=1.0),
    evals=(
      event_scores.EventScores(),
      event_imputation.EventImputation(),
      event_orders.EventOrders(),
    ),
  )
