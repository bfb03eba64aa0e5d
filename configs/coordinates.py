"""Coordinate check: how far a step moves activations, at several widths.

Under a rule that transfers (training.transfer) a step changes activations by
as much in a wide model as in a narrow one (arXiv 2203.03466, appendix D.1).
At the rate of a dense layer, cores of fan-in width^1/2 move them by width^-1/2
(arXiv 2406.06248, section 3.2).
"""

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from configs import initial
from data import pipeline
from models import forward
from models import linear
from models import mixture
from models import structured
from training import sharding
from training import step as step_lib

# transfer: that of every kernel; width: every kernel's rate goes with one over
# the width, as if it were dense; none: one rate for all.
RULES = ('transfer', 'width', 'none')
# Embeddings, scales of norms, gains of caps.
_NO_KERNEL = r'(?<!kernel)$'
_STRUCTURED = (
  structured.Structured,
  mixture.Mixture,
  mixture.MixtureFeedForward,
)
# What Flax calls the output of a layer that is captured.
_CALL = '/__call__'
# What a wider model has more of.
_WIDTHS = (
  'width', 'hidden', 'heads', 'key_value_heads', 'cell_width', 'cell_hidden',
)  # fmt: skip
# Parts that have widths of their own.
_PARTS = ('model', 'encoder', 'latent', 'decoder', 'trunk', 'judge', 'stack')


class Point(NamedTuple):
  """Runs at one width: root mean square changes per step, means over seeds.

  changes: by the path of what the model sows, and `logits`.
  loss: the last one, in nats.
  layers: of the outputs of structured layers, by their path in a block; means
    over blocks.
  errors: standard errors of changes and layers, relative to them; empty for a
    single seed.
  """

  width: int
  changes: dict[str, float]
  loss: float
  layers: dict[str, float]
  errors: dict[str, float] = {}


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
    elif field.name in _PARTS and value is not None:
      changed[field.name] = widened(value, factor)
  return model.clone(parent=None, **changed)


def at_width(config: base.Config, factor: float, rule: str) -> base.Config:
  """The config of a wider model, with rates by a rule of `RULES`."""
  if rule not in RULES:
    raise ValueError(f'rule={rule!r} must be one of {", ".join(RULES)}.')
  given = config.optimizer.base
  dense = linear.with_linear(config.model, linear.Dense())
  reference = dense if given is None else given
  multipliers = config.optimizer.multipliers
  if rule == 'width':
    slower = [
      (rf'^(?=.*kernel$).*(?:{path})', value / factor)
      for path, value in (*multipliers, ('kernel$', 1.0))
    ]
    multipliers = (*slower, *multipliers)
  optimizer = dataclasses.replace(
    config.optimizer,
    base=reference if rule == 'transfer' else None,
    multipliers=multipliers,
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
  inner = getattr(inner, 'trunk', inner)
  return getattr(inner, 'latent', inner).width


def measure(config: base.Config, steps: int, seeds: int = 1) -> Point:
  """Trains on each batch once, at one rate, and measures on the first.

  Only kernels learn: no rule slows down embeddings, scales of norms and gains
  of caps, and what they move would hide what kernels move.

  seeds: of parameters and batches, the config's first.
  """
  optimizer = _unchanging(config, steps)
  observe = jax.jit(functools.partial(_observed, config.model))
  step = jax.jit(
    functools.partial(
      step_lib.train_step,
      objective=config.objective,
      apply=forward.counted(config.model),
      optimizer=optimizer,
    ),
    donate_argnames=('state',),
  )
  draw, distance = jax.jit(config.model.init), jax.jit(_distances)
  found, losses = [], []
  for seed in range(config.seed, config.seed + seeds):
    batches = read_batches(dataclasses.replace(config, seed=seed), steps)
    probe = batches[0]
    init_key, train_key = jax.random.split(jax.random.key(seed))
    params = draw(init_key, probe['ids'][:1])['params']
    for source in config.initial:
      params = source(config, params, None)
    state = step_lib.create(params, optimizer, train_key)
    before, moved = observe(state.params, probe), []
    for batch in batches:
      state, metrics = step(state, batch)
      after = observe(state.params, probe)
      moved.append(distance(after, before))
      before = after
    means = jax.tree.map(lambda *x: float(np.mean(x)), *moved)
    changes = {k: x for k, x in means.items() if _CALL not in k}
    found.append((changes, _by_layer(means)))
    losses.append(float(metrics.loss))
  changes, layers = (
    {name: [one[name] for one in own] for name in own[0]}
    for own in zip(*found, strict=True)
  )
  errors = {}
  with np.errstate(invalid='ignore'):  # Of what does not move.
    for name, x in (changes | layers).items() if seeds > 1 else ():
      errors[name] = float(np.std(x, ddof=1) / np.mean(x) / seeds**0.5)
  return Point(
    width_of(config.model),
    {name: float(np.mean(x)) for name, x in changes.items()},
    float(np.mean(losses)),
    {name: float(np.mean(x)) for name, x in layers.items()},
    errors,
  )


def _observed(
  model: nn.Module, params: Any, probe: Any
) -> dict[str, jax.Array]:
  """What is sown, what structured layers return, and the logits."""
  (logits, _), sown = model.apply(
    {'params': params},
    probe['ids'],
    probe['documents'],
    capture_intermediates=lambda module, method: (
      method == '__call__' and isinstance(module, _STRUCTURED)
    ),
    mutable=['intermediates'],
  )
  leaves = jax.tree_util.tree_leaves_with_path(sown['intermediates'])
  found = {sharding.name(path).removesuffix('/0'): x for path, x in leaves}
  floats = {k: x for k, x in found.items() if jnp.issubdtype(x, jnp.floating)}
  return floats | {'logits': logits}


def _distances(a: Any, b: Any) -> Any:
  """Root mean squares of differences."""
  return jax.tree.map(
    # Logits of what cannot be are the same infinity.
    lambda x, y: jnp.sqrt(jnp.mean(jnp.square(jnp.where(x == y, 0.0, x - y)))),
    a,
    b,
  )


def _by_layer(changes: dict[str, float]) -> dict[str, float]:
  """Means over blocks of what is captured of calls."""
  found: dict[str, list[float]] = {}
  for path, change in changes.items():
    layer, called, _ = path.partition(_CALL)
    if called:
      name = re.sub(r'(^|/)blocks?(_\d+)?/', r'\1', layer)
      found.setdefault(name, []).append(change)
  return {name: float(np.mean(several)) for name, several in found.items()}


def _unchanging(config: base.Config, steps: int) -> Any:
  """The optimizer at one rate, of kernels."""
  return dataclasses.replace(
    config.optimizer,
    warmup_steps=0,
    final_ratio=1.0,
    frozen=(*config.optimizer.frozen, _NO_KERNEL),
  ).build(steps)


def read_batches(config: base.Config, steps: int) -> list[Any]:
  """The first batches of a run, on the default device."""
  dataset = pipeline.batches(
    config.data.open('train'),
    row_length=config.row_length,
    batch_size=config.batch_size,
    seed=config.seed,
    rows=config.rows,
  )
  return [jax.device_put(dataset[i]) for i in range(steps)]
