"""Checkpoints of a run: saved in the background, verified before use.

A run directory holds `config.json`, `lock` and `checkpoints/<step>/`. A step
is staged under another name and renamed only when its arrays (Orbax) and its
`manifest.json` (extra state, config, every leaf, size and SHA-256 of every
file) are complete, so a directory named by a number was complete once.
"""

import concurrent.futures
import json
import logging as standard_logging
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from training import leaves
from training import manifest as manifests
from training import shared_folder

# Of the manifest of a step.
_FIELDS = {'step': int, 'extra': dict, 'config': dict, 'leaves': dict}
_SAVE_ERRORS = (OSError, ValueError, RuntimeError)  # tensorstore: the last two


class Restored(NamedTuple):
  """A restored step: the state on its target shardings, the JSON beside it."""

  step: int
  state: Any
  extra: dict[str, Any]
  config: dict[str, Any]


class Loaded(NamedTuple):
  """What inference needs of a checkpoint: config JSON and NumPy parameters."""

  config: dict[str, Any]
  params: Any
  step: int


class Checkpoints:
  """The checkpoints of one run directory, written by one run at a time.

  `every` is the interval of `save` in steps, `keep` the number of newest steps
  that stay on disk. Use as a context manager: leaving it waits for the save in
  progress. All processes of a job call the same methods in the same order.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    config: dict[str, Any],
    keep: int = 2,
    every: int = 1,
  ) -> None:
    for name, value in (('keep', keep), ('every', every)):
      if value < 1:
        raise ValueError(f'{name}={value} must be at least 1 checkpoint step')
    _hide_orbax_logs()
    self._root = _root(directory)
    self._config = config
    self._keep = keep
    self._every = every
    self._newest: int | None = None  # Equal on all processes, unlike the disk.
    self._pending: concurrent.futures.Future[None] | None = None
    self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    if _is_writer():
      self._root.mkdir(parents=True, exist_ok=True)
      _remove(self._root.glob('*.saving'))
      _remove(self._root.glob('*.old'))

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    try:
      self.close()
    except OSError as failure:
      if error is None:
        raise
      logging.error('%s', failure)  # The error that ended the run comes first.

  def steps(self) -> list[int]:
    """Returns the steps on disk, damaged ones included, in rising order."""
    return _steps(self._root)

  def save(
    self,
    step: int,
    state: Any,
    *,
    extra: dict[str, Any] | None = None,
    force: bool = False,
  ) -> bool:
    """Starts saving `state` (arrays) and `extra` (JSON); False if not due.

    Also False if `step` is the one last saved or restored. The state may be
    donated as soon as this returns. A failed save raises OSError from this
    call or from the next `save`, `wait` or `close`.
    """
    if self._pending is not None and self._pending.done():
      self.wait()
    if not force and step % self._every:
      return False
    self.wait()
    if step == self._newest:
      return False
    manifest = {
      'step': step,
      'extra': extra or {},
      'config': self._config,
      'leaves': leaves.describe(state),
    }
    json.dumps(manifest)  # Not JSON: fail here and not in the thread.
    staged = self._root / f'{step}.saving'
    try:
      if _is_writer():
        _remove([staged])
        staged.mkdir()
      response = ocp.save_async(staged / 'arrays', state)
    except _SAVE_ERRORS as error:
      raise self._failure(step, error) from error
    self._pending = self._thread.submit(
      self._commit, staged, response, manifest
    )
    self._newest = step
    return True

  def _commit(
    self,
    staged: pathlib.Path,
    response: ocp.AsyncResponse[None],
    manifest: dict[str, Any],
  ) -> None:
    """Completes a save in the background thread."""
    step = manifest['step']
    try:
      response.result()
      if _is_writer():
        manifests.write(staged, manifest)
        staged.rename(self._root / str(step))
        _sync(self._root)
    except _SAVE_ERRORS as error:
      raise self._failure(step, error) from error
    if _is_writer():
      _remove(self._root.glob('*.damaged'))
      self._prune()

  def _prune(self) -> None:
    _remove(self._root / str(old) for old in self.steps()[: -self._keep])

  def _failure(self, step: int, error: Exception) -> OSError:
    """Removes what the failed save left and words the error."""
    if _is_writer():
      _remove([self._root / f'{step}.saving'])
    steps = self.steps()
    rest = f'checkpoint {steps[-1]} is intact' if steps else 'there is no other'
    return OSError(
      f'checkpoint {step} could not be saved in {self._root}'
      f' ({_reason(error)}); {rest}: put that right (disk space, permissions)'
      ' and run the same command again to resume'
    )

  def restore(self, target: Any) -> Restored | None:
    """Restores the newest intact step, or returns None if there is no step.

    `target` has the structure of the state with arrays or ShapeDtypeStructs as
    leaves; the arrays come back on its shardings, whatever mesh saved them.
    Damaged steps are logged, set aside and deleted with the next save. Raises
    ValueError if no step is intact, or if a leaf differs from `target`.
    """
    self.wait()
    self._newest = None
    found = _newest_intact(self._root)
    if found is None:
      return None
    step, manifest, damaged = found
    path = self._root / str(step)
    leaves.check(manifest['leaves'], leaves.describe(target), path)
    with leaves.explained(path / 'arrays'):
      state = ocp.load(path / 'arrays', jax.tree.map(_abstract, target))
    for bad in damaged:
      if _is_writer():
        aside = self._root / f'{bad}.damaged'
        _remove([aside])
        (self._root / str(bad)).rename(aside)
    if _is_writer():
      self._prune()  # A kill may have come before it.
    self._newest = step
    return Restored(step, state, manifest['extra'], manifest['config'])

  def wait(self) -> None:
    """Waits until the save in progress, if any, is complete on disk."""
    pending, self._pending = self._pending, None
    if pending is not None:
      newest, self._newest = self._newest, None
      pending.result()
      self._newest = newest  # Not if it failed: the step may be tried again.

  def close(self) -> None:
    """Waits for the save in progress and ends the background thread."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()


