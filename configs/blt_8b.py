"""Byte Latent Transformer 8B of the paper: 10.7B parameters with its tables.

python train.py --config=configs/blt_8b.py --dry_run --devices=64 --chip=H100
"""

from configs import base
from configs import blt_paper


def get_config() -> base.Config:
  return blt_paper.config(
    blt_paper.Size(
      local_width=1280,
      local_heads=20,
      decoder_layers=6,
      latent_width=4096,
      latent_heads=32,
      latent_layers=32,
      slots=4,
    )
  )
