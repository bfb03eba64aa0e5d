"""What drafting ahead of the latent transformer saves, and could at the most.

python -m bench.draft_ahead [--checkpoint=DIR]

Byte layers alone may draft the bytes of several patches, reading the latent
output of the last complete one; all are then read at once, and the latent
transformer runs once for several patches instead of once for each.
"""

import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from bench import byte_latent as bench_latent
from bench import tables
from bench import timing
from configs import base
from configs import command
from configs import restore
from data import codec
from models import byte_latent
from models import forward
from models import ngrams
from models import patched
from models import patching
from samplers import chain
from samplers import loop
from samplers import speculative
from training import host

_PATCH_BYTES = 4
_PROMPT = 64
_PATCHES = (2, 4, 8)
_PRESETS = ('bench', '400m', '1b')
_ROUNDS = 5
_BYTES = (4, 8, 16)
_NEW = 256
_TEXTS = 4


def main(_: Sequence[str]) -> None:
  command.quiet()
  host.keep_memory()
  if _CHECKPOINT.value:
    with command.explained('bench.draft_ahead'):
      run = restore.restore(pathlib.Path(_CHECKPOINT.value))
      texts = run.config.data.open('test')
      found = list(measured(run, texts, _BYTES, _NEW, _ROUNDS))
      print(tables.markdown(found))
    return
  for preset in _PRESETS:
    found = list(rows(preset, _PATCHES, _ROUNDS))
    print(tables.markdown(found), flush=True)


def rows(
  preset: str, patches: Sequence[int], rounds: int, *, shrunk: bool = False
) -> Iterator[dict[str, str]]:
  """One row per number of patches that are drafted, batch 1, every draft right.

  Of a preset configs/blt_*.py, in float32, without the tables of n-grams and
  the entropy model, which either way reads every byte; or of a tiny one like
  it. `even at`: the share of patches that have to be drafted without a fault,
  each independently, for drafting to take no more time than decoding.
  """
  model, params = _load(preset, shrunk=shrunk)
  for count in patches:
    size = count * _PATCH_BYTES
    decode = _decode(model, params, _PATCH_BYTES, size)
    draft = _decode(model, params, 10**6, size)
    read = _read(model, params, size)
    seconds = timing.interleaved(
      {'decode': decode, 'draft': draft, 'read': read}, rounds
    )
    pairs = zip(seconds['draft'], seconds['read'], strict=True)
    both = [sum(pair) for pair in pairs]
    ratio = timing.ratio(seconds['decode'], both)
    yield {
      'model': f'blt_{preset}',
      'drafted ahead': f'{count} patches of {_PATCH_BYTES} bytes',
      'decoding, ms': f'{1e3 * timing.spread(seconds["decode"]).median:.1f}',
      'drafting, ms': f'{1e3 * timing.spread(seconds["draft"]).median:.1f}',
      'reading, ms': f'{1e3 * timing.spread(seconds["read"]).median:.1f}',
      'speed at best': str(ratio),
      'even at': break_even(count, ratio.median),
    }


def measured(
  run: restore.Run,
  texts: Sequence[bytes],
  sizes: Sequence[int],
  new_bytes: int,
  rounds: int,
) -> Iterator[dict[str, str]]:
  """Greedy continuation of the first texts, one after the other."""
  spelling = run.config.data.codec
  texts = [texts[i][:_PROMPT] for i in range(min(len(texts), _TEXTS))]
  ids = [np.array([[codec.BOS, *spelling.encode(x)]], np.int32) for x in texts]
  plain = functools.partial(_continue, run, ids, new_bytes)
  expected = plain()
  for size in sizes:
    ahead = functools.partial(_continue_ahead, run, ids, new_bytes, size)
    found = ahead()
    same = [
      np.array_equal(state.target.ids_BN, other.ids_BN)
      for state, other in zip(found, expected, strict=True)
    ]
    accepted, drafted = (
      sum(int(getattr(state, name)[0]) for state in found)
      for name in ('accepted_B', 'drafted_B')
    )
    seconds = timing.interleaved({'plain': plain, 'ahead': ahead}, rounds)
    yield {
      'drafted bytes': str(size),
      'accepted': f'{accepted / drafted:.0%}',
      'texts that are plain greedy': f'{sum(same)} of {len(same)}',
      'speed over plain': str(timing.ratio(seconds['plain'], seconds['ahead'])),
    }


def _rows(ids_1T: np.ndarray) -> tuple[Any, ...]:
  key = jax.random.split(jax.random.key(0), 1)
  return ids_1T, np.array([ids_1T.shape[1]], np.int32), key


