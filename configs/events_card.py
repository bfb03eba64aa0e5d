"""Frauds of synthetic card users: 6,000 of them, again and again.

python train.py --config=configs/events_card.py --workdir=runs/events_card

Every column is foreseen, and labels are hidden as in service. `eval.py` reports
what is best possible beside every score: the laws of the users are known. A row
is a user of 120 events, so that 188 steps read all of them once.
"""

from configs import base
from data import event_batches
from data import event_source
from evals import event_imputation
from evals import event_orders
from evals import event_scores
from models import event_judge
from models import event_lm
from models import masks
from models import positions
from models import stacks
from samplers import chain
from training import column_nats
from training import optimizer
from training import sharding


def get_config() -> base.Config:
  masked = {
    'masks': (masks.Causal(window=128),),
    'position': positions.Alibi(),
  }
  return base.Config(
    model=event_lm.EventLM(
      trunk=stacks.Stack(width=128, layers=3, heads=4, hidden=256, **masked),
      copies=True,
      # Small and alone, since there are few frauds to learn from: a trunk that
      # learned from them, too, would know the training users' by heart.
      judge=event_judge.Judge(
        stack=stacks.Stack(width=32, layers=2, heads=4, hidden=64, **masked),
        hidden=64,
        alone=True,
      ),
    ),
    data=event_source.CardStream(users=10_000),
    rows=event_batches.EventRows(shuffle=0.35, keep_last=0.8, mask_all=0.3),
    optimizer=optimizer.AdamW(
      learning_rate=3e-3, warmup_steps=200, final_ratio=0.02, b2=0.99
    ),
    objective=column_nats.ColumnNats(label_weight=3.0),
    sampler=chain.Chain(),
    evals=(
      event_scores.EventScores(),
      event_scores.EventScores(labels='revealed'),
      event_imputation.EventImputation(),
      event_orders.EventOrders(),
    ),
    mesh=sharding.MeshShape(),
    shardings=sharding.EVENTS,
    # 120 events of 8 columns.
    row_length=960,
    batch_size=32,
    # 12.8 times all users.
    steps=2400,
    eval_every=800,
    eval_bytes=400_000,
    checkpoint_every=400,
    keep=4,
  )
