"""Time and memory of Lambda-shaped attention against full causal attention."""

import functools
import multiprocessing
import pathlib
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench import timing
from models import attention
from models import forward
from models import key_parts
from models import layer_cache
from models import lm
from models import masks
from models import positions
from models import window_attention
from samplers import chain
from samplers import loop

# Rows of queries that the scanned form of full attention computes at a time.
_ROWS = 128
# Bytes that prefill reads at a time on its way to a far position.
_CHUNK = 256
# Arrays of logits beyond this are not made, only compiled.
_MOST_BYTES = 6 * 2**30


class Sizes(NamedTuple):
  """Lengths of rows, those for which gradients are timed, and positions.

  endless: bytes made in one process after which its memory is looked at.
  """

  lengths: tuple[int, ...]
  gradients: tuple[int, ...]
  positions: tuple[int, ...]
  heads: int
  head_width: int
  mask: masks.Lambda
  new_bytes: int
  model: lm.ByteLM
  endless: tuple[int, ...]


FULL = Sizes(
  lengths=(2048, 8192, 32_768),
  gradients=(2048, 8192),
  positions=(1024, 2**20),
  heads=4,
  head_width=64,
  mask=masks.Lambda(n_global=16, n_local=256),
  new_bytes=512,
  model=lm.ByteLM(width=128, layers=4, heads=4, key_value_heads=4, hidden=352),
  endless=(10_000, 100_000, 1_000_000),
)
QUICK = FULL._replace(
  lengths=(64, 128),
  gradients=(64,),
  positions=(64, 256),
  head_width=8,
  mask=masks.Lambda(n_global=2, n_local=16),
  new_bytes=4,
  model=lm.ByteLM(width=16, layers=1, heads=2, key_value_heads=1, hidden=16),
  endless=(32, 64),
)

# Queries, keys and values [1, T, H, K] to outputs.
_Form = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def prefill_rows(sizes: Sizes, rounds: int) -> Iterator[dict[str, object]]:
  """One row per length and pass: times, ratios and temporary memory.

  Each form rotates queries and keys itself. Memory is XLA's count of
  temporaries of the compiled program.
  """
  for length in sizes.lengths:
    forms = _forms(sizes)
    shape = (1, length, sizes.heads, sizes.head_width)
    rng = np.random.default_rng(0)
    arrays = tuple(
      jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(3)
    )
    for wanted in ('forward', 'forward and gradient'):
      programs = {}
      for name, form in forms.items():
        function = form if wanted == 'forward' else _with_gradient(form)
        programs[name] = jax.jit(function).lower(*arrays).compile()
      known = _timed(sizes, length, wanted, programs, arrays, rounds)
      row: dict[str, object] = {
        'attention': f'{wanted}, {length}',
        'Lambda': _cell(known, 'Lambda', programs),
      }
      for name in ('scanned', 'materialised'):
        row[name] = _cell(known, name, programs)
        row[f'ratio to {name}'] = (
          timing.ratio(known[name], known['Lambda']) if name in known else '-'
        )
      yield row


def _timed(
  sizes: Sizes,
  length: int,
  wanted: str,
  programs: dict[str, Any],
  arrays: tuple[jax.Array, ...],
  rounds: int,
) -> dict[str, list[float]]:
  """Seconds of the programs that fit into memory and a benchmark's time."""
  runs = {}
  for name, program in programs.items():
    is_far = wanted != 'forward' and length not in sizes.gradients
    is_large = program.memory_analysis().temp_size_in_bytes > _MOST_BYTES
    if name == 'Lambda' or not (is_far or (is_large and name != 'scanned')):
      runs[name] = functools.partial(_run, program, arrays)
  return timing.interleaved(runs, rounds)


def _run(program: Any, arrays: tuple[jax.Array, ...]) -> None:
  jax.block_until_ready(program(*arrays))


def _cell(
  known: dict[str, list[float]], name: str, programs: dict[str, Any]
) -> str:
  memory = programs[name].memory_analysis().temp_size_in_bytes
  spent = 'not run'
  if name in known:
    spent = f'{1e3 * timing.spread(known[name]).median:.0f} ms'
  return f'{spent}, {memory / 1e6:.0f} MB'


def _forms(sizes: Sizes) -> dict[str, _Form]:
  def layer(mask: Any) -> attention.Attention:
    return attention.Attention(
      sizes.heads, sizes.heads, sizes.head_width, mask, False, 'float32'
    )

  def rows(mask: Any, *arrays: jax.Array) -> jax.Array:
    tokens = _tokens(arrays[0].shape[1])
    turn = positions.Rotary().turn(tokens.position_BT, sizes.head_width)
    return layer(mask).mix(*arrays, tokens, turn)[0]

  return {
    'Lambda': functools.partial(rows, sizes.mask),
    'scanned': functools.partial(_causal, True),
    'materialised': functools.partial(_causal, False),
  }


def _tokens(length: int) -> masks.Tokens:
  return masks.row_tokens(jnp.ones((1, length), jnp.int32))


