"""Settings that make a step on the CPU backend faster; none elsewhere."""

import contextlib
import ctypes
import os
import sys

import jax

# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_memory() -> None:
  """Makes glibc keep freed memory for reuse; to be called before JAX runs.

  XLA's CPU backend allocates its scratch space at every step. By default that
  is a new mapping whose pages the kernel clears one by one, which takes a
  fifth of a step. Other C libraries and systems are left as they are.
  """
  if sys.platform != 'linux':
    return
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is not None:
    mallopt(_ARENA_MAX, 1)  # Only the first arena grows without mappings.
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)  # Never, however much is free.


def use_cores() -> None:
  """Makes every core a device of the CPU backend, for work on rows apart.

  To be called before JAX runs; later it does nothing.
  """
  with contextlib.suppress(RuntimeError):
    if 'JAX_NUM_CPU_DEVICES' not in os.environ:
      jax.config.update('jax_num_cpu_devices', cores())


def cores() -> int:
  """Processor cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def compiler_options() -> dict[str, str]:
  """For `jax.jit`: reductions by YNNPACK, but matmuls by Eigen.

  Both are YNNPACK's by default, whose matmuls use one core.
  """
  if jax.default_backend() != 'cpu':
    return {}
  return {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE'}
