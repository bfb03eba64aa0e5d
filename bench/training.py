"""Training bytes per second: ours against the same Llama in PyTorch."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from bench import shapes
from bench import timing
from models import forward
from training import host
from training import objectives
from training import optimizer
from training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Setting:
  """How PyTorch computes; the benchmark takes what is fastest."""

  attention: str
  adamw: str
  threads: int

  def __str__(self) -> str:
    return f'{self.attention}, {self.adamw}, {self.threads} threads'


def rows(
  cases: tuple[shapes.Shape, ...], rounds: int, peak_flops: float
) -> Iterator[dict[str, object]]:
  """One row per shape: speeds, ratio, and shares of the matmul peak."""
  for shape in cases:
    ids_BT = np.random.default_rng(0).integers(
      4, 260, (shape.batch, shape.length)
    )
    build = functools.partial(_torch_step, shape, ids_BT)
    cores = host.cores()
    setting = timing.tuned(
      Setting('sdpa', 'fused', cores),
      {
        'attention': ('eager', 'sdpa'),
        'adamw': ('fused', 'foreach'),
        'threads': (cores, max(1, cores // 2)),
      },
      build,
    )
    seconds = timing.interleaved(
      {'ours': _our_step(shape, ids_BT), 'torch': build(setting)}, rounds
    )
    speeds = {
      name: ids_BT.size / timing.spread(values).median
      for name, values in seconds.items()
    }
    shares = {
      name: shape.flops_per_token * speed / peak_flops
      for name, speed in speeds.items()
    }
    yield {
      'training': shape,
      'ours, kB/s': f'{speeds["ours"] / 1e3:.1f}',
      'PyTorch, kB/s': f'{speeds["torch"] / 1e3:.1f}',
      'ratio': timing.ratio(seconds['torch'], seconds['ours']),
      'ours, of matmul peak': f'{shares["ours"]:.0%}',
      'PyTorch, of matmul peak': f'{shares["torch"]:.0%}',
      'PyTorch at its best': setting,
    }


def _our_step(shape: shapes.Shape, ids_BT: np.ndarray) -> timing.Run:
  model, params = shapes.ours(shape)
  transform = optimizer.AdamW(weight_decay=0.1, clip=None).build(1000)
  step = jax.jit(
    functools.partial(
      step_lib.train_step,
      objective=objectives.NextToken(),
      apply=forward.pure(model),
      optimizer=transform,
    ),
    donate_argnames=('state',),
    compiler_options=host.compiler_options(),
  )
  state = step_lib.create(params, transform, jax.random.key(0))
  ids = jnp.asarray(ids_BT, jnp.int32)
  batch = {
    'ids': ids,
    'targets': jnp.roll(ids, -1, axis=1),
    'documents': jnp.ones_like(ids),
    'mask': jnp.ones(ids.shape, jnp.float32),
  }

  def run() -> None:
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready((state.params, metrics))

  return run


def _torch_step(
  shape: shapes.Shape, ids_BT: np.ndarray, setting: Setting
) -> timing.Run:
  import torch

  model, params = shapes.ours(shape)
  llama = shapes.theirs(shape, params, setting.attention)
  shapes.check_equal(shape, model, params, llama)
  llama.train()
  adamw = torch.optim.AdamW(
    llama.parameters(),
    lr=1e-3,
    betas=(0.9, 0.95),
    weight_decay=0.1,
    **{setting.adamw: True},
  )
  ids = torch.from_numpy(ids_BT)
  targets = torch.roll(ids, -1, dims=1)

  def run() -> None:
    torch.set_num_threads(setting.threads)
    adamw.zero_grad(set_to_none=True)
    logits = llama(ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
      logits.flatten(0, 1), targets.flatten()
    )
    loss.backward()
    adamw.step()

  return run
