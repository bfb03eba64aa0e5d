"""Eight virtual CPU devices and strict shapes for the whole suite."""

import os
import pathlib

_USER_CACHE = os.environ.get('XDG_CACHE_HOME', '~/.cache')
_COMPILED = pathlib.Path(_USER_CACHE).expanduser() / 'patchwork' / 'compiled'

# In the environment, so that the commands that tests start have them too. The
# suite means the CPU, also where there is an accelerator.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_COMPILED))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import hypothesis
import jax
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
