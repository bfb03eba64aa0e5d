"""What structured layers are compared on: text in bytes, a random teacher.

Both give, for a structure and a width, the training FLOPs of an example and a
function that trains and scores. Learning rates are those of a dense model of
one width, carried over by training.transfer.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import initial
from configs import tiny
from data import pipeline
from evals import bits_per_byte
from models import blocks
from models import flops
from models import forward
from models import linear
from models import lm
from models import mixture
from models import structured
from training import host
from training import objectives
from training import optimizer
from training import step as step_lib

# Weight of the routing loss, as in arXiv 2410.02117.
_BALANCE = 0.01
_BTT = structured.BlockTensorTrain
# Of every projection but the first and last of a model.
LAYERS: dict[str, nn.Module] = {
  'dense': linear.Dense(),
  'low_rank': structured.LowRank(),
  'monarch': structured.Monarch(blocks=4),
  'btt': _BTT(rank=1),
  'btt_4': _BTT(rank=4),
  'kronecker': structured.Kronecker(),
  'btt_moe': mixture.Mixture(expert=_BTT(rank=1)),
}
# The usual mixture is one of feed-forward layers, or else of dense ones.
STRUCTURES = (*LAYERS, 'moe')

# Gives the loss of a seed.
Trial = Callable[[int], float]


class Problem(Protocol):
  """name; unit: of the loss; largest: FLOPs of the largest run of an hour.

  rate: examples per FLOP of training one: what the data of a size grow by.
  batch: examples per step; speed: FLOP/s on two cores, to foretell the time;
  widths: of which one is chosen to have the FLOPs that a size is to have.
  """

  name: str
  unit: str
  largest: float
  rate: float
  batch: int
  speed: float
  widths: Iterable[int]

  def cost(self, structure: str, width: int) -> float:
    """Training FLOPs of an example."""

  def prepare(self, folder: pathlib.Path, examples: int) -> Any:
    """The data for so many examples, made in a folder where missing."""

  def trial(self, data: Any, structure: str, width: int, steps: int) -> Trial:
    """What trains and scores on it, compiled once for all seeds."""


@dataclasses.dataclass(frozen=True)
class Text:
  """Bits per byte of test text by a transformer of two layers.

  Heads, queries and keys as in arXiv 2410.02117: the head dense, zero at
  first; queries and keys normed; rows of 128.

  data: the corpus; eval_bytes: of its test split; learning_rate: of dense
  projections at width 64.
  """

  data: Any = tiny.get_config().data
  eval_bytes: int = 131_072
  learning_rate: float = 1.5e-2
  name: str = 'text'
  unit: str = 'bits per byte'
  largest: float = 2e12
  rate: float = 2.0
  row_length: int = 128
  rows: int = 16
  speed: float = 2.5e10
  widths: Iterable[int] = range(16, 1025, 8)

  @property
  def batch(self) -> int:
    """Bytes."""
    return self.rows * self.row_length

  def model(self, structure: str, width: int) -> lm.ByteLM:
    layer = LAYERS.get(structure, LAYERS['dense'])
    is_mixture = structure == 'moe'
    return lm.ByteLM(
      width=width,
      layers=2,
      heads=4,
      key_value_heads=4,
      hidden=4 * width,
      linear=linear.Roles(layer, head=linear.Dense(gain=0.0)),
      feed_forward=(
        mixture.MixtureFeedForward() if is_mixture else blocks.FeedForward()
      ),
      query_key_norm=True,
    )

  def cost(self, structure: str, width: int) -> float:
    model = self.model(structure, width)
    parts = flops.per_byte(model, length=self.row_length)
    return flops.training(model, parts)

  def prepare(self, folder: pathlib.Path, examples: int) -> Any:
    """The train and the test split; the corpus has a place of its own."""
    del folder, examples
    self.data.prepare()
    return self.data.open('train'), self.data.open('test')

  def trial(self, data: Any, structure: str, width: int, steps: int) -> Trial:
    model = self.model(structure, width)
    base = self.model('moe' if structure == 'moe' else 'dense', 64)
    balance = _BALANCE if structure.endswith('moe') else 0.0
    train = _training(
      _Setting(model, base, self.learning_rate, steps),
      objectives.NextToken(balance=balance),
      jnp.zeros((1, self.row_length), jnp.int32),
    )
    corpus, test = data
    evaluator = bits_per_byte.BitsPerByte(
      window=self.row_length, stride=3 * self.row_length // 4
    )

    def run(seed: int) -> float:
      batches = pipeline.batches(
        corpus, row_length=self.row_length, batch_size=self.rows, seed=seed
      )
      params = train(seed, pipeline.iterate(batches))
      apply = forward.pure(model)
      found = evaluator.run(apply, params, test, max_bytes=self.eval_bytes)
      return found['bits_per_byte']

    return run


class Student(nn.Module):
  """Three layers with ReLUs and a dense output of one number, zero at first.

  The layers after the first are copies of `linear`.
  """

  width: int
  linear: nn.Module

  @nn.compact
  def __call__(self, x_BN: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
    # Shapes of a base (training.transfer) are found with integer ids.
    h_BD = x_BN.astype(jnp.float32)
    for name, layer in (
      ('first', LAYERS['dense']),
      ('second', self.linear),
      ('third', self.linear),
    ):
      h_BD = layer.copy(name=name, features=self.width)(h_BD)
      h_BD = 2**0.5 * nn.relu(h_BD)
    return linear.Dense(1, gain=0.0, name='last')(h_BD)[:, 0], None


@dataclasses.dataclass(frozen=True)
class SquaredError:
  """The objective of the student; balance as objectives.NextToken has it."""

  balance: float = 0.0

  def __call__(
    self, apply: Any, params: Any, batch: dict[str, jax.Array]
  ) -> objectives.Sums:
    found = apply(params, batch['inputs'], None)
    y_B, counts = found if isinstance(found, tuple) else (found, {})
    count = jnp.float32(len(y_B))
    loss = error = jnp.sum(jnp.square(y_B - batch['targets']))
    if self.balance:
      loss += self.balance * count * counts['balance'] / counts['balanced']
    return objectives.Sums(loss, count, {'error': error})


@dataclasses.dataclass(frozen=True)
class Teacher:
  """Squared error of a student on a random network's standardised output.

  As in arXiv 2410.02117, section 4: 8 normal inputs, ReLU layers, every point
  seen once; but batches of 512.

  teacher_width, teacher_layers: of the network that is to be learned.
  learning_rate: of a dense student of width 64. held_out: points scored.
  """

  teacher_width: int = 1024
  teacher_layers: int = 6
  held_out: int = 16_384
  learning_rate: float = 5e-3
  name: str = 'teacher'
  unit: str = 'squared error'
  largest: float = 8e11
  rate: float = 1.25
  batch: int = 512
  speed: float = 5e10
  widths: Iterable[int] = range(16, 8193, 16)

  def model(self, structure: str, width: int) -> Student:
    moe = mixture.Mixture(expert=structured.Full())
    return Student(width, LAYERS.get(structure, moe))

  def cost(self, structure: str, width: int) -> float:
    layer = self.model(structure, width).linear
    return 6 * (9 * width + 2 * flops.macs(layer, width, width))

  def prepare(self, folder: pathlib.Path, examples: int) -> Any:
    """Inputs and outputs, of which the first are held out."""
    file = folder / f'teacher-{self.teacher_width}-{examples}.npz'
    if not file.exists():
      x_ND, y_N = self._draw(examples + self.held_out)
      part = file.with_suffix('.part.npz')
      np.savez(part, x_ND=x_ND, y_N=y_N)
      part.replace(file)
    with np.load(file, allow_pickle=False) as found:
      return found['x_ND'], found['y_N']

  def _draw(self, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and outputs of mean 0 and deviation 1."""
    x_ND = np.random.default_rng(0).standard_normal((count, 8), np.float32)
    keys = jax.random.split(jax.random.key(0), self.teacher_layers + 1)
    widths = [8, *[self.teacher_width] * self.teacher_layers, 1]
    matrices = [
      jax.random.normal(key, shape) * shape[0] ** -0.5
      for key, shape in zip(keys, itertools.pairwise(widths), strict=True)
    ]

    @functools.partial(jax.jit, compiler_options=host.compiler_options())
    def teach(x_BD: jax.Array) -> jax.Array:
      for matrix in matrices[:-1]:
        x_BD = 2**0.5 * nn.relu(x_BD @ matrix)
      return (x_BD @ matrices[-1])[:, 0]

    size = 8192
    padded_ND = np.pad(x_ND, ((0, -count % size), (0, 0)))
    parts = [teach(padded_ND[i : i + size]) for i in range(0, count, size)]
    y_N = np.concatenate(parts)[:count]
    return x_ND, (y_N - y_N.mean()) / y_N.std()

  def trial(self, data: Any, structure: str, width: int, steps: int) -> Trial:
    model = self.model(structure, width)
    balance = _BALANCE if structure.endswith('moe') else 0.0
    train = _training(
      _Setting(model, self.model('dense', 64), self.learning_rate, steps),
      SquaredError(balance),
      jnp.zeros((1, 8)),
    )
    predict = jax.jit(forward.pure(model))
    x_ND, y_N = data

    def run(seed: int) -> float:
      rng = np.random.default_rng(seed)
      order_SB = rng.permutation(np.arange(self.held_out, len(y_N)))
      order_SB = order_SB[: steps * self.batch].reshape(steps, self.batch)
      batches = ({'inputs': x_ND[i], 'targets': y_N[i]} for i in order_SB)
      params = train(seed, batches)
      found_N = predict(params, x_ND[: self.held_out], None)
      errors_N = np.asarray(found_N) - y_N[: self.held_out]
      return float(np.mean(np.square(errors_N)))

    return run


