"""From a run directory to its config and parameters."""

import dataclasses
import os
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from configs import base
from models import projections
from models import unlimited
from samplers import chain
from training import checkpoint


class Run(NamedTuple):
  """A trained run: its config, parameters on the default device, and step."""

  config: base.Config
  params: Any
  step: int


# Help of the flags that `limit` comes from.
LIMIT_HELP = (
  'Of a model without windows, let each id see the first and the last ids of'
  ' its document only, as 10,512: any length, by LM-Infinite. 10,512,4: and the'
  " 4 that suit best between; 'off': all."
)


def restore(
  directory: str | os.PathLike[str],
  *,
  step: int | None = None,
  limit: str | None = None,
) -> Run:
  """Rebuilds the config and reads the parameters of a run's checkpoint.

  The newest intact step is taken unless `step` is given. Raises ValueError
  if the directory holds no such checkpoint, or a model that cannot be limited.

  limit: as models.unlimited.parse has it, for a model as it is.
  """
  loaded = checkpoint.load_params(directory, step=step)
  config = checked(loaded.config, directory)
  if limit is not None:
    model = unlimited.read_with(config.model, unlimited.parse(limit))
    config = dataclasses.replace(config, model=model)
  return Run(config, jax.device_put(loaded.params), loaded.step)


def checked(tree: Any, directory: str | os.PathLike[str]) -> base.Config:
  """The config of a checkpoint; ValueError names the run it is of."""
  try:
    config = base.from_json(tree)
  except ValueError as error:
    reason = ' '.join(str(error).split())
    raise ValueError(f'{directory}: {reason}') from error
  parts = {'model': nn.Module, 'data': object, 'sampler': chain.Chain}
  for name, kind in parts.items():
    part = getattr(config, name, None)
    if not isinstance(part, kind) or not dataclasses.is_dataclass(part):
      raise ValueError(
        f'{directory}: config.{name} is a {type(part).__name__}, which is no'
        f' {name}; take another checkpoint'
      )
  return config


def for_decoding(
  directory: str | os.PathLike[str], limit: str | None = None
) -> Run:
  """As `restore`, structured projections multiplied out where that is faster.

  The function is the same but for rounding. Raises ValueError for a model that
  continues no text.
  """
  run = restore(directory, limit=limit)
  model, data = run.config.model, run.config.data
  if not (hasattr(model, 'init_cache') and hasattr(data, 'codec')):
    raise ValueError(
      f'{directory} holds a {type(model).__name__} of {type(data).__name__},'
      ' which continues no text; score it with eval.py.'
    )
  if not projections.decodes_faster_merged(run.config.model):
    return run
  model, params = projections.merged(run.config.model, run.params)
  config = dataclasses.replace(run.config, model=model)
  return run._replace(config=config, params=jax.device_put(params))
