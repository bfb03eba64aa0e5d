import errno
import logging
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests import several
from training import checkpoint
from training import manifest
from training import shared_folder

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = {'class': 'configs.base.Config', 'fields': {'steps': 3, 'rate': None}}


class Moments(NamedTuple):
  count: jax.Array
  mean: Any


def make_state(seed: int, width: int = 8) -> dict[str, Any]:
  key, other = jax.random.split(jax.random.key(seed))
  kernel = jax.random.normal(key, (width, 2 * width))
  params = {
    'block_0': {'kernel': kernel, 'none': {}},
    'low': kernel.astype(jnp.bfloat16),
  }
  return {
    'params': params,
    'optimizer': (Moments(jnp.int32(seed), jax.tree.map(jnp.sin, params)), ()),
    'step': jnp.int32(seed),
    'key': other,
    'keys': jax.random.split(other, 3),
  }


def abstract(state: Any) -> Any:
  return jax.eval_shape(lambda: state)


def assert_same(got: Any, want: Any) -> None:
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert a.dtype == b.dtype
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def opened(path: pathlib.Path, **fields: Any) -> checkpoint.Checkpoints:
  return checkpoint.Checkpoints(path, config=CONFIG, **fields)


def save_steps(path: pathlib.Path, *steps: int) -> None:
  with opened(path) as checkpoints:
    for step in steps:
      assert checkpoints.save(step, make_state(step), extra={'next': step})


def test_round_trip(tmp_path: pathlib.Path) -> None:
  state = make_state(3)
  extra = {'next': 7, 'mixed': [1, None, 'é', {'x': 0.1}]}
  with opened(tmp_path) as checkpoints:
    assert checkpoints.restore(abstract(state)) is None
    assert checkpoints.save(3, state, extra=extra)
  with opened(tmp_path) as checkpoints:
    restored = checkpoints.restore(abstract(state))
  assert restored.step == 3
  assert restored.extra == extra
  assert_same(restored.state, state)


def test_interval_force_and_keep(tmp_path: pathlib.Path) -> None:
  with opened(tmp_path, keep=2, every=10) as checkpoints:
    done = [s for s in range(1, 45) if checkpoints.save(s, make_state(s))]
    assert done == [10, 20, 30, 40]
    assert checkpoints.save(44, make_state(44), force=True)
    assert not checkpoints.save(44, make_state(44), force=True)
    checkpoints.wait()
    assert checkpoints.steps() == [40, 44]
  names = sorted(path.name for path in (tmp_path / 'checkpoints').iterdir())
  assert names == ['40', '44']
  with opened(tmp_path) as checkpoints:
    checkpoints.restore(abstract(make_state(44)))
    assert not checkpoints.save(44, make_state(44), force=True)


def test_state_may_be_donated_after_save(tmp_path: pathlib.Path) -> None:
  update = jax.jit(lambda x: x * 1.5 + 1, donate_argnums=0)
  x = jnp.arange(300_000, dtype=jnp.float32)
  want = {}
  with opened(tmp_path, keep=6) as checkpoints:
    for step in range(6):
      want[step] = np.array(x)
      checkpoints.save(step, {'params': {'x': x}})
      for _ in range(5):
        x = update(x)
  for step, array in want.items():
    loaded = checkpoint.load_params(tmp_path, step=step)
    np.testing.assert_array_equal(loaded.params['x'], array)