class _Setting(NamedTuple):
  """A model, and the one at which learning_rate was chosen."""

  model: nn.Module
  base: nn.Module
  learning_rate: float
  steps: int


def _training(
  setting: _Setting, objective: Any, example: jax.Array
) -> Callable[[int, Iterable[Any]], Any]:
  """(seed, batches) -> parameters after AdamW on as many as there are steps.

  The rate rises over a twentieth of them and falls along a cosine. example:
  an input to draw parameters with.
  """
  model, base, learning_rate, steps = setting
  transform = optimizer.AdamW(
    learning_rate=learning_rate,
    warmup_steps=max(steps // 20, 1),
    final_ratio=0.02,
    weight_decay=0.0,
    base=base,
  ).build(steps)
  apply = forward.counted if objective.balance else forward.pure
  step = jax.jit(
    functools.partial(
      step_lib.train_step,
      objective=objective,
      apply=apply(model),
      optimizer=transform,
    ),
    donate_argnames=('state',),
    compiler_options=host.compiler_options(),
  )
  draw, begin = jax.jit(model.init), initial.LikeBase(base)

  def train(seed: int, batches: Iterable[Any]) -> Any:
    key = jax.random.key(seed)
    params = begin(None, draw(key, example)['params'], None)
    state = step_lib.create(params, transform, key)
    for number, batch in enumerate(itertools.islice(batches, steps)):
      state, metrics = step(state, batch)
      if number % 20 == 0:  # Or steps would queue up with all their batches.
        jax.block_until_ready(metrics)
    return state.params

  return train
