"""What one accelerator gets out of the models: `python -m bench.accelerator`.

Prints tables of train steps in bf16 and their share of the peak (MFU), of
decoding, of the sampler chain and of attention, with the hardware's name.
--quick takes tiny shapes, for any device; --profile=DIR keeps a trace of the
train steps, which says where the rest of their time goes.
"""

import contextlib
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from bench import accelerator_attention
from bench import accelerator_sizes
from bench import decoding
from bench import queued
from bench import samplers
from bench import tables
from bench import timing
from configs import command
from models import flops
from models import forward
from samplers import chain
from training import estimate
from training import liveness
from training import objectives
from training import optimizer
from training import step as step_lib

PARTS = ('training', 'decoding', 'samplers', 'attention')
# Of the memory that a device says it has.
_FILLED = 0.9
_TEXT = pathlib.Path(contextlib.__file__)


class Peak(NamedTuple):
  """Of the device: FLOPs and bytes per second, bytes, and where they are from.

  measured: bf16 FLOPs per second of its fastest matmul.
  """

  flops: float
  bandwidth: float | None
  memory: float | None
  source: str
  measured: float


def main(_: Sequence[str]) -> None:
  command.quiet()
  with command.explained('bench.accelerator'):
    values = flags.FLAGS
    sizes = accelerator_sizes.FULL
    if values.quick:
      sizes = accelerator_sizes.QUICK
    for text in report(sizes, values.only, values.rounds, values.profile):
      print(text, flush=True)


def report(
  sizes: accelerator_sizes.Sizes,
  parts: Sequence[str],
  rounds: int,
  profile: str | None = None,
) -> Iterator[str]:
  """What is printed, table by table; ValueError for a part there is not."""
  if unknown := set(parts) - set(PARTS):
    raise ValueError(
      f'--only={unknown.pop()} is no part; choose among {", ".join(PARTS)}.'
    )
  peak = peak_of(jax.devices()[0], sizes.matmuls)
  bandwidth = f'{peak.bandwidth / 1e12:.3g} TB/s' if peak.bandwidth else '-'
  yield (
    f'{jax.devices()[0].device_kind}, jax {jax.__version__}; peak'
    f' {peak.flops / 1e12:.4g} TFLOP/s in bf16 ({peak.source}), memory'
    f' {bandwidth}; fastest matmul here {peak.measured / 1e12:.4g} TFLOP/s\n'
  )
  made = {
    'training': lambda: training_rows(sizes, rounds, peak, profile),
    'decoding': lambda: decoding_rows(sizes, rounds, peak),
    'samplers': lambda: sampler_rows(sizes, rounds),
    'attention': lambda: accelerator_attention.rows(
      sizes, rounds, peak.memory and _FILLED * peak.memory
    ),
  }
  for part in PARTS:
    if part in parts:
      yield tables.markdown(list(made[part]()))


def peak_of(device: jax.Device, sizes: tuple[int, ...]) -> Peak:
  """Of a known chip that of its data sheet, else what a matmul reaches."""
  measured = max(map(_matmul_flops, sizes))
  name = _chip(device.device_kind)
  limit = (device.memory_stats() or {}).get('bytes_limit')
  if name is None:
    return Peak(measured, None, limit, 'measured', measured)
  chip = estimate.CHIPS[name]
  limit = limit or chip.memory
  return Peak(
    chip.flops, chip.bandwidth, limit, f'data sheet of {name}', measured
  )


def _chip(kind: str) -> str | None:
  """The name in CHIPS of a kind of device, as 'NVIDIA H200'; None if none."""
  kind = kind.replace('v5 lite', 'v5e').replace('v6 lite', 'v6e')
  return next((name for name in estimate.CHIPS if name in kind), None)


def _matmul_flops(size: int) -> float:
  x = jnp.ones((size, size), jnp.bfloat16)
  product = jax.jit(jnp.matmul)
  run = functools.partial(queued.several, lambda: product(x, x))
  run()
  return 2 * size**3 * queued.REPEATS / min(timing.clock(run) for _ in range(3))


