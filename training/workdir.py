"""The run directory: its config file and the lock of the run that uses it."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

import jax

from training import manifest


def write_config(
  directory: str | os.PathLike[str], config: dict[str, Any]
) -> None:
  """Writes `config.json` of a run directory, wholly or not at all."""
  path = pathlib.Path(directory)
  path.mkdir(parents=True, exist_ok=True)
  text = json.dumps(config, indent=2) + '\n'
  manifest.write_file(path / 'config.json', text)


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Reads `config.json` of a run directory; None if there is none."""
  path = pathlib.Path(directory) / 'config.json'
  try:
    config = json.loads(path.read_bytes())
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise ValueError(
      f'{path} is not valid JSON ({error}); delete it and run train.py with'
      ' the same --config to write it again'
    ) from error
  if not isinstance(config, dict):
    raise ValueError(
      f'{path} holds no JSON object; delete it and run train.py with the same'
      ' --config to write it again'
    )
  return config


@contextlib.contextmanager
def hold(directory: str | os.PathLike[str]) -> Iterator[None]:
  """Holds the lock of a run directory; the system frees it if we die.

  Raises ValueError naming the holder if another run has it.
  """
  if jax.process_index() != 0:
    yield
    return
  path = pathlib.Path(directory) / 'lock'
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'a+') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      holder = file.read(200).strip() or 'another process'
      raise ValueError(
        f'{path.parent} is in use by {holder}; wait for it to end, stop it, or'
        ' pass another --workdir'
      ) from error
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()
    yield
