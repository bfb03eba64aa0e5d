"""Coordinate check: how far a step moves activations, at several widths.

Under a rule that transfers (training.transfer) a step changes activations by
as much in a wide model as in a narrow one (arXiv 2203.03466, appendix D.1).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from configs import initial
from data import pipeline
from models import linear
from training import sharding
from training import step as step_lib

# transfer: that of every kernel; width: every kernel's rate goes with one over
# the width, as if it were dense; none: one rate for all.
RULES = ('transfer', 'width', 'none')
_TABLES = r'(embedding|table_\d+)$'
# What a wider model has more of.
_WIDTHS = ('width', 'hidden', 'heads', 'key_value_heads')


class Point(NamedTuple):
  """One run: root mean square changes per step, and its last loss in nats.

  changes: by the path of what the model sows, and `logits`.
  """

  width: int
  changes: dict[str, float]
  loss: float


def widened(model: nn.Module, factor: float) -> nn.Module:
  """The model with all its widths and heads times `factor`.

  A model of patches keeps what computes their entropies. Raises ValueError if
  a width would not be a whole number.
  """
  changed: dict[str, Any] = {}
  for field in dataclasses.fields(model):
    value = getattr(model, field.name)
    if field.name in _WIDTHS and value is not None:
      if value * factor != round(value * factor):
        raise ValueError(
          f'{type(model).__name__}.{field.name}={value} times {factor:g} is no'
          ' whole number; choose other factors.'
        )
      changed[field.name] = round(value * factor)
    elif field.name in ('model', 'encoder', 'latent', 'decoder'):
      changed[field.name] = widened(value, factor)
  return model.clone(parent=None, **changed)


def at_width(config: base.Config, factor: float, rule: str) -> base.Config:
  """The config of a wider model, with rates by a rule of `RULES`."""
  if rule not in RULES:
    raise ValueError(f'rule={rule!r} must be one of {", ".join(RULES)}.')
  given = config.optimizer.base
  dense = linear.with_linear(config.model, linear.Dense())
  reference = dense if given is None else given
  optimizer = dataclasses.replace(
    config.optimizer,
    base=reference if rule == 'transfer' else None,
    multipliers=(('kernel$', 1 / factor),) if rule == 'width' else (),
  )
  # Both rules begin alike: only the rates differ.
  begin = () if rule == 'none' else (initial.LikeBase(reference),)
  return dataclasses.replace(
    config,
    model=widened(config.model, factor),
    optimizer=optimizer,
    initial=begin,
  )


def width_of(model: nn.Module) -> int:
  """Of the transformer; of one over patches, of the widest."""
  inner = getattr(model, 'model', model)
  return getattr(inner, 'latent', inner).width


def measure(config: base.Config, batches: list[Any]) -> Point:
  """Trains on each batch once, at one rate, and measures on the first.

  Embeddings stay as they are: no rule slows them down, and what they move
  would hide what projections move.
  """
  model, optimizer = config.model, _unchanging(config, len(batches))
  probe = batches[0]

  def apply(params: Any, ids: Any, documents: Any, **stored: Any) -> jax.Array:
    extra = {f'{name}_BT': x for name, x in stored.items()}
    return model.apply({'params': params}, ids, documents, **extra)[0]

  @jax.jit
  def observe(params: Any) -> dict[str, jax.Array]:
    (logits, _), sown = model.apply(
      {'params': params},
      probe['ids'],
      probe['documents'],
      mutable=['intermediates'],
    )
    leaves = jax.tree_util.tree_leaves_with_path(sown['intermediates'])
    found = {sharding.name(path).removesuffix('/0'): x for path, x in leaves}
    floats = {k: x for k, x in found.items() if jnp.issubdtype(x, jnp.floating)}
    return floats | {'logits': logits}

  @jax.jit
  def distance(a: Any, b: Any) -> Any:
    return jax.tree.map(
      lambda x, y: jnp.sqrt(jnp.mean(jnp.square(x - y))),
      a,
      b,
    )

  step = jax.jit(
    functools.partial(
      step_lib.train_step,
      objective=config.objective,
      apply=apply,
      optimizer=optimizer,
    ),
    donate_argnames=('state',),
  )
  init_key, train_key = jax.random.split(jax.random.key(config.seed))
  params = jax.jit(model.init)(init_key, probe['ids'][:1])['params']
  for source in config.initial:
    params = source(config, params, None)
  state = step_lib.create(params, optimizer, train_key)
  before, moved = observe(state.params), []
  for batch in batches:
    state, metrics = step(state, batch)
    after = observe(state.params)
    moved.append(distance(after, before))
    before = after
  means = jax.tree.map(lambda *x: float(np.mean(x)), *moved)
  return Point(width_of(model), means, float(metrics.loss))


def _unchanging(config: base.Config, steps: int) -> Any:
  """The optimizer at one rate, of all but embeddings."""
  return dataclasses.replace(
    config.optimizer,
    warmup_steps=0,
    final_ratio=1.0,
    frozen=(*config.optimizer.frozen, _TABLES),
  ).build(steps)


def read_batches(config: base.Config, steps: int) -> list[Any]:
  """The first batches of a run, on the default device."""
  dataset = pipeline.batches(
    config.data.open('train'),
    row_length=config.row_length,
    batch_size=config.batch_size,
    seed=config.seed,
  )
  return [jax.device_put(dataset[i]) for i in range(steps)]
