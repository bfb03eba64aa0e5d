"""A trained run of dense projections becomes one of structured ones.

Each matrix is replaced by the nearest of its structure, then a short training
lets dense matrices guide them (models.guided) for the first part of it. Until
the run is complete, a folder beside it holds what is done: scores, and
checkpoints of the training as those of train.py.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from configs import base
from configs import kept
from configs import restore
from configs import stored
from data import pipeline
from models import flops
from models import forward
from models import guided
from models import linear
from models import projections
from models import structured
from training import checkpoint
from training import host
from training import manifest
from training import sharding
from training import step as step_lib
from training import stopping
from training import workdir as workdir_lib


class Stage(NamedTuple):
  """A model on the validation split: a score and its standard error.

  measure: what the score is, as bits_per_byte. flops: of the forward pass, per
  byte; of tables per cell.
  """

  name: str
  measure: str
  score: float
  error: float | None
  flops: float
  parameters: int


class Converted(NamedTuple):
  """The config and parameters of the structured run, and how it got there.

  step: of the training, less than config.steps if it was asked to stop.
  """

  config: base.Config
  params: Any
  stages: list[Stage]
  step: int


def target(
  source: base.Config, like: base.Config, assignments: list[str]
) -> base.Config:
  """The source's config with the projections of another, a tenth as long.

  assignments: as --set, of the result. Raises ValueError if there is nothing
  structured in it.
  """
  layer = getattr(like.model, 'model', like.model).linear
  roles = [linear.of_role(layer, role) for role in linear.ROLES]
  if not any(isinstance(one, structured.Structured) for one in roles):
    raise ValueError(
      '--config has dense projections only, to which there is nothing to'
      ' convert; give one of structured ones, as configs/btt.py.'
    )
  config = dataclasses.replace(
    source,
    model=linear.with_linear(source.model, layer),
    initial=(),
    shardings=(*sharding.CORES, *source.shardings),
    steps=max(source.steps // 10, 1),
  )
  return base.override(config, assignments)


def convert(
  run: restore.Run, config: base.Config, lead: float, workdir: pathlib.Path
) -> Converted:
  """Projects the parameters of a run and trains them for config.steps steps.

  lead: part of the steps during which the dense matrices guide, 0 for none.
  workdir: run directory to make; called again, it goes on where it was stopped.
  """
  if not 0 <= lead <= 1:
    raise ValueError(f'--lead={lead} must be in [0, 1], as 0.5.')
  config.data.prepare()
  partial = workdir.with_name(f'{workdir.name}.incomplete')
  _check_free(workdir)
  with workdir_lib.hold(partial):
    file = kept.Kept(
      partial / 'stages.json', _setting(run, config, lead), kind='conversion',
      label='stages',
    )  # fmt: skip
    stages = file.read(lambda row: Stage(**row))
    if not stages:  # Checkpoints without them are of nobody knows what.
      shutil.rmtree(partial / 'checkpoints', ignore_errors=True)

    def judge(name: str, config: base.Config, params: Any) -> None:
      if name not in stages:
        stages[name] = measure(name, config, params)
        file.write({name: one._asdict() for name, one in stages.items()})

    judge('dense', run.config, run.params)
    guided = Training(config, lead)
    with checkpoint.Checkpoints(
      partial, config=base.to_json(config), keep=config.keep,
      every=config.checkpoint_every,
    ) as checkpoints:  # fmt: skip
      state = guided.begin(run, checkpoints)
      if not state.step:
        judge('projected', config, guided.student(state.params))
      state = guided.train(state, checkpoints)
    params, step = guided.student(state.params), int(state.step)
    if step == config.steps:
      judge(f'after {step} steps', config, params)
    made = Converted(config, params, list(stages.values()), step)
    if step == config.steps:
      save(made, workdir, partial)
  return made


def _check_free(workdir: pathlib.Path) -> None:
  if workdir.exists() and any(workdir.iterdir()):
    raise ValueError(
      f'--workdir={workdir} holds something already; name a new folder, since'
      ' nothing is overwritten.'
    )


def _setting(run: restore.Run, config: base.Config, lead: float) -> Any:
  """What decides on the result of a conversion, as JSON."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(run.params):
    digest.update(np.ascontiguousarray(leaf).tobytes())
  corpus = config.data.open('train')
  return {
    'config': base.to_json(config),
    'lead': lead,
    'parameters': digest.hexdigest(),
    'content_sha256': corpus.metadata['content_sha256'],
  }


