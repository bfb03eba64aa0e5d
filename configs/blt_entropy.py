"""The entropy model of the Byte Latent Transformers of the paper: 99.5M.

A byte language model that sees 512 bytes, with the settings of the published
code. Its run is where the other presets take it from:

python train.py --config=configs/blt_entropy.py --workdir=runs/blt_entropy
"""

from configs import base
from configs import blt_paper
from training import optimizer


def get_config() -> base.Config:
  return blt_paper.experiment(
    blt_paper.entropy_model(),
    optimizer.AdamW(learning_rate=4e-4, warmup_steps=500, clip=10.0),
  )
