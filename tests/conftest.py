"""Eight virtual CPU devices and strict shapes for the whole suite."""

import os

# In the environment, so that the commands that tests start have it too. The
# suite means the CPU, also where there is an accelerator.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Programs for several CPU devices may wait for one another for ever once they
# have been read from JAX's cache of compiled programs (jaxlib 0.10.2).
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
# Of tiny programs the time goes into compiling them: each of the first two
# halves it, and one module for LLVM in place of 32 takes a quarter of the rest.
# Devices of a busy machine may be late, for which XLA would end the process.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
  ' --xla_cpu_parallel_codegen_split_count=1'
  ' --xla_cpu_collective_call_warn_stuck_timeout_seconds=600'
  ' --xla_cpu_collective_call_terminate_timeout_seconds=1200',
)

import gc

# Until all is imported, which stays: looking for garbage takes a sixth of it.
gc.disable()

import functools
import logging
import threading

import hypothesis
import jax
import pytest
from absl import flags
from hypothesis.internal.conjecture import providers
from jax._src.interpreters import mlir

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

# Grain reads flags, which nobody parses under pytest.
flags.FLAGS.mark_as_parsed()

# What a failed save of Orbax left may end within a later test that reads logs.
logging.getLogger('asyncio').setLevel(logging.CRITICAL + 1)

# The same examples everywhere; a shared machine makes deadlines meaningless.
hypothesis.settings.register_profile(
  'patchwork', deadline=None, derandomize=True, database=None, max_examples=50
)
hypothesis.settings.load_profile('patchwork')
# Else they have constants of the modules in them that came to be loaded before.
providers._get_local_constants = lambda: providers._local_constants


@functools.cache
def _ir_context(thread, make=mlir.make_ir_context):
  del thread
  return make()


# JAX makes one for every program: a quarter of the time that a tiny one takes.
mlir.make_ir_context = lambda: _ir_context(threading.get_ident())


# These take longest and begin first, so that both cores end at about the same
# time; the others follow as they are found.
_FIRST = (
  'test_readme.py',
  'test_train.py',
  'test_patched.py',
  'test_initial.py',
  'test_flops.py',
  'test_patches.py',
  'test_byte_latent.py',
  'test_convert.py',
  'test_cluster.py',
  'test_bounds.py',
  'test_events.py',
  'test_structured_models.py',
  'test_lambda.py',
  'test_mixture.py',
  'test_processes.py',
  'test_train_input.py',
)


def pytest_collection_modifyitems(items):
  places = {name: place for place, name in enumerate(_FIRST)}
  items.sort(key=lambda item: places.get(item.path.name, len(places)))
  gc.freeze()
  gc.set_threshold(10_000, 20, 10)  # Else it takes a tenth of the time.
  gc.enable()
  jax.devices()  # Before a command makes as many as there are cores.


@pytest.fixture
def new_arrays():
  """Gives the arrays made since the test began that are still there."""
  # Held, so that none goes and leaves its identity to another.
  known = {id(array): array for array in jax.live_arrays()}
  return lambda: [a for a in jax.live_arrays() if id(a) not in known]


# Test modules after which programs are forgotten: thousands slow down all that
# come after, and compiling the small ones again for every module takes time.
_MODULES = 8
_finished = 0


@pytest.fixture(scope='module', autouse=True)
def _forget_programs():
  """Drops what was compiled now and then."""
  global _finished
  yield
  _finished += 1
  if _finished % _MODULES == 0:
    jax.clear_caches()
    _ir_context.cache_clear()
    gc.collect()
