"""Joining the other processes of a job, before any device is used."""

import ctypes
import importlib.util
import os
import pathlib
import signal
import socket
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
# How long processes wait for one another to come.
_COMING = 300

# Exit code of what ends through no fault of its own, from sysexits.h.
TRY_AGAIN = 75

# Where schedulers say which process this is.
_PLACES = (
  'SLURM_PROCID',
  'OMPI_COMM_WORLD_RANK',
  'TPU_WORKER_ID',
  'JOB_COMPLETION_INDEX',
)
_AGAIN = (
  'start all of them again, as many as there are machines: what was saved is'
  ' taken up'
)

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


class NotReachedError(OSError):
  """The processes of a job did not all come."""


class _State:
  """Of this process: its number in the job that it joins, how it is ended."""

  number: int | None = None
  on_abort: Any = None


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
  OSError if a scheduler does not; NotReachedError if the others do not come.

  From here on JAX's service ends this process by abort() when another one is
  gone; that is made to be one sentence and TRY_AGAIN, after JAX's own words.
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
  if isinstance(error, NotReachedError):
    return text
  if _State.number is None or not any(sign in text for sign in _LOST):
    return None
  return f'another process of the job was lost ({text[:200]}); {_AGAIN}'


def leave(text: str, code: int) -> None:
  """Ends a process of a job at once with these words; alone it does nothing.

  An orderly end would wait for the others, and they may be waiting for this
  one: that its connections are closed is how they hear of it.
  """
  if _State.number is None:
    return
  _end_aborts('', code)
  print(text, file=sys.stderr)
  if _State.number == 0:
    # With it goes what the others are connected to, so they come first.
    time.sleep(_GRACE)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _connect(*job: Any) -> None:
  """Joins the job of these arguments to JAX, or that of the scheduler."""
  named = 'process 0 of the job was not reached by all of its processes'
  way = 'start them all at one time, on machines that reach one another'
  number = next((os.environ[x] for x in _PLACES if x in os.environ), '')
  # One that is not told waits before it leaves, as process 0 does.
  number = int(number) if number.isdecimal() else 0
  if job:
    coordinator, count, number = job
    named = f'--coordinator={coordinator} was not reached by all of {count}'
    named += ' processes'
    way = (
      'start them all with the same --coordinator, a free port of the machine'
      ' of process 0'
    )
  _State.number = number
  if job and number == 0:
    _check_port(coordinator, f'{named} (%s); {way}')
  _end_aborts(
    f"{named} within {_COMING} seconds (JAX's own words are above); {way}"
  )
  try:
    jax.distributed.initialize(
      *job,
      initialization_timeout=_COMING,
      heartbeat_timeout_seconds=_SECONDS,
      shutdown_timeout_seconds=_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    if not job and not jax.distributed.is_initialized():
      _State.number = None
      _end_aborts(None)
      raise OSError(
        f'the scheduler does not describe a job to JAX ({reason}); start the'
        ' processes with it (srun, mpirun), give --coordinator=HOST:PORT,'
        ' --processes and --process_id, or --processes=1 to run alone.'
      ) from error
    raise NotReachedError(f'{named} ({reason}); {way}') from error
  _end_aborts(
    'another process of the job was lost, or JAX has failed in this one (its'
    f' own words are above); {_AGAIN}'
  )


def _check_port(coordinator: str, words: str) -> None:
  """NotReachedError if this process cannot listen there, which JAX dies of."""
  _, _, port = coordinator.rpartition(':')
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    socket.create_server(
      ('', int(port)), family=family, dualstack_ipv6=both
    ).close()
  except (OSError, OverflowError) as error:
    raise NotReachedError(words % error) from error


def _end_aborts(text: str | None, code: int = TRY_AGAIN) -> None:
  """Makes abort() end this process with these words and code; None: as ever.

  Python cannot do that: its handlers run after the signal's, when a process
  that has called abort() is no more.
  """
  script = pathlib.Path(sys.argv[0])
  name = script.parent.name if script.stem == '__main__' else script.name
  line = f'{name}: {text}\n'.encode() if text else b''

  def end(_: int) -> None:
    os.write(2, line)
    os._exit(code)

  kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
  handler = kind() if text is None else kind(end)
  ctypes.CDLL(None).signal(signal.SIGABRT, handler)
  _State.on_abort = handler  # Not to be freed while it may be called.


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
