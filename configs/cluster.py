"""Joining the other processes of a job, before any device is used."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import jax
from absl import flags

# How many processes a scheduler started, where jax.distributed finds the rest.
_COUNTS = ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')


class Flags(NamedTuple):
  """The flags that describe a job."""

  coordinator: flags.FlagHolder[str | None]
  processes: flags.FlagHolder[int | None]
  process_id: flags.FlagHolder[int | None]


def define_flags() -> Flags:
  """To be called by a script before flags are parsed."""
  return Flags(
    flags.DEFINE_string(
      'coordinator', None, 'HOST:PORT of process 0, unless a scheduler tells.'
    ),
    flags.DEFINE_integer('processes', None, 'Processes of the job.'),
    flags.DEFINE_integer('process_id', None, 'This one, from 0.'),
  )


def join(job: Flags) -> None:
  """Connects the processes of a job that has several; else does nothing.

  The job is described by the flags, or else by Slurm, Open MPI or a TPU pod.
  ValueError if the flags do not describe one; OSError if the others do not
  come.
  """
  given = {name: flag.value for name, flag in job._asdict().items()}
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given):
    if _is_scheduled(os.environ):
      jax.distributed.initialize()
    return
  if missing:
    raise ValueError(
      f'--{missing[0]} is missing: give --coordinator=HOST:PORT, --processes'
      ' and --process_id together, or none of them where a scheduler tells.'
    )
  coordinator, count, number = given.values()
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal():
    raise ValueError(
      f'--coordinator={coordinator} must be HOST:PORT of process 0.'
    )
  if not 0 <= number < count:
    raise ValueError(
      f'--process_id={number} must be from 0 to --processes={count} less 1.'
    )
  try:
    jax.distributed.initialize(coordinator, count, number)
  except RuntimeError as error:
    raise OSError(
      f'--coordinator={coordinator} was not reached by all of {count}'
      f' processes ({str(error).splitlines()[0]}); start them all with the'
      ' same --coordinator, a free port of the machine of process 0.'
    ) from error


def _is_scheduled(environment: Mapping[str, str]) -> bool:
  """Was this process started by a scheduler together with others?"""
  counts = [environment.get(name, '1') for name in _COUNTS]
  hosts = environment.get('TPU_WORKER_HOSTNAMES', '').split(',')
  return len(hosts) > 1 or any(c.isdecimal() and int(c) > 1 for c in counts)