def _causal(
  is_scanned: bool,
  query_BTHK: jax.Array,
  key_BTHK: jax.Array,
  value_BTHK: jax.Array,
) -> jax.Array:
  """Full causal attention, rows of queries one after the other or at once."""
  length = query_BTHK.shape[1]
  tokens = _tokens(length)
  turn = positions.Rotary().turn(tokens.position_BT, query_BTHK.shape[-1])
  query_BTHK, key_BTHK = (
    positions.rotate(x, turn) for x in (query_BTHK, key_BTHK)
  )
  key_BHTK, value_BHTK = (x.swapaxes(1, 2) for x in (key_BTHK, value_BTHK))
  if not is_scanned:
    seen_BTS = masks.visible(masks.Causal(), tokens, tokens)
    return attention.attend(query_BTHK, key_BHTK, value_BHTK, seen_BTS)
  return window_attention.attend_blocks(
    key_parts.Rule(masks.Causal(), ()),
    key_parts.Seen(query_BTHK),
    tokens,
    key_parts.Seen(layer_cache.Keys(key_BHTK, value_BHTK, tokens)),
    window_attention.Plan(_ROWS, None, -(-length // _ROWS), 1),
  )


def _with_gradient(form: _Form) -> Callable[..., Any]:
  def total(*arrays: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(form(*arrays)))

  return jax.value_and_grad(total, (0, 1, 2))


class Decoding(NamedTuple):
  """Seconds per byte of every round, and the bytes of the cache."""

  seconds: list[float]
  cache_bytes: int


def decoding(
  model: Any, params: Any, places: Sequence[int], new_bytes: int, rounds: int
) -> dict[int, Decoding]:
  """What greedy decoding of `new_bytes` costs after so many random bytes."""
  step = forward.step(model)
  runs, sizes = {}, {}
  for place in places:
    cache = _read(model, params, place, place + new_bytes + 1)
    sizes[place] = sum(x.nbytes for x in jax.tree.leaves(cache))
    runs[place] = functools.partial(_generate, step, params, cache, new_bytes)
  return {
    place: Decoding([s / new_bytes for s in seconds], sizes[place])
    for place, seconds in timing.interleaved(runs, rounds).items()
  }


def decoding_rows(sizes: Sizes, rounds: int) -> Iterator[dict[str, object]]:
  """Time per byte and bytes of cache after reading so many bytes."""
  model, params = _model(sizes, sizes.model.layers)
  found = decoding(model, params, sizes.positions, sizes.new_bytes, rounds)
  first = found[sizes.positions[0]].seconds
  for position, (seconds, cache_bytes) in found.items():
    per_byte = timing.spread([1e6 * s for s in seconds])
    yield {
      'decoding from': position,
      'us per byte': f'{per_byte.median:.0f}'
      f' ({per_byte.low:.0f}-{per_byte.high:.0f})',
      f'time over that at {sizes.positions[0]}': timing.ratio(seconds, first),
      'cache, bytes': cache_bytes,
    }


def endless_rows(sizes: Sizes) -> list[dict[str, object]]:
  """Time and memory of a process in which one layer makes bytes for ever.

  It is one of its own: in this one what others freed would hide growth.
  """
  spawn = multiprocessing.get_context('spawn')
  with futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
    return pool.submit(_endless, sizes).result()


def _endless(sizes: Sizes) -> list[dict[str, object]]:
  jax.config.update('jax_platforms', 'cpu')
  model, params = _model(sizes, 1)
  state = loop.prefill(
    forward.step(model),
    params,
    model.init_cache(1, sizes.endless[-1] + 1),
    jnp.full((1, 1), 40, jnp.int32),
    jnp.ones(1, jnp.int32),
    jax.random.split(jax.random.key(0), 1),
    capacity=sizes.endless[-1],
  )
  made, first = 0, sizes.endless[0]
  rows: list[dict[str, object]] = []
  memory = []
  for total in sizes.endless:
    began = time.perf_counter()
    for _ in range((total - made) // first):
      state = loop.decode(
        forward.step(model),
        params,
        state,
        chain.parse('temperature(1)'),
        num_steps=first,
      )
      jax.block_until_ready(state.ids_BN)
    seconds = time.perf_counter() - began
    assert int(state.length_B[0]) == total
    memory.append(resident_bytes() / 1e6)
    rows.append(
      {
        'bytes made': total,
        'us per byte': f'{1e6 * seconds / (total - made):.0f}',
        'memory of the process, MB': f'{memory[-1]:.0f}',
        'grown since the first row, MB': f'{memory[-1] - memory[0]:.1f}',
      }
    )
    made = total
  return rows


def resident_bytes() -> int:
  """Memory that this process holds now (Linux)."""
  fields = pathlib.Path('/proc/self/statm').read_text().split()
  return int(fields[1]) * resource.getpagesize()


def _model(sizes: Sizes, layers: int) -> tuple[lm.ByteLM, Any]:
  model = sizes.model.copy(masks=(sizes.mask,), layers=layers)
  ids = jnp.ones((1, 4), jnp.int32)
  return model, jax.jit(model.init)(jax.random.key(0), ids)['params']


def _read(model: Any, params: Any, position: int, length: int) -> Any:
  """The cache of `length` after so many random bytes, read in chunks."""
  extend = jax.jit(
    lambda params, ids, cache: model.apply(
      {'params': params}, ids, jnp.ones_like(ids), cache
    )[1],
    donate_argnums=2,
  )
  cache = model.init_cache(1, length)
  rng = np.random.default_rng(0)
  for start in range(0, position, _CHUNK):
    size = min(_CHUNK, position - start)
    ids = jnp.asarray(rng.integers(4, 260, (1, size)), jnp.int32)
    cache = extend(params, ids, cache)
  return cache


def _generate(step: Any, params: Any, cache: Any, new_bytes: int) -> None:
  state = loop.generate(
    step,
    params,
    jax.tree.map(jnp.copy, cache),
    jnp.full((1, 1), 40, jnp.int32),
    jnp.ones(1, jnp.int32),
    jax.random.split(jax.random.key(0), 1),
    chain.parse('greedy'),
    num_tokens=new_bytes,
  )
  jax.block_until_ready(state.ids_BN)
