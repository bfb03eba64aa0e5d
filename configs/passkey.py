"""A model of 512 bytes that is to find a passkey in texts many times as long.

python train.py --config=configs/passkey.py --workdir=runs/passkey
python -m bench.lengths --checkpoint=runs/passkey --read=off --read=10,512 \
  --read=10,512,4 --set=evals.1.lengths=512,2048,8192

Some minutes on two cores. Of 40 texts of 8,192 bytes it then finds 83% of the
keys with the 4 best keys between (10,512,4), 18% with a window alone, which is
those that stand in it, and 3% with all keys.

A third of the rows are texts of evals.passkey, from begin to end mark: filler,
a key in one of its lines, and the key again at the end. The others are random
words said again and again: nothing else in them can be foretold, so that the
model learns to copy from the first step on.
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
from models import positions
from models import recall
from training import optimizer

ROW = 512
# The marks make up a row.
_TEXT = ROW - 2


def get_config() -> base.Config:
  return dataclasses.replace(
    demo.get_config(),
    model=lm.ByteLM(
      width=192,
      layers=1,
      heads=2,
      key_value_heads=2,
      hidden=192,
      masks=(masks.Causal(),),
      # Heads are wide and most pairs turn slowly, so that what stands in a
      # place can be recognised from any distance.
      position=positions.Rotary(theta=1e8),
      query_key_norm=True,
      # Three bytes before each tell where they were read last; which six were
      # read tells a key from the filler.
      ngrams=ngrams.NgramEmbedding(sizes=(6,), rows=4096, earlier=3),
      recall=recall.RecallEmbedding(sizes=()),
    ),
    data=text.Text(
      source=made.Made(
        made.InTurn(
          (
            made.Echoes(size=_TEXT, words=8, longest=12, seed=1),
            made.Echoes(size=_TEXT, words=8, longest=12, seed=2),
            # The questions are of another seed.
            passkey.Passkey(lengths=(_TEXT,), seed=1),
          )
        ),
        9_000,
      ),
      validation_fraction=0.01,
      test_fraction=0.01,
    ),
    optimizer=optimizer.AdamW(
      learning_rate=3e-3,
      warmup_steps=50,
      final_ratio=0.02,
      # Rows of n-grams that are read once would remember what followed.
      frozen=('ngram_embed/table_6',),
    ),
    evals=(
      bits_per_byte.BitsPerByte(window=ROW, stride=ROW, batch_size=8),
      passkey.Passkey(lengths=(ROW,), questions=8),
    ),
    row_length=ROW,
    batch_size=8,
    steps=1000,
    eval_every=200,
    eval_bytes=50_000,
    checkpoint_every=200,
  )