def test_restores_onto_another_mesh(tmp_path: pathlib.Path) -> None:
  def sharding(shape: tuple[int, int], spec: P) -> jax.sharding.NamedSharding:
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh(
      shape, ('data', 'fsdp'), axis_types=auto,
      devices=jax.devices()[: shape[0] * shape[1]],
    )  # fmt: skip
    return jax.sharding.NamedSharding(mesh, spec)

  state = {
    'params': {'kernel': jax.random.normal(jax.random.key(0), (16, 8))},
    'key': jax.random.key(4),
  }
  first = {
    'params': {'kernel': sharding((4, 2), P('data', 'fsdp'))},
    'key': sharding((4, 2), P()),
  }
  with opened(tmp_path) as checkpoints:
    checkpoints.save(1, jax.device_put(state, first))
    checkpoints.wait()
    meshes = [((2, 4), P('fsdp')), ((8, 1), P('data')), ((1, 1), P())]
    for shape, spec in meshes:
      wanted = {
        'params': {'kernel': sharding(shape, spec)},
        'key': sharding(shape, P()),
      }
      target = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
          leaf.shape, leaf.dtype, sharding=where
        ),
        state, wanted,
      )  # fmt: skip
      restored = checkpoints.restore(target).state
      assert_same(restored, state)
      assert restored['params']['kernel'].sharding == wanted['params']['kernel']


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda s: s['params'].update(low=jnp.zeros((8, 9), jnp.bfloat16)),
     r'params/low is bfloat16\[8, 16\] in the checkpoint but bfloat16\[8, 9\]'),
    (lambda s: s.update(step=jnp.float32(1)),
     r'step is int32\[\] in the checkpoint but float32\[\]'),
    (lambda s: s['params'].update(more=jnp.zeros(2)),
     r'params/more is absent in the checkpoint but float32\[2\]'),
    (lambda s: s['params'].pop('low'),
     r'params/low is bfloat16\[8, 16\] in the checkpoint but absent'),
    (lambda s: s.update(key=jax.random.key(0, impl='rbg')),
     r'key is key<fry>\[\] in the checkpoint but key<rbg>\[\]'),
  ],
)  # fmt: skip
def test_mismatch_names_the_leaf(
  tmp_path: pathlib.Path, change: Any, message: str
) -> None:
  save_steps(tmp_path, 1)
  target = make_state(1)
  change(target)
  with opened(tmp_path) as checkpoints:
    with pytest.raises(ValueError, match=message):
      checkpoints.restore(target)
    assert checkpoints.steps() == [1]


def test_nothing_intact(tmp_path: pathlib.Path) -> None:
  save_steps(tmp_path, 1, 2)
  for step in ('1', '2'):
    os.truncate(tmp_path / 'checkpoints' / step / 'manifest.json', 99)
  with opened(tmp_path) as checkpoints:
    with pytest.raises(ValueError, match=r'no checkpoint .* is intact .2: man'):
      checkpoints.restore(abstract(make_state(1)))
    assert checkpoints.steps() == [1, 2]


KILLED = """
import signal, os, sys, pathlib
from tests.training import test_checkpoint as t
from training import checkpoint
instant, path = sys.argv[1], pathlib.Path(sys.argv[2])
t.save_steps(path, 1)
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if instant == 'rename': pathlib.Path.rename = die
if instant == 'delete':
  rmtree = checkpoint.shutil.rmtree
  checkpoint.shutil.rmtree = lambda path, **options: (
    die() if path.name == '1.old' and path.exists() else rmtree(path, **options)
  )
with t.opened(path, keep=1) as checkpoints:
  checkpoints.save(2, t.make_state(2), extra={'next': 2})
  if instant == 'arrays': die()
"""


@pytest.mark.parametrize('saved', [(3,), ()])
def test_a_folder_that_other_hosts_do_not_see(tmp_path, monkeypatch, saved):
  """Each has one of its own, as of a local disk: all of them say so."""
  with opened(tmp_path / 'host0') as own:
    for step in saved:
      own.save(step, make_state(0))
  monkeypatch.setattr(shared_folder, '_PATIENCE', 0)
  monkeypatch.setattr(
    checkpoint,
    '_root',
    lambda run: run / f'host{jax.process_index() // 2}' / 'checkpoints',
  )

  def restore():
    with opened(tmp_path) as checkpoints:
      return checkpoints.restore(abstract(make_state(0)))

  for error in several.Job(4).run(restore):
    assert isinstance(error, ValueError), error
    assert 'is not seen by process 2' in str(error)
    assert 'put --workdir where all hosts do' in str(error)
  shared = several.Job(4).run(lambda: checkpoint._newest_intact(own._root))
  assert [found and found[0] for found in shared] == [*(saved or [None])] * 4


