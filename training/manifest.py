"""The manifest of a folder, as a checkpoint: what it must hold, verifiably.

`manifest.json` is the SHA-256 of its second part, a line break, and JSON:
what the caller gave, and size and SHA-256 of every other file.
"""

import hashlib
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

NAME = 'manifest.json'
# Bytes of arrays per byte of files: compression leaves more of any weights.
_DENSEST, _SPARE = 1024, 2**26


class Damaged(Exception):
  """A checkpoint directory is not what its manifest says."""


def verify(
  path: pathlib.Path, fields: Mapping[str, type] | None = None
) -> dict[str, Any]:
  """Returns the manifest after checking every file of `path` against it.

  Raises Damaged naming the first file that is missing or has changed, and for
  files or links that lead out of the directory. fields: as for `read`.
  """
  manifest = read(path, fields)
  _check_links(path)
  for name, (size, digest) in manifest['files'].items():
    try:
      if (path / name).exists() and not (path / name).is_file():
        raise Damaged(f'{name} is no file')
      found = (path / name).stat().st_size
      if found != size:
        raise Damaged(f'{name} has {found} bytes instead of {size}')
      if _digest(path / name) != digest:
        raise Damaged(f'{name} has changed since it was written')
    except OSError as error:
      raise Damaged(_unreadable(name, error)) from error
  return manifest


def read(
  path: pathlib.Path, fields: Mapping[str, type] | None = None
) -> dict[str, Any]:
  """Returns the manifest in `path`; raises Damaged unless it is whole.

  fields: what it must have besides the files; 'leaves' map the paths of arrays
    to their types and shapes.

  Its hash keeps out accidents and no attacker, so nothing in it is taken on
  trust: names of files, and that the arrays fit into files of such sizes.
  """
  try:
    if (path / NAME).exists() and not (path / NAME).is_file():
      raise Damaged(f'{NAME} is no file')
    digest, _, body = (path / NAME).read_bytes().partition(b'\n')
  except OSError as error:
    raise Damaged(_unreadable(NAME, error)) from error
  if hashlib.sha256(body).hexdigest().encode() != digest:
    raise Damaged(f'{NAME} is incomplete or has changed')
  try:
    manifest = json.loads(body)
  except (ValueError, RecursionError) as error:
    raise Damaged(f'{NAME} is no JSON') from error
  if not isinstance(manifest, dict):
    raise Damaged(f'{NAME} is no JSON object')
  for name, kind in {'files': dict, **(fields or {})}.items():
    if type(manifest.get(name)) is not kind:
      raise Damaged(f'{NAME} has no {kind.__name__} {name!r}')
  _check_files(manifest['files'])
  if 'leaves' in (fields or {}):
    _check_sizes(manifest['leaves'], manifest['files'])
  return manifest


def _check_files(files: dict[str, Any]) -> None:
  """Raises Damaged unless every name stays below the directory."""
  for name, entry in files.items():
    if not _is_below(name):
      raise Damaged(f'{NAME} names {name[:80]!r}, no file of the checkpoint')
    kinds = [type(x) for x in entry] if isinstance(entry, list) else []
    if kinds != [int, str] or entry[0] < 0:
      raise Damaged(f'{NAME} has no size and hash of {name[:80]!r}')


def _is_below(name: str) -> bool:
  try:
    os.fsencode(name)
  except UnicodeEncodeError:
    return False
  parts = name.split('/')
  return '\0' not in name and not {'', '.', '..'} & set(parts)


def _check_sizes(leaves: dict[str, Any], files: dict[str, Any]) -> None:
  """Raises Damaged for arrays that files of these sizes cannot hold."""
  claimed = 0
  for name, entry in leaves.items():
    is_pair = isinstance(entry, list) and len(entry) == 2
    dtype, shape = entry if is_pair else (None, None)
    is_shape = isinstance(shape, list) and all(
      type(axis) is int and 0 <= axis < 2**63 for axis in shape
    )
    if not isinstance(dtype, str) or not is_shape:
      raise Damaged(f'{NAME} has no type and shape of {name[:80]!r}')
    bits = re.search(r'\d{1,3}', dtype)
    claimed += math.prod(shape) * max(int(bits[0]) if bits else 8, 8) // 8
  stored = sum(size for size, _ in files.values())
  if claimed > _SPARE + _DENSEST * stored:
    raise Damaged(
      f'{NAME} claims arrays of {claimed} bytes in files of {stored}'
    )


def _check_links(path: pathlib.Path) -> None:
  """Raises Damaged where a symbolic link leads out of the directory."""
  root = os.path.realpath(path)
  for folder, folders, names in os.walk(path):
    for name in (*folders, *names):
      entry = os.path.join(folder, name)
      inside = os.path.realpath(entry).startswith(root + os.sep)
      if os.path.islink(entry) and not inside:
        where = os.path.relpath(entry, path)
        raise Damaged(f'{where} is a link that leads out of the checkpoint')


def write(path: pathlib.Path, manifest: dict[str, Any]) -> None:
  """Writes the manifest of the files that are under `path`."""
  files = sorted(file for file in path.rglob('*') if file.is_file())
  entries = {
    str(file.relative_to(path)): (file.stat().st_size, _digest(file))
    for file in files
  }
  body = json.dumps(manifest | {'files': entries}, indent=1)
  digest = hashlib.sha256(body.encode()).hexdigest()
  write_file(path / NAME, f'{digest}\n{body}')


def write_file(path: pathlib.Path, text: str) -> None:
  """Writes or replaces a file, wholly or not at all, and durably.

  A device or pipe, as /dev/null, is written to and stays what it is.
  """
  if path.exists() and not path.is_file():
    path.write_text(text)
    return
  temporary = path.with_name(path.name + '.tmp')
  try:
    with open(temporary, 'w') as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    temporary.replace(path)
  except OSError as error:
    error.filename = str(path)  # Writing does not name it, as opening does.
    raise
  finally:
    temporary.unlink(missing_ok=True)


def _unreadable(name: str, error: OSError) -> str:
  if isinstance(error, FileNotFoundError):
    return f'{name} is missing'
  return f'{name} is unreadable: {error.strerror}'


def _digest(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
