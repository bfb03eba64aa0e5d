"""Joining the other processes of a job, before any device is used."""

import importlib.util
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from absl import flags

# How long a process may be silent before the others give the job up, and how
# long one that has finished waits for the others. JAX's default is 300 s.
_SECONDS = 100
_GRACE = 5

# Exit code of what ends through no fault of its own, from sysexits.h.
TRY_AGAIN = 75

# What errors say of a process that is gone: Gloo, NCCL, JAX's own service.
_LOST = (
  'Gloo',
  'NCCL',
  'onnection closed by peer',
  'onnection refused',
  'onnection reset',
  'coordination service',
  'heartbeat',
  'Barrier',
)


class Flags(NamedTuple):
  """The flags that describe a job."""

  coordinator: flags.FlagHolder[str | None]
  processes: flags.FlagHolder[int | None]
  process_id: flags.FlagHolder[int | None]


def define_flags(**own: flags.FlagValues) -> Flags:
  """To be called by a script before flags are parsed.

  own: `flag_values` where they are not those of the process.
  """
  return Flags(
    flags.DEFINE_string(
      'coordinator', None,
      'HOST:PORT of process 0, unless a scheduler tells; auto asks one that is'
      ' not recognised by itself, as of a TPU VM.',
      **own,
    ),
    flags.DEFINE_integer(
      'processes', None,
      'Processes of the job; 1 is alone, whatever a scheduler says.',
      **own,
    ),
    flags.DEFINE_integer('process_id', None, 'This one, from 0.', **own),
  )  # fmt: skip


def join(job: Flags) -> None:
  """Connects the processes of a job that has several; else does nothing.

  The job is described by the flags, or else by what jax.distributed knows:
  Slurm, Open MPI, TPU pods, and indexed jobs of Kubernetes where the package
  `kubernetes` is installed. ValueError if the flags do not describe one;
  OSError if the others do not come.
  """
  given = {name: flag.value for name, flag in job._asdict().items()}
  missing = [name for name, value in given.items() if value is None]
  coordinator, count, number = given.values()
  if jax.distributed.is_initialized():
    return
  if len(missing) == 3 and not _is_scheduled(os.environ):
    return
  if len(missing) == 2 and count == 1:
    return
  if len(missing) == 3 or (len(missing) == 2 and coordinator == 'auto'):
    _connect()
    return
  if missing:
    raise ValueError(
      f'--{missing[0]} is missing: give --coordinator=HOST:PORT, --processes'
      ' and --process_id together, or none of them where a scheduler tells.'
    )
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal():
    raise ValueError(
      f'--coordinator={coordinator} must be HOST:PORT of process 0.'
    )
  if not 0 <= number < count:
    raise ValueError(
      f'--process_id={number} must be from 0 to --processes={count} less 1.'
    )
  _connect(coordinator, count, number)


def lost(error: Exception) -> str | None:
  """What to tell the user if an error is that of a process that is gone."""
  text = ' '.join(str(error).split())
  is_joined = jax.distributed.is_initialized()
  if not is_joined or not any(sign in text for sign in _LOST):
    return None
  return (
    f'another process of the job was lost ({text[:200]}); start all of them'
    ' again, as many as there are machines: what was saved is taken up'
  )


def leave(text: str, code: int) -> None:
  """Ends a process of a job at once with these words; alone it does nothing.

  An orderly end would wait for the others, and they may be waiting for this
  one: that its connections are closed is how they hear of it.
  """
  if not jax.distributed.is_initialized():
    return
  print(text, file=sys.stderr)
  if jax.process_index() == 0:
    # With it goes what the others are connected to, so they come first.
    time.sleep(_GRACE)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _connect(*job: Any) -> None:
  try:
    jax.distributed.initialize(
      *job,
      heartbeat_timeout_seconds=_SECONDS,
      shutdown_timeout_seconds=_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    if not job:
      raise OSError(
        f'the scheduler does not describe a job to JAX ({reason}); start the'
        ' processes with it (srun, mpirun), give --coordinator=HOST:PORT,'
        ' --processes and --process_id, or --processes=1 to run alone.'
      ) from error
    coordinator, count, _ = job
    raise OSError(
      f'--coordinator={coordinator} was not reached by all of {count}'
      f' processes ({reason}); start them all with the same --coordinator, a'
      ' free port of the machine of process 0.'
    ) from error


def _is_scheduled(environment: Mapping[str, str]) -> bool:
  """Was this process started together with others, as JAX can find out?

  A shell inside an allocation of Slurm, where srun has started nothing, is
  alone; so is a pod without the package that asks for the others.
  """

  def several(name: str) -> bool:
    count = environment.get(name, '')
    return count.isdecimal() and int(count) > 1

  if 'SLURM_STEP_NODELIST' in environment and several('SLURM_NTASKS'):
    return True
  if 'OMPI_MCA_orte_hnp_uri' in environment and several('OMPI_COMM_WORLD_SIZE'):
    return True
  hosts = environment.get('TPU_WORKER_HOSTNAMES', '').split(',')
  if len(hosts) > 1:
    return True
  is_pod = {'KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'} <= {*environment}
  return is_pod and importlib.util.find_spec('kubernetes') is not None
