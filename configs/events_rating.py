"""Which items synthetic raters like, with the ratings of the past in sight.

python train.py --config=configs/events_rating.py --workdir=runs/events_rating
"""

import dataclasses

from configs import base
from configs import events_card
from data import event_batches
from data import rating_stream
from evals import event_scores


def get_config() -> base.Config:
  return dataclasses.replace(
    events_card.get_config(),
    data=rating_stream.RatingStream(),
    rows=event_batches.EventRows(mask_all=0.0),
    evals=(
      event_scores.EventScores(
        labels='revealed', positive=('4', '5'), window=64, context=48
      ),
    ),
    # 120 events of 3 columns, of three users.
    row_length=360,
    steps=2000,
  )