def test_sigkill_while_saving(tmp_path: pathlib.Path) -> None:
  instants = {'arrays': 1, 'rename': 1, 'delete': 2}
  children = {
    name: subprocess.Popen(
      [sys.executable, '-c', KILLED, name, str(tmp_path / name)], cwd=ROOT
    )
    for name in instants
  }
  for name, step in instants.items():
    assert children[name].wait(600) == -signal.SIGKILL
    with opened(tmp_path / name) as checkpoints:
      restored = checkpoints.restore(abstract(make_state(1)))
      assert (restored.step, restored.extra) == (step, {'next': step})
      assert_same(restored.state, make_state(step))
      checkpoints.save(3, make_state(3))
    assert checkpoint.load_params(tmp_path / name).step == 3
    left = {path.name for path in (tmp_path / name / 'checkpoints').iterdir()}
    assert left == {str(step), '3'}


def test_restoring_deletes_what_a_kill_left_over(
  tmp_path: pathlib.Path,
) -> None:
  with opened(tmp_path, keep=3) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, make_state(step))
  with opened(tmp_path, keep=2) as checkpoints:
    assert checkpoints.steps() == [1, 2, 3]
    assert checkpoints.restore(abstract(make_state(1))).step == 3
    assert checkpoints.steps() == [2, 3]


@pytest.mark.parametrize('stage', ['arrays', 'manifest'])
def test_full_disk(
  tmp_path: pathlib.Path, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
  caplog.set_level(logging.INFO, 'absl')
  save_steps(tmp_path, 1)
  width, text = (300, '') if stage == 'arrays' else (8, 'x' * 300_000)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  with opened(tmp_path) as checkpoints:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
      message = 'checkpoint 2 could not be .*File too large.*1 is intact'
      with pytest.raises(OSError, match=message) as caught:
        checkpoints.save(2, make_state(2, width), extra={'text': text})
        checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path) in str(caught.value)
    # What the failed save had begun may still be there.
    left = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
    assert left - {'2.saving'} == {'1'}
    assert_same(
      checkpoint.load_params(tmp_path).params, make_state(1)['params']
    )
    assert checkpoints.save(2, make_state(2))
  assert checkpoint.load_params(tmp_path).step == 2


def test_failed_save_is_raised_by_a_later_save(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  def fail(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(manifest, 'write', fail)
  with opened(tmp_path, every=10) as checkpoints:
    checkpoints.save(10, make_state(1))
    with pytest.raises(OSError, match=r'left on device\); there is no other'):
      for _ in range(6000):  # Not due, so nothing waits for the first save.
        assert not checkpoints.save(11, make_state(1))
        time.sleep(0.05)
    assert not list((tmp_path / 'checkpoints').iterdir())


def test_load_params_errors(tmp_path: pathlib.Path) -> None:
  with pytest.raises(ValueError, match='does not exist; pass the run dir'):
    checkpoint.load_params(tmp_path / 'no')
  with pytest.raises(ValueError, match='is not a run directory'):
    checkpoint.load_params(tmp_path)
  opened(tmp_path).close()
  with pytest.raises(ValueError, match='has no checkpoint yet'):
    checkpoint.load_params(tmp_path)
  save_steps(tmp_path, 1, 2)
  with pytest.raises(ValueError, match=r'checkpoint 5; choose one of \[1, 2\]'):
    checkpoint.load_params(tmp_path, step=5)
  (tmp_path / 'checkpoints' / '2' / 'manifest.json').write_text('{}')
  with pytest.raises(ValueError, match=r'checkpoint 2 in .* is damaged'):
    checkpoint.load_params(tmp_path, step=2)
  loaded = checkpoint.load_params(tmp_path)
  assert (loaded.step, loaded.config) == (1, CONFIG)


@pytest.mark.parametrize('field', ['keep', 'every'])
def test_rejects_zero(tmp_path: pathlib.Path, field: str) -> None:
  with pytest.raises(ValueError, match=f'{field}=0 must be at least 1'):
    opened(tmp_path, **{field: 0})
