"""From a run directory to its config and parameters."""

import os
from typing import Any, NamedTuple

import jax

from configs import base
from training import checkpoint


class Run(NamedTuple):
  """A trained run: its config, parameters on the default device, and step."""

  config: base.Config
  params: Any
  step: int


def restore(
  directory: str | os.PathLike[str], *, step: int | None = None
) -> Run:
  """Rebuilds the config and reads the parameters of a run's checkpoint.

  The newest intact step is taken unless `step` is given. Raises ValueError
  if the directory holds no such checkpoint.
  """
  loaded = checkpoint.load_params(directory, step=step)
  config = base.from_json(loaded.config)
  return Run(config, jax.device_put(loaded.params), loaded.step)
