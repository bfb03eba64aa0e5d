"""blt.py with the demo's byte model in place of its n-gram tables.

make demo
python train.py --config=configs/blt_lm.py --workdir=runs/blt_lm

The entropies of the train split are computed once, beside it. The threshold is
the one that gives patches as long as those of blt.py; `patches.py` finds it for
any other entropy model.
"""

import dataclasses

from configs import base
from configs import blt
from configs import demo
from configs import initial
from models import patched
from models import patching


def get_config() -> base.Config:
  config = blt.get_config()
  model = config.model.model
  rule = dataclasses.replace(
    model.patching, rule=patching.Entropy(threshold=2.2)
  )
  return dataclasses.replace(
    config,
    model=patched.Patched(
      entropy=patched.LMEntropy(demo.get_config().model),
      model=model.clone(patching=rule),
    ),
    initial=(initial.FromRun('entropy/lm', 'runs/demo'),),
  )
