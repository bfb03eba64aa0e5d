"""Events of a file of yours, CSV or Parquet, by a schema of its columns.

python -m data.events inspect FILE   # proposes a schema to edit
python train.py --config=configs/events_csv.py --set data.path=FILE \\
  --set data.schema=schema.json --workdir=runs/events_csv

Columns are read in shuffled orders, so that any of them can be filled in given
the others, and labels of earlier events are shown in some rows. Where all
events of an entity have its label, as of customers who left,
configs/events_entity.py shows none.
"""

import dataclasses

from configs import base
from configs import events_card
from data import event_files


def get_config() -> base.Config:
  config = events_card.get_config()
  return dataclasses.replace(
    config,
    data=event_files.Events(),
    rows=dataclasses.replace(config.rows, shuffle=0.5, context=32),
    row_length=1024,
  )
