"""Ports on which the processes of a job meet."""

import random
import socket


def free() -> int:
  """One that nobody has now, nor gets unless asking for that very one.

  Those that systems choose themselves, of 32768 and more on Linux, may be
  another's before the job has begun.
  """
  while True:
    port = random.SystemRandom().randrange(10_000, 30_000)
    with socket.socket() as own:
      try:
        own.bind(('127.0.0.1', port))
      except OSError:
        continue
      return port