def load_params(
  directory: str | os.PathLike[str], *, step: int | None = None
) -> Loaded:
  """Reads config and `params` of a run's newest intact (or given) step.

  Only the parameters are read; nothing in the directory is changed. Raises
  ValueError if the directory holds no checkpoint that can be read.
  """
  _hide_orbax_logs()
  root = _root(directory)
  step, manifest = _choose(root, step)
  arrays = root / str(step) / 'arrays'
  params = leaves.read_params(arrays, manifest['leaves'])
  return Loaded(manifest['config'], params, step)


def _root(directory: str | os.PathLike[str]) -> pathlib.Path:
  return pathlib.Path(directory).absolute() / 'checkpoints'


def _is_writer() -> bool:
  return jax.process_index() == 0


def _steps(root: pathlib.Path) -> list[int]:
  if not root.is_dir():
    return []
  names = [path.name for path in root.iterdir()]
  steps = [int(name) for name in names if name.isdecimal()]
  return sorted(step for step in steps if str(step) in names)


def _choose(root: pathlib.Path, step: int | None) -> tuple[int, dict[str, Any]]:
  """Returns the given or newest intact step and its manifest for a reader."""
  run = root.parent
  if not run.exists():
    raise ValueError(
      f'{run} does not exist; pass the run directory, the --workdir of train.py'
    )
  if not root.is_dir():
    raise ValueError(
      f'{run} is not a run directory (it has no {root.name}/); pass the'
      ' directory that was the --workdir of train.py'
    )
  steps = _steps(root)
  if not steps:
    raise ValueError(
      f'{run} has no checkpoint yet; train until the first one is saved, or'
      ' pass another run directory'
    )
  if step is None:
    step, manifest, _ = _newest_intact(root)
    return step, manifest
  if step not in steps:
    raise ValueError(f'{run} has no checkpoint {step}; choose one of {steps}')
  try:
    return step, _verified(root, step)
  except manifests.Damaged as damage:
    raise ValueError(
      f'checkpoint {step} in {root} is damaged ({damage}); choose another of'
      f' {steps}'
    ) from damage


def _verified(root: pathlib.Path, step: int) -> dict[str, Any]:
  """The manifest of a step; raises manifests.Damaged as `verify` does."""
  manifest = manifests.verify(root / str(step), _FIELDS)
  if manifest['step'] != step:
    raise manifests.Damaged(
      f'{manifests.NAME} is that of checkpoint {manifest["step"]}'
    )
  return manifest


def _newest_intact(
  root: pathlib.Path,
) -> tuple[int, dict[str, Any], list[int]] | None:
  """Returns the newest intact step, its manifest, and damaged newer steps.

  Process 0 verifies and the others follow, so that all restore one step.
  """
  found = None
  problems = {}
  if _is_writer():
    for step in reversed(_steps(root)):
      try:
        found = (step, _verified(root, step))
        break
      except manifests.Damaged as damage:
        problems[step] = str(damage)
  if jax.process_count() > 1:
    step = -1 if found is None else found[0]
    lost = int(found is None and bool(problems))
    step, lost = multihost_utils.broadcast_one_to_all(np.array([step, lost]))
    seen = shared_folder.seen(root, int(step), _FIELDS)
    if not _is_writer():
      problems = {-1: 'see process 0'} if lost else {}
      found = seen and (int(step), seen)
  if found is None and problems:
    listed = ', '.join(f'{step}: {why}' for step, why in problems.items())
    raise ValueError(
      f'no checkpoint in {root} is intact ({listed}); put back a copy of one,'
      ' or pass another --workdir to train from the start'
    )
  if found is None:
    return None
  for step, problem in problems.items():
    logging.warning(
      'checkpoint %d in %s is damaged (%s); using checkpoint %d instead',
      step, root, problem, found[0],
    )  # fmt: skip
  return *found, list(problems)


def _reason(error: Exception) -> str:
  """Returns the shortest true account of why a file operation failed."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  text = ' '.join(str(error).split())
  for number in (28, 27, 122):  # ENOSPC, EFBIG, EDQUOT
    if os.strerror(number) in text:
      return os.strerror(number)
  return text[:200]


def _sync(directory: pathlib.Path) -> None:
  handle = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def _remove(paths: Iterator[pathlib.Path] | list[pathlib.Path]) -> None:
  """Deletes directories; a kill in between leaves no half-deleted step."""
  for path in list(paths):
    if path.name.isdecimal():
      old = path.with_name(path.name + '.old')
      shutil.rmtree(old, ignore_errors=True)
      path = path.rename(old)
    for _ in range(10):
      shutil.rmtree(path, ignore_errors=True)
      if not path.exists():
        break
      time.sleep(0.1)  # A failed save may have writers that still end.


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _hide_orbax_logs() -> None:
  """Drops what Orbax logs of every save, and traces of errors it raises too."""
  logger = standard_logging.getLogger('absl')
  if _is_worth_showing not in logger.filters:
    logger.addFilter(_is_worth_showing)


def _is_worth_showing(record: standard_logging.LogRecord) -> bool:
  return '/orbax/' not in record.pathname or (
    record.levelno >= standard_logging.WARNING
    and 'raised an exception' not in str(record.msg)
  )
