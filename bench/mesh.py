"""Compiles a config's train step for devices that are not there.

python -m bench.mesh --config=configs/blt_1b.py --devices=64

Nothing is run and no array is made: shapes are compiled for virtual devices of
the CPU. Prints what the program asks of a device, and the collectives in it
beside those that a dry run expects. They are read from the program as it is
partitioned, which is alike for all kinds of devices; what a CPU's compiler does
to them later, as to make float32 of bfloat16, is of no interest.
"""

import collections
import functools
import json
import pathlib
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bench import collectives
from bench import tables
from configs import base
from configs import command
from configs import dry_run
from models import forward
from training import estimate
from training import liveness
from training import sharding
from training import step as step_lib
from training import traffic

# Of a batch, besides int32 ids.
_NUMBERS = {'mask': 'float32', 'entropy': 'float16'}
# The partitioner comes before all that the first leaves out. The pass removes
# the barriers that make recomputed layers wait for their turn, which GPUs and
# TPUs keep until the order is settled: without them all are recomputed at once.
_OPTIONS = {
  'xla_backend_optimization_level': 0,
  'xla_disable_hlo_passes': 'cse_barrier_expander',
}
_PASS = 'spmd-partitioning'


def main(_: Sequence[str]) -> None:
  values = flags.FLAGS
  command.quiet()
  with command.explained('bench.mesh'):
    if not values.config:
      raise ValueError('--config is missing; give one, as configs/blt_1b.py.')
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', values.devices)
    # What is not compiled leaves no partitioned program.
    jax.config.update('jax_enable_compilation_cache', False)
    config = base.override(base.load(values.config), values.set)
    for line in report(dry_run.with_columns(config), values.hlo):
      print(line, flush=True)


def report(config: base.Config, hlo: str | None = None) -> Iterator[str]:
  """Paragraphs and tables about the compiled step of a config.

  hlo: file that the partitioned program is written to.
  """
  mesh = config.mesh.build()
  sharding.check_batch(config.batch_size, config.accumulate, mesh)
  began = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    program = compile_step(config, mesh, folder)
    text = partitioned(folder)
  yield (
    f'{sharding.described(mesh.shape)} = {mesh.size} virtual devices, compiled'
    f' in {time.monotonic() - began:.0f} s'
  )
  yield _memory_line(program, config, mesh)
  if hlo:
    pathlib.Path(hlo).write_text(text, encoding='utf-8')
  found = collectives.find(text, dict(mesh.shape))
  yield tables.markdown(list(rows(found)))
  yield tables.markdown(list(largest(found)))
  params = jax.eval_shape(functools.partial(_init, config)).params
  plan = estimate.planned(config, mesh, dry_run.stored(config.model))
  paper = traffic.sent(plan, params, dry_run.uses(config))
  yield tables.markdown(list(compared(found, paper)))


def compile_step(
  config: base.Config, mesh: jax.sharding.Mesh, folder: str | pathlib.Path
) -> jax.stages.Compiled:
  """The train step as train.py runs it, of shapes alone.

  folder: XLA leaves there what `partitioned` looks for.
  """
  options = {
    'xla_dump_to': str(folder),
    'xla_dump_hlo_as_text': True,
    'xla_dump_hlo_pass_re': _PASS,
    'xla_dump_hlo_module_re': '.*train_step.*',
  }
  with jax.set_mesh(mesh):
    shapes = jax.eval_shape(functools.partial(_init, config))
    places = sharding.shard_tree(shapes, mesh, config.shardings)
    state = jax.tree.map(
      lambda leaf, where: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=where
      ),
      shapes,
      places,
    )
    step = jax.jit(
      functools.partial(
        step_lib.train_step,
        objective=config.objective,
        apply=forward.counted(config.model),
        optimizer=config.optimizer.build(config.steps),
        accumulate=config.accumulate,
      ),
      donate_argnames=('state',),
      compiler_options=_OPTIONS | options,
      out_shardings=(places, NamedSharding(mesh, P())),
    )
    return step.lower(state, _batch(config, mesh)).compile()


def partitioned(folder: str | pathlib.Path) -> str:
  """The program of one device as the partitioner made it."""
  (path,) = pathlib.Path(folder).glob(f'*.after_{_PASS}.*.txt')
  return path.read_text(encoding='utf-8')


def rows(
  found: Iterable[collectives.Collective],
) -> Iterator[dict[str, object]]:
  """Collectives by kind, axes, number format and depth of loops."""
  groups = collections.defaultdict(list)
  for one in found:
    groups[one.kind, one.axes, one.number, one.loops].append(one)
  order = sorted(groups, key=lambda key: -sum(x.total for x in groups[key]))
  for key in order:
    kind, axes, number, loops = key
    yield {
      'collective': kind,
      'axes': '+'.join(axes) or 'none',
      'numbers': number,
      'inside of loops': loops,
      'instructions': len(groups[key]),
      'runs per step': sum(one.times for one in groups[key]),
      'MB sent by a device per step': _mega(
        sum(one.total for one in groups[key])
      ),
    }


