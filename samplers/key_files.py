"""A store of keys on disk: files that are mapped, not loaded.

Every id of a corpus has a key, the state of a model that predicts it. Keys lie
in shards, one after the other in the order of the documents; ids, where
documents begin, their names and what passages are found by lie beside them. A
shard appears whole or not at all, so that a killed build goes on where it
stopped. What a finished store holds is in its manifest, which the caller has.
"""

import bisect
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

DTYPES = ('bfloat16', 'float16', 'float32')
_SETTINGS = 'settings.json'


class Settings(NamedTuple):
  """What a store is of; equal settings and documents give equal files.

  model: fingerprint of the model and its parameters. width: numbers per key.
  passage: ids per passage. window, context: ids per row that the model read,
  and how many of them a document's next row repeats.
  """

  model: str
  vocabulary_size: int
  width: int
  dtype: str
  passage: int
  window: int
  context: int

  @classmethod
  def read(cls, tree: Any) -> 'Settings':
    """From the JSON of a store; ValueError if it is not of settings."""
    kinds = cls.__annotations__
    if not isinstance(tree, dict) or tree.keys() != kinds.keys():
      raise ValueError(f'its settings are not {", ".join(kinds)}')
    for name, kind in kinds.items():
      least = 0 if name == 'context' else 1
      if type(tree[name]) is not kind or (kind is int and tree[name] < least):
        raise ValueError(f'its {name} is {str(tree[name])[:80]!r}')
    if tree['dtype'] not in DTYPES:
      raise ValueError(f'its dtype is none of {", ".join(DTYPES)}')
    return cls(**tree)


class Texts(NamedTuple):
  """The ids of all documents back to back, each with the id that ends it.

  The ids of document i are ids_N[offsets[i] : offsets[i + 1]].
  """

  ids_N: np.ndarray
  offsets: np.ndarray


class Passages(NamedTuple):
  """Documents cut into runs of ids of equal length, the last one shorter."""

  document_P: np.ndarray
  start_P: np.ndarray  # in Texts.ids_N
  length_P: np.ndarray


class Shards:
  """The keys of all ids."""

  def __init__(
    self, path: pathlib.Path, settings: Settings, counts: list[int]
  ) -> None:
    """counts: keys per shard."""
    self._path, self._settings = path, settings
    self._starts = list(itertools.accumulate(counts, initial=0))
    self._mapped: dict[int, np.ndarray] = {}

  def __len__(self) -> int:
    return self._starts[-1]

  def read(self, start: int, stop: int) -> np.ndarray:
    """The keys [stop - start, D] of ids start to stop - 1, as stored."""
    parts = []
    while start < stop:
      number = bisect.bisect_right(self._starts, start) - 1
      first, end = self._starts[number : number + 2]
      end = min(stop, end)
      parts.append(self._shard(number)[start - first : end - first])
      start = end
    return parts[0] if len(parts) == 1 else np.concatenate(parts)

  def _shard(self, number: int) -> np.ndarray:
    if number not in self._mapped:
      self._mapped[number] = _map(
        self._path / _shard_name(number),
        jnp.dtype(self._settings.dtype),
        self._settings.width,
      )
    return self._mapped[number]


def checked(path: pathlib.Path, header: dict[str, Any]) -> Settings:
  """The settings of a store; ValueError if its files are not as they say.

  header: what `finish` returned, from who knows whom.
  """
  settings = Settings.read(header['settings'])
  counts = header.get('counts')
  if not isinstance(counts, list) or any(type(n) is not int for n in counts):
    raise ValueError('its counts are no whole numbers')
  try:  # Mapped, as its own header may ask for any size.
    offsets = np.load(path / 'offsets.npy', 'r', allow_pickle=False)
  except Exception as error:  # NumPy has a dozen classes for it.
    reason = ' '.join(str(error).split())[:200]
    raise ValueError(f'offsets.npy is no array ({reason})') from error
  if offsets.dtype != np.int64 or offsets.ndim != 1 or not offsets.size:
    raise ValueError('offsets.npy is no row of int64')
  if offsets[0] or (offsets[1:] < offsets[:-1]).any():
    raise ValueError('offsets.npy does not rise from 0')
  row = settings.width * jnp.dtype(settings.dtype).itemsize
  sizes = {'ids.bin': int(offsets[-1]) * _id_dtype(settings).itemsize}
  sizes |= {_shard_name(i): n * row for i, n in enumerate(counts)}
  for name, size in sizes.items():
    if not (path / name).is_file() or (path / name).stat().st_size != size:
      raise ValueError(f'{name} does not have {size} bytes')
  if sum(counts) != offsets[-1]:
    raise ValueError(f'it has {sum(counts)} keys of {offsets[-1]} ids')
  return settings


