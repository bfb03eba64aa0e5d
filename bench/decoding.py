"""Greedy decoding bytes per second: ours against transformers' generate."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench import shapes
from bench import timing
from models import forward
from samplers import chain
from samplers import parallel
from training import host

PROMPT = 64


@dataclasses.dataclass(frozen=True)
class Setting:
  """How PyTorch computes; the benchmark takes what is fastest."""

  attention: str
  threads: int

  def __str__(self) -> str:
    return f'{self.attention}, {self.threads} threads'


def rows(
  cases: tuple[shapes.Shape, ...],
  rounds: int,
  new_bytes: int,
  memory_bytes: float,
) -> Iterator[dict[str, object]]:
  """One row per shape and batch: speeds, ratios, share of the memory floor.

  The floor reads every weight and the whole cache once per byte.
  """
  for shape in cases:
    model, params = shapes.ours(shape)
    llamas = {
      attention: shapes.theirs(shape, params, attention).eval()
      for attention in ('sdpa', 'eager')
    }
    for llama in llamas.values():
      shapes.check_equal(shape, model, params, llama)
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    for batch in (1, 8):
      prompt_BT = np.random.default_rng(0).integers(4, 260, (batch, PROMPT))
      decode = our_decode(model, params, prompt_BT, new_bytes)
      _check_greedy(llamas['sdpa'], prompt_BT, decode())
      build = functools.partial(_generate, llamas, prompt_BT)
      setting = timing.tuned(
        Setting('sdpa', host.cores()),
        {
          'attention': tuple(llamas),
          'threads': (host.cores(), max(1, host.cores() // 2)),
        },
        functools.partial(build, max(1, new_bytes // 8), 'static'),
      )
      seconds = timing.interleaved(
        {
          'ours': decode,
          'static': build(new_bytes, 'static', setting),
          'dynamic': build(new_bytes, 'dynamic', setting),
        },
        rounds,
      )
      mine = timing.spread(seconds['ours']).median
      cache = model.init_cache(batch, PROMPT + new_bytes)
      cached = sum(x.nbytes for x in jax.tree.leaves(cache))
      floor = new_bytes * (weights + cached) / memory_bytes
      theirs = timing.spread(seconds['static']).median
      yield {
        'decoding': f'width {shape.width} x {shape.layers}, batch {batch}',
        'ours, B/s': f'{batch * new_bytes / mine:.0f}',
        'static cache, B/s': f'{batch * new_bytes / theirs:.0f}',
        'ratio to static cache': timing.ratio(
          seconds['static'], seconds['ours']
        ),
        'ratio to dynamic cache': timing.ratio(
          seconds['dynamic'], seconds['ours']
        ),
        'memory floor, of our time': f'{floor / mine:.0%}',
        'PyTorch at its best': setting,
      }


def our_decode(
  model: Any, params: Any, prompt_BT: np.ndarray, new_bytes: int
) -> Callable[[], np.ndarray]:
  """Greedy generation, prompt included, by `model`; it gives the new ids."""
  batch, length = prompt_BT.shape
  rows = (
    jnp.asarray(prompt_BT, jnp.int32),
    jnp.full((batch,), length, jnp.int32),
    jax.random.split(jax.random.key(0), batch),
  )
  decoder = parallel.build(
    forward.step(model),
    params,
    lambda count: model.init_cache(count, length + new_bytes),
    rows,
    chain.parse('greedy'),
    capacity=new_bytes,
    num_steps=new_bytes,
  )
  return lambda: np.asarray(decoder.go_on(decoder.start(rows)).ids_BN)


def _generate(
  llamas: dict[str, Any],
  prompt_BT: np.ndarray,
  new_bytes: int,
  cache: str,
  setting: Setting,
) -> timing.Run:
  import torch

  ids = torch.from_numpy(prompt_BT)

  def run() -> None:
    torch.set_num_threads(setting.threads)
    with torch.inference_mode():
      llamas[setting.attention].generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_bytes,
        min_new_tokens=new_bytes,
        do_sample=False,
        cache_implementation=cache,
        disable_compile=True,
      )

  return run


def _check_greedy(
  llama: Any, prompt_BT: np.ndarray, ids_BN: np.ndarray
) -> None:
  """ValueError unless every byte is PyTorch's best, or within 1e-4 of it."""
  import torch

  ids = torch.from_numpy(np.concatenate([prompt_BT, ids_BN], axis=1))
  with torch.inference_mode():
    logits_BNV = llama(ids).logits[:, prompt_BT.shape[1] - 1 : -1].numpy()
  found_BN = np.take_along_axis(logits_BNV, ids_BN[..., None], 2)[..., 0]
  worst = (logits_BNV.max(axis=2) - found_BN).max() / np.abs(logits_BNV).max()
  if worst > 1e-4:
    raise ValueError(
      f'bench decoding: a chosen byte is {worst:.1e} below the best one; both'
      ' sides must do equal work.'
    )