def largest(
  found: Iterable[collectives.Collective], count: int = 12
) -> Iterator[dict[str, object]]:
  """The instructions that send most, and the operations they come from."""
  for one in sorted(found, key=lambda one: -one.total)[:count]:
    yield {
      'collective': one.kind,
      'axes': '+'.join(one.axes) or 'none',
      'runs per step': one.times,
      'MB each': _mega(one.size),
      'MB per step': _mega(one.total),
      'of': _shortened(one.where),
    }


def compared(
  found: Iterable[collectives.Collective], paper: Iterable[traffic.Sent]
) -> Iterator[dict[str, object]]:
  """What is sent along each set of axes, as compiled and on paper."""
  compiled, expected = collections.Counter(), collections.Counter()
  reasons = collections.defaultdict(list)
  for one in found:
    compiled[one.axes] += one.total
  for one in paper:
    axes = tuple(sorted(one.axes))
    expected[axes] += one.size
    reasons[axes].append(f'{one.what} {_mega(one.size)}')
  compiled = {tuple(sorted(axes)): n for axes, n in compiled.items()}
  for axes in sorted({*compiled, *expected}):
    yield {
      'axes': '+'.join(axes) or 'none',
      'compiled, MB': _mega(compiled.get(axes, 0)),
      'on paper, MB': _mega(expected.get(axes, 0)),
      'on paper for': ', '.join(reasons.get(axes, ['nothing'])),
    }
  yield {
    'axes': 'all',
    'compiled, MB': _mega(sum(compiled.values())),
    'on paper, MB': _mega(sum(expected.values())),
    'on paper for': '',
  }


def _init(config: base.Config) -> step_lib.TrainState:
  ids_BT = jnp.zeros((1, min(8, config.row_length)), jnp.int32)
  key = jax.random.key(config.seed)
  params = config.model.init(key, ids_BT)['params']
  return step_lib.create(params, config.optimizer.build(config.steps), key)


def _batch(
  config: base.Config, mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  names = ('ids', 'targets', 'documents', 'mask')
  return {
    name: jax.ShapeDtypeStruct(
      (config.batch_size, config.row_length),
      _NUMBERS.get(name, 'int32' if name in names else 'float32'),
      sharding=sharding.batch_sharding(mesh),
    )
    for name in (*names, *dry_run.stored(config.model))
  }


def temporaries(config: base.Config, mesh: jax.sharding.Mesh) -> int:
  """Bytes of a device that a dry run expects besides state and batch."""
  state = jax.eval_shape(functools.partial(_init, config))
  per_row = liveness.activation_bytes(
    config.objective,
    forward.pure(config.model),
    state.params,
    config.row_length,
    dry_run.stored(config.model),
  )
  rows = estimate.rows_per_device(config, mesh)
  memory = estimate.memory_per_device(config, state, mesh, rows * per_row)
  return memory.gradients + memory.gathered + memory.activations


def in_float32(config: base.Config) -> base.Config:
  """The config with float32 where it has bfloat16, as CPUs compute it."""
  text = json.dumps(base.to_json(config))
  return base.from_json(json.loads(text.replace('"bfloat16"', '"float32"')))


def _memory_line(
  program: jax.stages.Compiled, config: base.Config, mesh: jax.sharding.Mesh
) -> str:
  memory = program.memory_analysis()
  flops = program.cost_analysis().get('flops', 0.0)
  return (
    f'of each device: state and batch'
    f' {memory.argument_size_in_bytes / 1e9:.3g} GB, of which'
    f' {memory.alias_size_in_bytes / 1e9:.3g} GB are given back;'
    f' temporaries {memory.temp_size_in_bytes / 1e9:.3g} GB, on paper'
    f' {temporaries(in_float32(config), mesh) / 1e9:.3g} GB in float32, as CPUs'
    f' compute, and {temporaries(config, mesh) / 1e9:.3g} GB in'
    f' {_numbers(config.model)}; XLA counts {flops:.3g} FLOPs, loops once\n'
  )


def _numbers(model: Any) -> str:
  """The number format that a model computes in, also one around another."""
  return getattr(model, 'dtype', None) or _numbers(model.model)


def _shortened(where: str) -> str:
  where = where.removeprefix('jit(train_step)/while/body/closed_call/')
  return where if len(where) < 100 else f'{where[:60]} ... {where[-30:]}'


def _mega(size: float) -> str:
  return f'{size / 1e6:.4g}'


def define_flags() -> None:
  """To be called before flags are parsed."""
  flags.DEFINE_string('config', None, 'Experiment file.')
  flags.DEFINE_multi_string('set', [], 'Field to change: path=value.')
  flags.DEFINE_string('hlo', None, 'File for the partitioned program.')
  flags.DEFINE_integer('devices', 64, 'Virtual devices.', lower_bound=1)


if __name__ == '__main__':
  define_flags()
  command.run(main)
