"""The five-minute model of `make demo`, on the standard library's text.

python train.py --config=configs/demo.py --workdir=runs/demo
"""

from configs import base
from data import sources
from data import text
from evals import bits_per_byte
from models import lm
from models import masks
from models import ngrams
from models import recall
from samplers import chain
from samplers import truncation
from training import objectives
from training import optimizer
from training import sharding


def get_config() -> base.Config:
  return base.Config(
    model=lm.ByteLM(
      width=128,
      layers=2,
      heads=2,
      key_value_heads=2,
      hidden=384,
      masks=(masks.Causal(window=64),),
      ngrams=ngrams.NgramEmbedding(sizes=(3, 4, 5, 6), rows=16384),
      recall=recall.RecallEmbedding(
        sizes=(2, 3, 4, 5, 6, 8, 12, 20), reach=2048
      ),
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
      bits_per_byte.BitsPerByte(window=2048, stride=1536, batch_size=4),
    ),
    mesh=sharding.MeshShape(),
    shardings=sharding.TRANSFORMER,
    row_length=1024,
    batch_size=2,
    steps=2400,
    eval_every=500,
    eval_bytes=100_000,
    checkpoint_every=250,
  )
