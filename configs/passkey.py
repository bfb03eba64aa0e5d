"""A model of 512 bytes that is to find a passkey in texts many times as long.

python train.py --config=configs/passkey.py --workdir=runs/passkey
python -m bench.lengths --checkpoint=runs/passkey --read=off --read=10,512,4 \
  --set=evals.1.lengths=512,2048,8192

Every row is one text of evals.passkey, from its begin to its end mark: filler,
a key in one of its lines, and the key again at the end.
"""

import dataclasses

from configs import base
from configs import demo
from data import made
from data import text
from evals import bits_per_byte
from evals import passkey
from models import lm
from models import masks
from models import ngrams
from models import recall
from training import optimizer

ROW = 512
_SAID = 'The pass key is {key}. Remember it. '
_LAST = '{key} is the pass key.\n'


def get_config() -> base.Config:
  return dataclasses.replace(
    demo.get_config(),
    model=lm.ByteLM(
      width=96,
      layers=2,
      heads=4,
      key_value_heads=4,
      hidden=192,
      # The first layer hands every byte what stands before it, and the second
      # looks for the place where the same stood before.
      masks=(masks.Causal(2), masks.Causal()),
      query_key_norm=True,
      ngrams=ngrams.NgramEmbedding(sizes=(2, 3, 4), rows=8192),
      recall=recall.RecallEmbedding(sizes=()),
    ),
    data=text.Text(
      # The marks make up a row. A long key, said often, is more to copy than
      # that of the questions, which are of another seed.
      source=made.Made(
        passkey.Passkey(
          lengths=(ROW - 2,), digits=10, needle=5 * _SAID + _LAST, seed=1
        ),
        14_000,
      ),
      validation_fraction=0.01,
      test_fraction=0.01,
    ),
    optimizer=optimizer.AdamW(
      learning_rate=3e-3, warmup_steps=100, final_ratio=0.02
    ),
    evals=(
      bits_per_byte.BitsPerByte(window=ROW, stride=ROW, batch_size=8),
      passkey.Passkey(lengths=(ROW,), questions=8),
    ),
    row_length=ROW,
    batch_size=4,
    steps=3200,
    eval_every=1000,
    eval_bytes=50_000,
    checkpoint_every=500,
  )
