"""Classes of CIFAR-10 by a perceptron of block tensor trains of width 256.

The perceptron of Compute Better Spent (arXiv 2406.06248, section 4): crops,
mirror images, sums of two images, smoothed classes, pixels in a random order.
It is to have a lower train error than configs/cifar10_dense.py, the dense one
of width 64, which takes more multiply-adds: 51 % against 58 % there, read off
its figure. About 500 epochs, an hour or two on two cores:

tfds build cifar10 --file_format=array_record   # where TensorFlow is
python train.py --config=configs/cifar10.py --workdir=runs/cifar10 \\
  --set data.data_dir=FOLDER                    # that holds its cifar10
python eval.py --checkpoint=runs/cifar10 --split=train --out=train.json

Other widths: --set model.width=512; the rate follows.
"""

import dataclasses

from configs import base
from configs import cifar10_dense
from configs import initial
from models import linear
from models import structured
from training import sharding


def get_config() -> base.Config:
  config = cifar10_dense.get_config()
  dense = config.model
  layers = linear.Roles(structured.BlockTensorTrain(), head=dense.linear.head)
  return dataclasses.replace(
    config,
    model=dense.clone(width=256, linear=layers),
    initial=(initial.LikeBase(),),
    shardings=sharding.STRUCTURED,
  )