class Store:
  """A finished store; see the module."""

  def __init__(self, path: pathlib.Path, header: dict[str, Any]) -> None:
    """Maps the files; header: what `finish` returned."""
    self.path = path
    self.settings = Settings(**header['settings'])
    self.texts = read_texts(path, self.settings)
    self.keys = Shards(path, self.settings, header['counts'])
    if not len(self.keys):
      raise ValueError(
        f'key store {path} is empty; build it from a corpus that has text'
      )
    self.passages = cut(self.texts.offsets, self.settings.passage)
    self.mean_PD = _map(path / 'means.bin', np.float32, self.settings.width)

  @functools.cached_property
  def names(self) -> list[str]:
    """Of the documents."""
    return json.loads((self.path / 'names.json').read_text('utf-8'))

  def array(self, name: str) -> np.ndarray:
    """One of the arrays that `finish` was given."""
    path = self.path / f'{name}.npy'
    return np.load(path, mmap_mode='r', allow_pickle=False)


def begin(
  path: pathlib.Path,
  settings: Settings,
  documents: Iterable[tuple[str, np.ndarray]],
) -> Texts:
  """Writes names and ids; ValueError over part of a store of anything else.

  documents: their names, and their ids with the one that ends them.
  """
  path.mkdir(parents=True, exist_ok=True)
  mark, temporary = path / _SETTINGS, path / 'ids.bin.tmp'
  others = [file for file in path.iterdir() if file.suffix != '.tmp']
  if others and not mark.exists():
    raise ValueError(
      f'--out={path} holds other files; name a new directory or an empty one'
    )
  names, offsets, digest = [], [0], hashlib.sha256()
  with temporary.open('wb') as file:
    for name, ids_N in documents:
      part = np.asarray(ids_N).astype(_id_dtype(settings)).tobytes()
      file.write(part)
      digest.update(part)
      names.append(name)
      offsets.append(offsets[-1] + len(ids_N))
  digest.update(json.dumps([names, offsets]).encode())
  if offsets[-1] <= len(names):  # Each document has the id that ends it.
    temporary.unlink()
    raise ValueError(
      'the corpus of the key store is empty: its documents have no text; take'
      ' another'
    )
  own = {'settings': settings._asdict(), 'corpus': digest.hexdigest()}
  if mark.exists() and json.loads(mark.read_text('utf-8')) != own:
    temporary.unlink()
    raise ValueError(
      f'--out={path} holds part of a key store of another model, corpus or'
      ' settings; remove it or name another path'
    )
  _write(mark, json.dumps(own, indent=1).encode())
  temporary.replace(path / 'ids.bin')
  np.save(path / 'offsets.npy', np.array(offsets, np.int64))
  _write(path / 'names.json', json.dumps(names).encode())
  return read_texts(path, settings)


def has_shard(path: pathlib.Path, number: int) -> bool:
  return (path / _shard_name(number)).exists()


def write_shard(path: pathlib.Path, number: int, key_ND: np.ndarray) -> None:
  """Adds a shard, wholly or not at all."""
  _write(path / _shard_name(number), np.ascontiguousarray(key_ND).tobytes())


def finish(
  path: pathlib.Path,
  settings: Settings,
  counts: list[int],
  arrays: dict[str, np.ndarray],
) -> dict[str, Any]:
  """Writes what is left and returns the header, for the manifest and Store.

  counts: keys per shard. arrays: for Store.array.
  """
  for name, array in arrays.items():
    np.save(path / f'{name}.npy', array)
  shards = Shards(path, settings, counts)
  places = cut(read_texts(path, settings).offsets, settings.passage)
  with (path / 'means.bin').open('wb') as file:
    for start, length in zip(*places[1:], strict=True):
      key_ND = shards.read(start, start + length).astype(np.float32)
      file.write(key_ND.mean(axis=0).tobytes())
  for left in path.glob('*.tmp'):
    left.unlink()
  return {'settings': settings._asdict(), 'counts': counts}


def cut(offsets: np.ndarray, length: int) -> Passages:
  """Passages of so many ids of every document."""
  sizes_D = np.diff(offsets)
  counts_D = -(-sizes_D // length)
  document_P = np.repeat(np.arange(len(sizes_D)), counts_D)
  firsts_D = np.cumsum(counts_D) - counts_D
  within_P = (np.arange(len(document_P)) - firsts_D[document_P]) * length
  length_P = np.minimum(sizes_D[document_P] - within_P, length)
  return Passages(document_P, offsets[:-1][document_P] + within_P, length_P)


def read_texts(path: pathlib.Path, settings: Settings) -> Texts:
  offsets = np.load(path / 'offsets.npy', allow_pickle=False)
  return Texts(_map(path / 'ids.bin', _id_dtype(settings)), offsets)


def _shard_name(number: int) -> str:
  return f'keys-{number:05d}.bin'


def _id_dtype(settings: Settings) -> np.dtype:
  return np.min_scalar_type(settings.vocabulary_size - 1)


def _map(path: pathlib.Path, dtype: Any, width: int = 0) -> np.ndarray:
  """A read-only map of a file, as rows of `width` numbers or as one row."""
  shape = (-1, width) if width else (-1,)
  if not path.stat().st_size:
    return np.zeros((0, *shape[1:]), dtype)
  return np.memmap(path, dtype, mode='r').reshape(shape)


def _write(path: pathlib.Path, data: bytes) -> None:
  """Writes a file, wholly or not at all."""
  temporary = path.with_name(path.name + '.tmp')
  with temporary.open('wb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)
