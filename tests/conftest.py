"""Eight virtual CPU devices and strict shapes for the whole suite."""

import os

# In the environment, so that the commands that tests start have it too. The
# suite means the CPU, also where there is an accelerator.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Programs for several CPU devices may wait for one another for ever once they
# have been read from JAX's cache of compiled programs (jaxlib 0.10.2).
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
# Of tiny programs the time goes into compiling them: each of the two halves it.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false',
)

import gc

import hypothesis
import jax
import pytest
from absl import flags

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

# Grain reads flags, which nobody parses under pytest.
flags.FLAGS.mark_as_parsed()

# The same examples everywhere; a shared machine makes deadlines meaningless.
hypothesis.settings.register_profile(
  'patchwork', deadline=None, derandomize=True, database=None, max_examples=50
)
hypothesis.settings.load_profile('patchwork')


# These take longest and begin first, so that both cores end at about the same
# time; the others follow as they are found.
_FIRST = (
  'test_train.py',
  'test_patched.py',
  'test_readme.py',
  'test_initial.py',
  'test_structured_models.py',
  'test_presets.py',
  'test_byte_latent.py',
  'test_train_input.py',
  'test_bench.py',
  'test_budgets.py',
)


def pytest_collection_modifyitems(items):
  places = {name: place for place, name in enumerate(_FIRST)}
  items.sort(key=lambda item: places.get(item.path.name, len(places)))


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
    gc.collect()
