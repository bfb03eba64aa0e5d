"""Frauds of synthetic card users: 6,000 of them, again and again.

python train.py --config=configs/events_card.py --workdir=runs/events_card

Every column is foreseen, and labels are hidden as in service. `eval.py` reports
what is best possible beside every score: the laws of the users are known.
"""

from configs import base
from data import event_batches
from data import event_source
from evals import event_imputation
from evals import event_scores
from models import event_lm
from models import masks
from models import positions
from models import stacks
from samplers import chain
from training import column_nats
from training import optimizer
from training import sharding


def get_config() -> base.Config:
  return base.Config(
    model=event_lm.EventLM(
      trunk=stacks.Stack(
        width=128,
        layers=3,
        heads=4,
        hidden=256,
        masks=(masks.Causal(window=128),),
        position=positions.Alibi(),
      )
    ),
    data=event_source.CardStream(users=10_000),
    rows=event_batches.EventRows(shuffle=True, keep_last=0.9, mask_all=0.7),
    optimizer=optimizer.AdamW(learning_rate=3e-3, warmup_steps=100),
    objective=column_nats.ColumnNats(label_weight=10.0),
    sampler=chain.Chain(),
    evals=(
      event_scores.EventScores(),
      event_scores.EventScores(labels='revealed'),
      event_imputation.EventImputation(),
    ),
    mesh=sharding.MeshShape(),
    shardings=sharding.TRANSFORMER,
    # 120 events of 8 columns.
    row_length=960,
    batch_size=16,
    steps=5000,
    eval_every=1000,
    eval_bytes=500_000,
    checkpoint_every=500,
  )