def _continue(
  run: restore.Run, prompts: Sequence[np.ndarray], new_bytes: int
) -> list[loop.State]:
  """One byte after the other."""
  model = run.config.model
  return jax.block_until_ready([
    loop.generate(
      forward.step(model),
      run.params,
      model.init_cache(1, ids_1T.shape[1] + new_bytes),
      *_rows(ids_1T),
      chain.parse('greedy'),
      num_tokens=new_bytes,
    )
    for ids_1T in prompts
  ])


def _continue_ahead(
  run: restore.Run, prompts: Sequence[np.ndarray], new_bytes: int, size: int
) -> list[speculative.State]:
  """With drafts of so many bytes."""
  model, found = run.config.model, []
  sides = [
    speculative.Model(step(model), run.params)
    for step in (forward.step, patched.ahead)
  ]
  for ids_1T in prompts:
    cache = model.init_cache(1, ids_1T.shape[1] + new_bytes + size + 1)
    state = speculative.prefill(
      *sides,
      (cache, None),
      _rows(ids_1T),
      capacity=new_bytes,
      draft_tokens=size,
    )
    found.append(
      speculative.decode(
        *sides,
        state,
        chain.parse('greedy'),
        num_rounds=new_bytes,
        draft_tokens=size,
      )
    )
  return jax.block_until_ready(found)


def _load(
  preset: str, *, shrunk: bool
) -> tuple[byte_latent.ByteLatent, Any]:
  """A model of a preset's layout, and parameters that are all 0."""
  model = base.load(f'configs/blt_{preset}.py').model
  model = bench_latent.shrunk(model) if shrunk else model
  model = model.model.clone(ngrams=ngrams.NgramEmbedding(), dtype='float32')
  ids_BT = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), ids_BT)['params']
  return model, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def break_even(count: int, ratio: float) -> str:
  """Share of right patches at which `count` drafted ones take equal time.

  ratio: speed if all are right. Of patches that are right with chance a, those
  before the first fault are of use, a + a^2 + ... + a^count of `count`.
  """
  if ratio <= 1:
    return 'never'
  low, high = 0.0, 1.0
  for _ in range(50):
    middle = (low + high) / 2
    used = sum(middle**i for i in range(1, count + 1)) / count
    low, high = (low, middle) if used * ratio >= 1 else (middle, high)
  return f'{high:.0%}'


def _decode(
  model: byte_latent.ByteLatent, params: Any, stride: int, size: int
) -> timing.Run:
  """Greedy bytes one by one, of which every `stride`-th ends a patch."""
  step, cache = _start(model, params, stride, size)

  @jax.jit
  def run(params: Any, cache: Any) -> jax.Array:
    def advance(_: jax.Array, carry: tuple[jax.Array, Any]) -> Any:
      id_11, cache = carry
      logits_11V, cache = step(params, id_11, jnp.ones_like(id_11), cache)
      return jnp.argmax(logits_11V, axis=2).astype(jnp.int32), cache

    first_11 = jnp.full((1, 1), 4, jnp.int32)
    return jax.lax.fori_loop(0, size, advance, (first_11, cache))[0]

  return lambda: jax.block_until_ready(run(params, cache))


def _read(
  model: byte_latent.ByteLatent, params: Any, size: int
) -> timing.Run:
  """So many bytes at once."""
  step, cache = _start(model, params, _PATCH_BYTES, size)
  ids_1T = jnp.full((1, size), 4, jnp.int32)
  run = jax.jit(lambda *inputs: step(*inputs)[0])
  return lambda: jax.block_until_ready(
    run(params, ids_1T, jnp.ones_like(ids_1T), cache)
  )


@functools.lru_cache
def _step(model: byte_latent.ByteLatent) -> Any:
  return jax.jit(forward.step(model))


def _start(
  model: byte_latent.ByteLatent, params: Any, stride: int, size: int
) -> tuple[Any, Any]:
  """A model of patches of equal length, and its cache after a prompt."""
  model = model.clone(
    patching=patching.Patching(patching.Stride(stride), max_length=None)
  )
  prompt_1T = jnp.full((1, _PROMPT), 4, jnp.int32)
  cache = model.init_cache(1, _PROMPT + size)
  _, cache = _step(model)(params, prompt_1T, jnp.ones_like(prompt_1T), cache)
  return forward.step(model), cache


if __name__ == '__main__':
  _CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'Run of a BLT to be measured, instead of the ceilings.'
  )
  command.run(main)
