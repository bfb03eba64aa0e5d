"""Trains the model of a config file; run again to resume.

  python train.py --config=configs/tiny.py --workdir=runs/tiny
"""

import contextlib
import dataclasses
import functools
import math
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

from configs import base
from configs import cluster
from configs import command
from data import pipeline
from data import text
from models import forward
from training import checkpoint
from training import host
from training import metrics as metrics_lib
from training import sharding
from training import step as step_lib
from training import workdir as workdir_lib

_CONFIG = flags.DEFINE_string('config', None, 'Experiment file.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory.')
_SET = flags.DEFINE_multi_string('set', [], 'Field to change: path=value.')
_TENSORBOARD = flags.DEFINE_bool(
  'tensorboard', False, 'Also write TensorBoard event files.'
)
_CLUSTER = cluster.define_flags()

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
  batches: Any
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
    if not _WORKDIR.value:
      raise ValueError('--workdir is missing; name a folder for the run.')
    cluster.join(_CLUSTER)
    config = base.override(base.load(_CONFIG.value), _SET.value)
    step = train(config, _WORKDIR.value, tensorboard=_TENSORBOARD.value)
    if jax.process_index() == 0:
      print(_next(_WORKDIR.value, step, config.steps))


def train(
  config: base.Config, workdir: str, *, tensorboard: bool = False
) -> int:
  """Trains to `config.steps`, resuming from the newest good checkpoint.

  Returns the last step done: an earlier one after SIGTERM. Nothing is written
  to `workdir` before config and data have proved to be usable.
  """
  mesh = config.mesh.build()
  sharding.check_batch(config.batch_size, config.accumulate, mesh)
  _check_window(config)
  _check_owner(config, workdir_lib.read_config(workdir), workdir)
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
  batches = pipeline.iterate(job.batches, start=start)
  rows = sharding.batch_sharding(job.mesh)
  bytes_per_step = config.batch_size * config.row_length
  logger = _Logger(config, writer, start)
  pending = None
  with (
    _stop_signal() as stopping,
    metrics_lib.Progress(
      config.steps, bytes_per_step=bytes_per_step, every=config.log_every,
      step=start,
    ) as progress,
  ):  # fmt: skip
    for step in range(start, config.steps + 1):
      last = step == config.steps
      stop = stopping(step)
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


