"""The manifest of a checkpoint: what its directory must hold, verifiably.

`manifest.json` is the SHA-256 of its second part, a line break, and JSON:
what the caller gave, and size and SHA-256 of every other file.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

NAME = 'manifest.json'


class Damaged(Exception):
  """A checkpoint directory is not what its manifest says."""


def verify(path: pathlib.Path) -> dict[str, Any]:
  """Returns the manifest after checking every file of `path` against it.

  Raises Damaged naming the first file that is missing or has changed.
  """
  manifest = read(path)
  for name, (size, digest) in manifest['files'].items():
    try:
      found = (path / name).stat().st_size
      if found != size:
        raise Damaged(f'{name} has {found} bytes instead of {size}')
      if _digest(path / name) != digest:
        raise Damaged(f'{name} has changed since it was written')
    except OSError as error:
      raise Damaged(_unreadable(name, error)) from error
  return manifest


def read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the manifest in `path`; raises Damaged unless it is whole."""
  try:
    digest, _, body = (path / NAME).read_bytes().partition(b'\n')
  except OSError as error:
    raise Damaged(_unreadable(NAME, error)) from error
  if hashlib.sha256(body).hexdigest().encode() != digest:
    raise Damaged(f'{NAME} is incomplete or has changed')
  return json.loads(body)


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
  finally:
    temporary.unlink(missing_ok=True)


def _unreadable(name: str, error: OSError) -> str:
  if isinstance(error, FileNotFoundError):
    return f'{name} is missing'
  return f'{name} is unreadable: {error.strerror}'


def _digest(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
