"""Byte Latent Transformer 400M of the paper: 3.0B parameters with its tables.

python train.py --config=configs/blt_400m.py --dry_run --devices=64 --chip=H100
"""

from configs import base
from configs import blt_paper


def get_config() -> base.Config:
  return blt_paper.config(
    blt_paper.Size(
      local_width=768,
      local_heads=12,
      decoder_layers=7,
      latent_width=1280,
      latent_heads=10,
      latent_layers=24,
      slots=2,
    )
  )
