"""Trains the model of a config file; run again to resume.

python train.py --config=configs/tiny.py --workdir=runs/tiny
"""

import dataclasses
import functools
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from absl import logging
from jax.sharding import PartitionSpec as P

from configs import base
from configs import cluster
from configs import command
from configs import dry_run
from configs import fitting
from configs import patch_check
from configs import stored
from data import pipeline
from data import text
from models import event_lm
from models import forward
from training import checkpoint
from training import host
from training import logger as logger_lib
from training import metrics as metrics_lib
from training import sharding
from training import step as step_lib
from training import stopping
from training import workdir as workdir_lib

_CONFIG = flags.DEFINE_string('config', None, 'Experiment file.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory.')
_SET = flags.DEFINE_multi_string('set', [], 'Field to change: path=value.')
_TENSORBOARD = flags.DEFINE_bool(
  'tensorboard', False, 'Also write TensorBoard event files.'
)
_STOP_CODE = flags.DEFINE_integer(
  'stop_code', 0, 'Exit code of a run that SIGTERM stopped; 75: start it again.'
)
_CLUSTER = cluster.define_flags()
_DRY_RUN = dry_run.define_flags()

# These may differ between a run and its continuation.
_OPERATIONAL = (
  'log_every',
  'eval_every',
  'eval_bytes',
  'checkpoint_every',
  'keep',
  'mesh',
)


class Job(NamedTuple):
  """What the loop needs and does not change."""

  config: base.Config
  mesh: jax.sharding.Mesh
  train: text.Corpus
  documents: dict[str, text.Corpus]
  apply: Any
  step: Any


def main(_: Sequence[str]) -> None:
  command.quiet()
  host.keep_memory()
  with command.explained('train.py'):
    if not _CONFIG.value:
      known = ', '.join(base.experiments())
      raise ValueError(f'--config is missing; give an experiment, as {known}.')
    config = base.override(base.load(_CONFIG.value), _SET.value)
    if dry_run.run(config, _init, _DRY_RUN):
      return
    if not _WORKDIR.value:
      raise ValueError('--workdir is missing; name a folder for the run.')
    cluster.join(_CLUSTER)
    step = train(config, _WORKDIR.value, tensorboard=_TENSORBOARD.value)
    if jax.process_index() == 0:
      print(_next(config, _WORKDIR.value, step))
  if step < config.steps:
    sys.exit(_STOP_CODE.value)


def train(
  config: base.Config, workdir: str, *, tensorboard: bool = False
) -> int:
  """Trains to `config.steps`, resuming from the newest good checkpoint.

  Returns the last step done: an earlier one after SIGTERM. Nothing is written
  to `workdir` before config and data have proved to be usable.
  """
  mesh = config.mesh.build()
  sharding.check_batch(config.batch_size, config.accumulate, mesh)
  fitting.check(config)
  _check_owner(config, workdir_lib.read_config(workdir), workdir)
  config = fitting.with_codec(config, workdir_lib.read_config(workdir))
  with jax.set_mesh(mesh):
    optimizer = config.optimizer.build(config.steps)
    init = functools.partial(_init, config, optimizer)
    shapes = jax.eval_shape(init)
    shardings = sharding.shard_tree(shapes, mesh, config.shardings)
    job = _make_job(config, mesh, optimizer, shardings)
    with (
      workdir_lib.hold(workdir),
      checkpoint.Checkpoints(
        workdir,
        config=base.to_json(config),
        keep=config.keep,
        every=config.checkpoint_every,
      ) as checkpoints,
    ):
      _check_owner(config, workdir_lib.read_config(workdir), workdir)
      target = jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
        shapes,
        shardings,
      )
      restored = checkpoints.restore(target)
      _check_owner(config, restored and restored.config, workdir)
      if jax.process_index() == 0:
        workdir_lib.write_config(workdir, base.to_json(config))
      if restored is None:
        state, start = jax.jit(init, out_shardings=shardings)(), 0
        params = _begin(config, state.params, job.train)
        state = state._replace(params=params)
        patch_check.check(config, params, job.train)
      else:
        _check_corpus(job, restored.extra, workdir)
        state, start = restored.state, restored.extra['batches']
        logging.info('resuming from checkpoint %d in %s', start, workdir)
      with metrics_lib.Writer(
        workdir, step=start, tensorboard=tensorboard
      ) as writer:
        return _loop(job, state, start, checkpoints, writer)


def _loop(
  job: Job,
  state: step_lib.TrainState,
  start: int,
  checkpoints: checkpoint.Checkpoints,
  writer: metrics_lib.Writer,
) -> int:
  """Evaluate, save, take a batch, dispatch a step, log the step before.

  Returns the last step done.
  """
  config = job.config
  batches = pipeline.iterate(_batches(job, state.params), start=start)
  rows = sharding.batch_sharding(job.mesh)
  bytes_per_id = job.train.bytes_per_id
  bytes_per_step = config.batch_size * config.row_length * bytes_per_id
  logger = logger_lib.Logger(
    writer,
    config.optimizer.schedule(config.steps),
    start=start,
    steps=config.steps,
    every=config.log_every,
    bytes_per_step=bytes_per_step,
    bytes_per_id=bytes_per_id,
  )
  pending = None
  with (
    stopping.stop_signal() as asked,
    metrics_lib.Progress(
      config.steps, bytes_per_step=bytes_per_step, every=config.log_every,
      step=start,
    ) as progress,
  ):  # fmt: skip
    for step in range(start, config.steps + 1):
      last = step == config.steps
      stop = asked(step)
      scores = last or step % config.eval_every == 0
      saves = last or stop or step % config.checkpoint_every == 0
      if step > start and (scores or saves):
        # Metrics of a step stand in the file before its checkpoint exists.
        logger.log(pending, progress)
        pending = None
        with logger.paused():
          if scores:
            found = evaluate(job, state.params, 'validation')
            writer.write(step, found)
            progress.say(f'step {step}  {_listed(found)}')
          if saves:
            extra = {'batches': step, 'corpus': _fingerprint(job)}
            checkpoints.save(step, state, extra=extra, force=True)
            logger.saved = step
      if last or stop:
        checkpoints.wait()  # For as long as SIGTERM cannot end it.
        break
      batch = sharding.put_batch(next(batches), rows)
      with (
        jax.profiler.StepTraceAnnotation('train', step_num=step),
        jax.transfer_guard('disallow'),
      ):
        state, values = job.step(state, batch)
      logger.log(pending, progress)
      pending = (step + 1, values)
  return step