class _Logger:
  """Writes the metrics of a finished step while the next one runs."""

  def __init__(
    self, config: base.Config, writer: metrics_lib.Writer, start: int
  ) -> None:
    self._config = config
    self._writer = writer
    # All at once: an operation now and then would wait for the step that runs.
    schedule = jax.jit(config.optimizer.schedule(config.steps))
    self._rate_N = np.asarray(schedule(jnp.arange(config.steps)))
    self._last = (start, time.monotonic())
    self.saved = start

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Keeps the time spent inside out of the seconds per step."""
    began = time.monotonic()
    yield
    step, then = self._last
    self._last = (step, then + time.monotonic() - began)

  def log(
    self,
    pending: tuple[int, step_lib.Metrics] | None,
    progress: metrics_lib.Progress,
  ) -> None:
    """Checks, shows and, when due, writes one step's metrics."""
    if pending is None:
      return
    step, values = pending
    if not values.finite:
      good = f'checkpoint {self.saved} is good'
      raise FloatingPointError(
        f'loss or gradient is not finite at step {step} (loss'
        f' {float(values.loss)}, gradient norm {float(values.gradient_norm)});'
        f' {good if self.saved else "there is no checkpoint yet"}: try a'
        ' lower optimizer.learning_rate, more optimizer.warmup_steps, a lower'
        " optimizer.clip or model.dtype='float32', in a new --workdir."
      )
    bits = float(values.means['nats']) / math.log(2)
    progress.report(step, bits)
    if step % self._config.log_every and step != self._config.steps:
      return
    now = time.monotonic()
    seconds = (now - self._last[1]) / max(step - self._last[0], 1)
    self._last = (step, now)
    targets = self._config.batch_size * self._config.row_length
    self._writer.write(
      step,
      {
        'train/loss': values.loss,
        'train/bits_per_byte': bits,
        'train/gradient_norm': values.gradient_norm,
        'train/learning_rate': self._rate_N[step - 1],
        'time/step_seconds': seconds,
        'time/bytes_per_second': targets / seconds,
      }
      | {f'train/{name}': value for name, value in values.means.items()},
    )


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
  """Opens the data (process 0 prepares it first) and builds the jitted step."""
  if jax.process_index() == 0:
    config.data.prepare()
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('data prepared')
  corpus = config.data.open('train')
  batches = pipeline.batches(
    corpus,
    row_length=config.row_length,
    batch_size=config.batch_size,
    seed=config.seed,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  apply = forward.pure(config.model)
  step = jax.jit(
    functools.partial(
      step_lib.train_step,
      objective=config.objective,
      apply=apply,
      optimizer=optimizer,
      accumulate=config.accumulate,
    ),
    donate_argnames=('state',),
    compiler_options=host.compiler_options(),
    # As it came: a state placed in another way would compile the step again.
    out_shardings=(shardings, jax.sharding.NamedSharding(mesh, P())),
  )
  documents = {'validation': config.data.open('validation')}
  return Job(config, mesh, batches, documents, apply, step)


def _init(config: base.Config, optimizer: Any) -> step_lib.TrainState:
  key = jax.random.key(config.seed)
  init_key, train_key = jax.random.split(key)
  ids_BT = jnp.zeros((1, min(8, config.row_length)), jnp.int32)
  params = config.model.init(init_key, ids_BT)['params']
  return step_lib.create(params, optimizer, train_key)


def _check_window(config: base.Config) -> None:
  """ValueError if a row is longer than the model accepts."""
  rows = {'row_length': config.row_length}
  for number, evaluator in enumerate(config.evals):
    rows[f'evals.{number}.window'] = getattr(evaluator, 'window', 1)
  longest = config.model.max_length
  for name, length in rows.items():
    if longest is not None and length > longest:
      raise ValueError(
        f'{name}={length} exceeds model.max_length={longest}; lower the first'
        ' or raise the second.'
      )


def _check_owner(
  config: base.Config, stored: dict[str, Any] | None, workdir: str
) -> None:
  """ValueError if the run directory was made with another config."""
  if stored is None:
    return
  same = {name: getattr(config, name) for name in _OPERATIONAL}
  before = base.from_json(stored)
  changed = base.differences(dataclasses.replace(before, **same), config)
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
      f'the text of data.source={job.config.data.source} has changed since'
      f' {workdir} was trained on it; put the old text back, or give a new'
      ' --workdir.'
    )


def _listed(scores: dict[str, float | None]) -> str:
  """Spells evaluation metrics for a line of the log; counts are left out."""
  return '  '.join(
    f'{name.removeprefix("eval/")} {value:.4f}'
    for name, value in scores.items()
    if isinstance(value, float)
  )


def _next(workdir: str, step: int, steps: int) -> str:
  """Where the run is, and what to do with it."""
  at = shlex.quote(workdir)
  if step < steps:
    return (
      f'stopped at step {step} of {steps}; {at} resumes when the same command'
      ' runs again'
    )
  return (
    f'{at} holds the trained model; next:\n'
    f'  python eval.py --checkpoint={at}\n'
    f"  python sample.py --checkpoint={at} --prompt='def '"
  )


@contextlib.contextmanager
def _stop_signal() -> Iterator[Any]:
  """Yields a function of the step: was this job asked to stop?"""
  asked = []
  previous = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))

  def stopping(step: int) -> bool:
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return bool(asked)

  try:
    yield stopping
  finally:
    signal.signal(signal.SIGTERM, previous)


if __name__ == '__main__':
  command.run(main)