def training_rows(
  sizes: accelerator_sizes.Sizes,
  rounds: int,
  peak: Peak,
  profile: str | None = None,
) -> Iterator[dict[str, object]]:
  """One row per model: bytes per second and MFU at the rows that fit."""
  for name, model in sizes.models.items():
    rows, run = _fitted(model, sizes, peak)
    metrics = run()
    with contextlib.ExitStack() as stack:
      if profile:
        stack.enter_context(jax.profiler.trace(f'{profile}/{name}'))
      seconds = timing.spread([timing.clock(run) for _ in range(rounds)])
    patch_bytes = None
    if 'patches' in metrics.means:
      patch_bytes = 1 / float(metrics.means['patches'])
    parts = flops.per_byte(model, length=sizes.length, patch_bytes=patch_bytes)
    spent = flops.computed(model, length=sizes.length, rows=rows)
    ids = rows * sizes.length
    needed = 3 * parts.total * ids / seconds.median
    spent = flops.training(model, spent) * ids / seconds.median
    yield {
      'train step': f'{name}, {_millions(model)}M parameters',
      'rows': f'{rows} x {sizes.length}',
      'bytes per patch': f'{patch_bytes:.2f}' if patch_bytes else '-',
      'ms': f'{1e3 * seconds.median:.1f}',
      'bytes/s': f'{ids / seconds.median:.0f}',
      'TFLOP/s needed': f'{needed / 1e12:.3g}',
      'MFU': f'{100 * needed / peak.flops:.3g}%',
      'computed, of peak': f'{100 * spent / peak.flops:.3g}%',
      'MFU of fastest matmul': f'{100 * needed / peak.measured:.3g}%',
    }


def _fitted(
  model: nn.Module, sizes: accelerator_sizes.Sizes, peak: Peak
) -> tuple[int, Any]:
  """The most rows whose step fits into memory, and the step.

  The step takes and keeps one state, and gives its metrics.
  """
  rows = sizes.rows
  if peak.memory:
    rows = _rows_on_paper(model, sizes, _FILLED * peak.memory)
  while True:
    state, step, batch = _compiled(model, sizes, rows)
    memory = step.memory_analysis()
    asked = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    if not peak.memory or asked <= _FILLED * peak.memory or rows == 1:
      break
    rows //= 2
  kept = [state()]

  def run() -> step_lib.Metrics:
    kept[0], metrics = step(kept[0], batch)
    return jax.block_until_ready(metrics)

  return rows, run


