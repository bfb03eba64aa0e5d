"""Classes of CIFAR-10 by a dense perceptron of width 64.

What configs/cifar10.py is compared with, and says how to run:

python train.py --config=configs/cifar10_dense.py --workdir=runs/cifar10_dense
"""

from configs import base
from configs import initial
from data import images
from evals import error_rate
from models import image_mlp
from models import linear
from samplers import chain
from training import optimizer
from training import sharding
from training import soft_labels


def get_config() -> base.Config:
  model = image_mlp.ImageMLP(
    width=64, linear=linear.Roles(head=linear.Dense(gain=0.0))
  )
  return base.Config(
    model=model,
    data=images.Images(),
    rows=images.ImageRows(),
    optimizer=optimizer.AdamW(
      learning_rate=3e-3,
      warmup_steps=0,
      final_ratio=0.0,
      b2=0.999,
      weight_decay=0.0,
      clip=None,
      base=model,
      multipliers=(('^input/', 0.1),),
    ),
    objective=soft_labels.SoftLabels(),
    sampler=chain.Chain(),
    initial=(initial.LikeBase(),),
    evals=(error_rate.ErrorRate(),),
    mesh=sharding.MeshShape(),
    shardings=sharding.TRANSFORMER,
    row_length=3072,
    batch_size=1024,
    # 500 times 45,000 images.
    steps=22_000,
    log_every=50,
    eval_every=2_000,
    # All 5,000 images that are held out.
    eval_bytes=16_000_000,
    checkpoint_every=2_000,
  )
