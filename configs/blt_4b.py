"""Byte Latent Transformer 4B of the paper: 7.4B parameters with its tables.

python train.py --config=configs/blt_4b.py --dry_run --devices=64 --chip=H100
"""

from configs import base
from configs import blt_paper


def get_config() -> base.Config:
  return blt_paper.config(
    blt_paper.Size(
      local_width=1024,
      local_heads=16,
      decoder_layers=9,
      latent_width=3072,
      latent_heads=24,
      latent_layers=36,
      slots=3,
    )
  )
