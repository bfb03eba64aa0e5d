"""What drafting ahead of the latent transformer could save at the most.

python -m bench.draft_ahead

Byte layers alone may draft the bytes of several patches, reading the latent
output of the last complete one; all are then read at once, and the latent
transformer runs once for several patches instead of once for each.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bench import byte_latent as bench_latent
from bench import tables
from bench import timing
from configs import base
from configs import command
from models import byte_latent
from models import forward
from models import ngrams
from models import patching
from training import host

_PATCH_BYTES = 4
_PROMPT = 64
_PATCHES = (2, 4, 8)
_PRESETS = ('bench', '400m', '1b')
_ROUNDS = 5


def main(_: Sequence[str]) -> None:
  command.quiet()
  host.keep_memory()
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
  command.run(main)
