"""Do all processes of a job see the run directory of process 0?"""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

from training import manifest

# Seconds for which a host may not know of a folder that another has made.
_PATIENCE = 90


def seen(
  root: pathlib.Path, step: int, fields: Mapping[str, type]
) -> dict[str, Any] | None:
  """The manifest of a step that process 0 has found; None if that is -1.

  To be called by all processes, and raises ValueError in all of them if one
  does not see the folder. fields: as for manifest.read.
  """
  path = root if step < 0 else root / str(step)
  until = time.monotonic() + _PATIENCE
  while not path.is_dir() and time.monotonic() < until:
    time.sleep(1)
  found, reason = None, ''
  if step >= 0:
    try:
      found = manifest.read(path, fields)
    except manifest.Damaged as damage:
      reason = f' ({damage})'
  is_blind = bool(reason) or not path.is_dir()
  [*blind] = np.flatnonzero(multihost_utils.process_allgather(is_blind))
  if blind:
    raise ValueError(
      f'{path} is not seen by process {blind[0]}{reason}; put --workdir where'
      ' all hosts do'
    )
  return found