def _rows_on_paper(
  model: nn.Module, sizes: accelerator_sizes.Sizes, room: float
) -> int:
  """The power of two of rows that leaves room for 16 bytes per parameter."""
  params = _shapes(model)
  stored = ('entropy',) if hasattr(model, 'entropy') else ()
  per_row = liveness.activation_bytes(
    objectives.NextToken(), forward.pure(model), params, sizes.length, stored
  )
  room -= 16 * sum(leaf.size for leaf in jax.tree.leaves(params))
  return 2 ** max(int(room // per_row).bit_length() - 1, 0)


def _compiled(
  model: nn.Module, sizes: accelerator_sizes.Sizes, rows: int
) -> tuple[Any, Any, dict[str, jax.Array]]:
  """A function that makes the state, the compiled step, and a batch."""
  transform = optimizer.AdamW(frozen=('^entropy/',)).build(1000)
  key = jax.random.key(0)

  @jax.jit
  def make() -> step_lib.TrainState:
    ids_BT = jnp.zeros((1, 8), jnp.int32)
    params = model.init(key, ids_BT)['params']
    return step_lib.create(params, transform, key)

  step = jax.jit(
    functools.partial(
      step_lib.train_step,
      objective=objectives.NextToken(),
      apply=forward.counted(model),
      optimizer=transform,
    ),
    donate_argnames=('state',),
  )
  batch = _batch(model, rows, sizes.length)
  return make, step.lower(jax.eval_shape(make), batch).compile(), batch


def _batch(model: nn.Module, rows: int, length: int) -> dict[str, jax.Array]:
  """Random bytes, and entropies that make patches of usual length."""
  rng = np.random.default_rng(0)
  ids_BT = rng.integers(4, 260, (rows, length + 1)).astype(np.int32)
  batch = {
    'ids': ids_BT[:, :-1],
    'targets': ids_BT[:, 1:],
    'documents': np.ones((rows, length), np.int32),
    'mask': np.ones((rows, length), np.float32),
  }
  if hasattr(model, 'entropy'):
    threshold = model.model.patching.rule.threshold
    share = 1 / flops.usual_patch(model)
    ends_BT = rng.random((rows, length)) < share
    batch['entropy'] = (threshold + ends_BT - 0.5).astype(np.float16)
  return jax.tree.map(jnp.asarray, batch)


def _shapes(model: nn.Module) -> Any:
  ids_BT = jnp.zeros((1, 8), jnp.int32)
  return jax.eval_shape(model.init, jax.random.key(0), ids_BT)['params']


def _millions(model: nn.Module) -> str:
  size = sum(leaf.size for leaf in jax.tree.leaves(_shapes(model)))
  return f'{size / 1e6:.3g}'


def decoding_rows(
  sizes: accelerator_sizes.Sizes, rounds: int, peak: Peak
) -> Iterator[dict[str, object]]:
  """Greedy decoding, weights in bf16; the floor reads weights and caches."""
  text = np.frombuffer(_TEXT.read_bytes(), np.uint8)[: decoding.PROMPT]
  for name, model in sizes.models.items():
    init = jax.jit(model.init)
    params = init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    weights = sum(
      leaf.nbytes
      for path, leaf in jax.tree_util.tree_leaves_with_path(params)
      if 'table' not in jax.tree_util.keystr(path)
    )
    for batch in sizes.batches:
      prompt_BT = np.tile(text.astype(np.int64) + 4, (batch, 1))
      run = decoding.our_decode(model, params, prompt_BT, sizes.new_bytes)
      run()
      seconds = timing.spread([timing.clock(run) for _ in range(rounds)])
      length = prompt_BT.shape[1] + sizes.new_bytes
      cache = jax.eval_shape(functools.partial(model.init_cache, batch, length))
      cached = sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)
      )
      floor = None
      if peak.bandwidth:
        floor = sizes.new_bytes * (weights + cached) / peak.bandwidth
      yield {
        'greedy decoding': f'{name}, batch {batch}',
        'bytes/s': f'{batch * sizes.new_bytes / seconds.median:.0f}',
        'us per step': f'{1e6 * seconds.median / sizes.new_bytes:.0f}',
        'memory floor, of the time': (
          f'{floor / seconds.median:.0%}' if floor else '-'
        ),
      }


def sampler_rows(
  sizes: accelerator_sizes.Sizes, rounds: int
) -> Iterator[dict[str, object]]:
  """The whole chain and a draw, many of them queued at once."""
  for num_ids in sizes.vocabularies:
    for kind in ('text', 'flat'):
      logits_BV = jnp.asarray(samplers.logits(kind, num_ids))
      keys_B = jax.random.split(jax.random.key(0), samplers.BATCH)
      row: dict[str, object] = {
        'logits': f'{kind}, {samplers.BATCH} x {num_ids}'
      }
      for name, text in (
        ('chain and draw, us', samplers.CHAIN),
        ('draw alone, us', 'temperature(1)'),
      ):
        draw = functools.partial(jax.jit(chain.parse(text)), keys_B, logits_BV)
        run = functools.partial(queued.several, draw)
        run()
        seconds = timing.spread([timing.clock(run) for _ in range(rounds)])
        row[name] = f'{1e6 * seconds.median / queued.REPEATS:.1f}'
      yield row


def define_flags() -> None:
  """To be called before flags are parsed."""
  flags.DEFINE_bool('quick', False, 'Tiny shapes, to see it run.')
  flags.DEFINE_list('only', list(PARTS), 'What to measure.')
  flags.DEFINE_integer('rounds', 5, 'Timed rounds.', lower_bound=1)
  flags.DEFINE_string('profile', None, 'Folder for traces of train steps.')


if __name__ == '__main__':
  define_flags()
  command.run(main)