def evaluate(job: Job, params: Any, split: str) -> dict[str, float]:
  """The config's evaluators on one split, keys `eval/<split>/<metric>`."""
  results = {}
  for evaluator in job.config.evals:
    found = evaluator.run(
      job.apply,
      params,
      job.documents[split],
      max_bytes=job.config.eval_bytes,
    )
    results |= {f'eval/{split}/{name}': value for name, value in found.items()}
  return results


def _make_job(
  config: base.Config,
  mesh: jax.sharding.Mesh,
  optimizer: Any,
  shardings: step_lib.TrainState,
) -> Job:
  """Opens the data and builds the jitted step."""
  step = jax.jit(
    functools.partial(
      step_lib.train_step,
      objective=config.objective,
      apply=forward.counted(config.model),
      optimizer=optimizer,
      accumulate=config.accumulate,
    ),
    donate_argnames=('state',),
    compiler_options=host.compiler_options(),
    # As it came: a state placed in another way would compile the step again.
    out_shardings=(shardings, jax.sharding.NamedSharding(mesh, P())),
  )
  train = config.data.open('train')
  documents = {'validation': config.data.open('validation')}
  apply = forward.pure(config.model)
  return Job(config, mesh, train, documents, apply, step)


def _batches(job: Job, params: Any) -> Any:
  """Batches by number, with what the model reads besides ids."""
  config = job.config
  return pipeline.batches(
    job.train,
    row_length=config.row_length,
    batch_size=config.batch_size,
    seed=config.seed,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    stored=stored.entropies(config, params, job.train),
    rows=config.rows,
  )


def _begin(config: base.Config, params: Any, corpus: text.Corpus) -> Any:
  """The parameters that a run begins with, placed like `params`."""
  for source in config.initial:
    params = jax.tree.map(
      lambda new, old: jax.device_put(new, old.sharding).astype(old.dtype),
      source(config, params, corpus),
      params,
    )
  return params


def _init(config: base.Config, optimizer: Any) -> step_lib.TrainState:
  key = jax.random.key(config.seed)
  init_key, train_key = jax.random.split(key)
  ids_BT = jnp.zeros((1, min(8, config.row_length)), jnp.int32)
  params = config.model.init(init_key, ids_BT)['params']
  return step_lib.create(params, optimizer, train_key)


def _check_owner(
  config: base.Config, stored: dict[str, Any] | None, workdir: str
) -> None:
  """ValueError if the run directory was made with another config."""
  if stored is None:
    return
  same = {name: getattr(config, name) for name in _OPERATIONAL}
  before = base.from_json(stored)
  before = fitting.as_given(dataclasses.replace(before, **same))
  changed = base.differences(before, fitting.as_given(config))
  if changed:
    raise ValueError(
      f'{workdir} belongs to another config ({"; ".join(changed[:3])});'
      ' give a new --workdir, or the config it was made with.'
    )


def _fingerprint(job: Job) -> str:
  """The hash of the text that the run is trained and scored on."""
  return job.documents['validation'].metadata['content_sha256']


def _check_corpus(job: Job, extra: dict[str, Any], workdir: str) -> None:
  """ValueError if the text is no longer what the checkpoint was trained on."""
  if extra['corpus'] != _fingerprint(job):
    raise ValueError(
      f'the documents of {job.config.data} have changed since {workdir} was'
      ' trained on them; put the old ones back, or give a new'
      ' --workdir.'
    )


def _listed(scores: dict[str, float | None]) -> str:
  """Spells evaluation metrics for a line of the log; counts are left out."""
  return '  '.join(
    f'{name.removeprefix("eval/")} {value:.4f}'
    for name, value in scores.items()
    if isinstance(value, float)
  )


def _next(config: base.Config, workdir: str, step: int) -> str:
  """Where the run is, and what to do with it."""
  at = shlex.quote(workdir)
  use = f"python sample.py --checkpoint={at} --prompt='def '"
  if isinstance(config.model, event_lm.EventLM):
    use = (
      f'python -m evals.events predict --checkpoint={at} --input=FILE'
      ' --out=FILE'
    )
  elif not hasattr(config.model, 'init_cache'):
    use = f'python eval.py --checkpoint={at} --split=train --out=FILE'
  if step < config.steps:
    return (
      f'stopped at step {step} of {config.steps}; {at} resumes when the same'
      ' command runs again'
    )
  return (
    f'{at} holds the trained model; next:\n'
    f'  python eval.py --checkpoint={at}\n'
    f'  {use}'
  )


if __name__ == '__main__':
  command.run(main)