def measure(name: str, config: base.Config, params: Any) -> Stage:
  """The first score with a standard error of the config's evaluators."""
  corpus, model = config.data.open('validation'), config.model
  for evaluator in config.evals:
    found = evaluator.run(
      forward.pure(model), params, corpus, max_bytes=config.eval_bytes
    )
    for score, value in found.items():
      if f'{score}_stderr' in found:
        return Stage(
          name,
          score,
          value,
          found[f'{score}_stderr'],
          flops.per_byte(model, length=config.row_length).total,
          sum(x.size for x in jax.tree.leaves(params)),
        )
  raise ValueError(
    f'evals={config.evals} measure nothing by which a conversion is judged;'
    ' train the run with one as evals.bits_per_byte.BitsPerByte.'
  )


def save(made: Converted, workdir: pathlib.Path, partial: pathlib.Path) -> None:
  """Writes a run directory, which appears whole or not at all.

  partial: folder where it is made, and which goes when it is there.
  """
  _check_free(workdir)
  whole = partial / 'run'
  shutil.rmtree(whole, ignore_errors=True)
  tree = base.to_json(made.config)
  workdir_lib.write_config(whole, tree)
  with checkpoint.Checkpoints(whole, config=tree) as checkpoints:
    checkpoints.save(made.config.steps, {'params': made.params}, force=True)
  stages = [stage._asdict() for stage in made.stages]
  text = json.dumps(stages, indent=2) + '\n'
  manifest.write_file(whole / 'conversion.json', text)
  whole.rename(workdir)
  shutil.rmtree(partial, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Training:
  """Structured layers that learn, at first guided by the dense ones.

  config: of the structured run. lead: part of its steps that are guided.
  """

  config: base.Config
  lead: float

  @property
  def _model(self) -> nn.Module:
    """The config's, its structured layers guided."""
    model = self.config.model
    layer = getattr(model, 'model', model).linear
    return linear.with_linear(model, guided.around(layer))

  def begin(
    self, run: restore.Run, checkpoints: checkpoint.Checkpoints
  ) -> step_lib.TrainState:
    """The state of the newest checkpoint, or the first one, of projections."""
    model = self._model
    optimizer = _optimizer(self.config, self.lead)
    key = jax.random.key(self.config.seed)
    shapes = _shapes(model)
    restored = checkpoints.restore(
      jax.eval_shape(lambda p: step_lib.create(p, optimizer, key), shapes)
    )
    if restored is not None:
      return restored.state
    params = projections.exchange(
      run.config.model, run.params, self.config.model
    )
    flat = traverse_util.flatten_dict(params, sep='/')
    share = float(int(self.lead * self.config.steps) > 0)
    led = _joined(shapes, flat, run, share=share)
    state = step_lib.create(led, optimizer, key)
    checkpoints.save(0, state, force=True)
    return state

  def train(
    self, state: step_lib.TrainState, checkpoints: checkpoint.Checkpoints
  ) -> step_lib.TrainState:
    """The state after config.steps steps, or where SIGTERM found it."""
    config = self.config
    step = jax.jit(
      functools.partial(
        step_lib.train_step,
        objective=config.objective,
        apply=forward.counted(self._model),
        optimizer=_optimizer(config, self.lead),
        accumulate=config.accumulate,
      ),
      donate_argnames=('state',),
      compiler_options=host.compiler_options(),
    )
    corpus = config.data.open('train')
    params = self.student(state.params)
    batches = pipeline.batches(
      corpus,
      row_length=config.row_length,
      batch_size=config.batch_size,
      seed=config.seed,
      stored=stored.entropies(config, params, corpus),
      rows=config.rows,
    )
    with stopping.stop_signal() as asked:
      for i in range(int(state.step), config.steps + 1):
        last = i == config.steps or asked(i)
        checkpoints.save(i, state, force=last)
        if last:
          checkpoints.wait()  # For as long as SIGTERM cannot end it.
          break
        state, metrics = step(state, jax.device_put(batches[i]))
        if not metrics.finite:
          raise ValueError(
            f'the loss is no number at step {i} of the conversion; lower'
            f' optimizer.learning_rate={config.optimizer.learning_rate}, with'
            ' another --workdir.'
          )
    return state

  def student(self, params: Any) -> Any:
    """The structured parameters among those of the guided model."""
    found = traverse_util.flatten_dict(params, sep='/')
    names = traverse_util.flatten_dict(_shapes(self.config.model), sep='/')
    return traverse_util.unflatten_dict(
      {name: found[_guided_name(name, found)] for name in names}, sep='/'
    )


def _shapes(model: nn.Module) -> Any:
  """Of the parameters of a model."""
  ids_BT = jnp.zeros((1, 8), jnp.int32)
  return jax.eval_shape(model.init, jax.random.key(0), ids_BT)['params']


def _joined(
  shapes: Any, flat: dict[str, jax.Array], run: restore.Run, share: float
) -> Any:
  """Parameters of the guided model: structured ones and their teachers."""
  dense = linear.with_linear(run.config.model, linear.Dense())
  teachers = traverse_util.flatten_dict(
    projections.exchange(run.config.model, run.params, dense), sep='/'
  )
  wanted = traverse_util.flatten_dict(shapes, sep='/')
  names = {_guided_name(name, wanted): name for name in flat}
  joined = {}
  for name, shape in wanted.items():
    path, _, kind = name.rpartition('/')
    # The state is donated, what it is made of is not.
    if kind == 'teacher':
      joined[name] = jnp.array(teachers[f'{path}/kernel'])
    elif kind == 'share':
      joined[name] = jnp.full(shape.shape, share)
    else:
      joined[name] = jnp.array(flat[names[name]])
  return traverse_util.unflatten_dict(joined, sep='/')


def _guided_name(name: str, known: dict[str, Any]) -> str:
  """Where a parameter stands in the guided model."""
  path, _, leaf = name.rpartition('/')
  inside = f'{path}/structure/{leaf}'
  return inside if inside in known else name


def _optimizer(
  config: base.Config, lead: float
) -> optax.GradientTransformation:
  """The config's for all parameters but teachers, which stay, and shares."""

  def kinds(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
      lambda path, _: {'share': 'share', 'teacher': 'teacher'}.get(
        sharding.name(path).rpartition('/')[2], 'rest'
      ),
      params,
    )

  return optax.partition(
    {
      'share': _following(int(lead * config.steps)),
      'teacher': optax.set_to_zero(),
      'rest': config.optimizer.build(config.steps),
    },
    kinds,
  )


def _following(steps: int) -> optax.GradientTransformation:
  """Takes a value along half a cosine to 0, whatever its gradient.

  steps: that this takes from 1; a value of 0 stays with 0 of them.
  """

  def value(count: jax.Array) -> jax.Array:
    done = jnp.minimum(count / max(steps, 1), 1.0) if steps else 1.0
    return (1 + jnp.cos(jnp.pi * done)) / 2

  def update(updates: Any, count: jax.Array, _: Any = None) -> Any:
    change = value(count + 1) - value(count)
    return jax.tree.map(lambda x: jnp.full_like(x, change), updates), count + 1

  return optax.GradientTransformation(
    lambda _: jnp.zeros((), jnp.int32), update
  )


def table(stages: list[Stage]) -> list[str]:
  """The score of every stage beside what the model costs."""
  lines = [f'{"":<18}{stages[0].measure:>20}{"FLOPs/byte":>12}{"params":>12}']
  for stage in stages:
    error = '' if stage.error is None else f' +- {stage.error:.4f}'
    lines.append(
      f'{stage.name:<18}{f"{stage.score:.4f}{error}":>20}{stage.flops:>12.0f}'
      f'{stage.parameters:>12}'
    )
  return lines
