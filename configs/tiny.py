"""A model of seconds, for trying things: 50 steps on the standard library.

python train.py --config=configs/tiny.py --workdir=runs/tiny
"""

from configs import base
from data import sources
from data import text
from evals import bits_per_byte
from models import lm
from models import ngrams
from samplers import chain
from samplers import truncation
from training import objectives
from training import optimizer
from training import sharding


def get_config() -> base.Config:
  return base.Config(
    model=lm.ByteLM(
      width=64,
      layers=2,
      heads=2,
      key_value_heads=1,
      hidden=128,
      ngrams=ngrams.NgramEmbedding(sizes=(3, 4), rows=2048),
    ),
    data=text.Text(source=sources.StandardLibrary()),
    optimizer=optimizer.AdamW(learning_rate=1e-2, warmup_steps=10),
    objective=objectives.NextToken(),
    sampler=chain.Chain(
      rules=(truncation.Temperature(0.8), truncation.TopP(0.95))
    ),
    evals=(bits_per_byte.BitsPerByte(window=256, stride=128),),
    mesh=sharding.MeshShape(),
    shardings=sharding.TRANSFORMER,
    row_length=128,
    batch_size=8,
    steps=50,
    eval_every=50,
    eval_bytes=20_000,
    checkpoint_every=25,
  )
