"""A model of 512-byte rows, to be read and continued without a limit.

python train.py --config=configs/unlimited.py --workdir=runs/unlimited
python -m bench.lengths --checkpoint=runs/unlimited --read=off --read=10,512

Rows are as long as the window, so that in training Lambda-shaped attention is
plain causal attention, and its parameters are those of a plain model.
"""

from configs import base
from data import sources
from data import text
from evals import bits_per_byte
from evals import by_position
from models import lm
from models import masks
from models import ngrams
from models import recall
from samplers import chain
from samplers import truncation
from training import objectives
from training import optimizer
from training import sharding

ROW = 512


def get_config() -> base.Config:
  return base.Config(
    model=lm.ByteLM(
      width=128,
      layers=3,
      heads=4,
      key_value_heads=4,
      hidden=384,
      masks=(masks.Lambda(n_global=10, n_local=ROW),),
      ngrams=ngrams.NgramEmbedding(sizes=(3, 4, 5, 6), rows=16384),
      recall=recall.RecallEmbedding(sizes=()),
    ),
    data=text.Text(source=sources.StandardLibrary()),
    optimizer=optimizer.AdamW(
      learning_rate=5e-3, warmup_steps=50, final_ratio=0.02
    ),
    objective=objectives.NextToken(),
    sampler=chain.Chain(
      rules=(truncation.Temperature(0.8), truncation.TopP(0.95))
    ),
    evals=(
      bits_per_byte.BitsPerByte(window=ROW, stride=384, batch_size=8),
      by_position.BitsByPosition(first=ROW, longest=65_536),
    ),
    mesh=sharding.MeshShape(),
    shardings=sharding.TRANSFORMER,
    row_length=ROW,
    batch_size=8,
    steps=1000,
    eval_every=1000,
    eval_bytes=50_000,
    checkpoint_every=250,
  )
