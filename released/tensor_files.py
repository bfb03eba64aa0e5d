"""Directories of safetensors files, read and written tensor by tensor.

A file is the length of its header (8 bytes, little-endian), the header (JSON:
name -> dtype, shape and place of a tensor) and the tensors, without holes
(https://huggingface.co/docs/safetensors). A directory holds one such file, or
several and an index of them. Nothing in them is executed, and nothing is
allocated before it is known to be in the file.
"""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors library
_DEEPEST = 50  # levels of JSON

# Bytes per number of all types of the format, and those that we read.
_SIZES = {
  **dict.fromkeys(('BOOL', 'U8', 'I8', 'F8_E5M2', 'F8_E4M3', 'F8_E8M0'), 1),
  **dict.fromkeys(('I16', 'U16', 'F16', 'BF16'), 2),
  **dict.fromkeys(('I32', 'U32', 'F32'), 4),
  **dict.fromkeys(('I64', 'U64', 'F64', 'C64'), 8),
}
DTYPES = {
  'F32': np.dtype('<f4'),
  'F16': np.dtype('<f2'),
  'BF16': np.dtype(jnp.bfloat16),
}


class Stored(NamedTuple):
  """Where a tensor lies: its bytes begin at `offset` of `file`."""

  file: pathlib.Path
  dtype: str
  shape: tuple[int, ...]
  offset: int


class Planned(NamedTuple):
  """A tensor to write; dtype is one of DTYPES."""

  dtype: str
  shape: tuple[int, ...]


def scan(directory: str | os.PathLike[str]) -> dict[str, Stored]:
  """All tensors of a directory, by name, from the headers of its files.

  Raises ValueError naming the first file that is not what it says.
  """
  path = pathlib.Path(directory)
  if (path / INDEX).is_file():
    weight_map = _read_index(path / INDEX)
  elif (path / SINGLE).is_file():
    weight_map = {}
  else:
    raise ValueError(
      f'{path} has neither {SINGLE} nor {INDEX}; name the directory of a'
      ' checkpoint in safetensors form (save_pretrained writes one).'
    )
  tensors: dict[str, Stored] = {}
  for name in sorted(set(weight_map.values())) or [SINGLE]:
    for tensor, stored in _read_header(path / name).items():
      if tensor in tensors:
        raise ValueError(
          f'{path} holds {tensor[:80]} in {tensors[tensor].file.name} and in'
          f' {name[:80]}; one of these files is of another checkpoint, so copy'
          ' it anew.'
        )
      tensors[tensor] = stored
  for tensor, name in weight_map.items():
    if tensor not in tensors or tensors[tensor].file.name != name:
      raise ValueError(
        f'{path / INDEX} says that {tensor[:80]!r} is in {name[:80]}, which'
        ' does not hold it; copy the checkpoint anew.'
      )
  return tensors


def read(stored: Stored, rows: slice = slice(None)) -> np.ndarray:
  """The tensor, or some of its rows, in the type that it is stored in."""
  dtype = DTYPES[stored.dtype]
  start, stop, _ = rows.indices(stored.shape[0] if stored.shape else 1)
  shape = (stop - start, *stored.shape[1:]) if stored.shape else ()
  row = math.prod(stored.shape[1:])
  found = np.empty(shape, dtype)
  with open(stored.file, 'rb') as file:
    file.seek(stored.offset + start * row * dtype.itemsize)
    if file.readinto(_as_bytes(found)) != found.nbytes:
      raise ValueError(
        f'{stored.file} became shorter while it was read; copy it anew.'
      )
  return found


def write(
  directory: str | os.PathLike[str],
  tensors: Mapping[str, Planned],
  rows: Callable[[str], Iterable[np.ndarray]],
  *,
  max_bytes: int = 5_000_000_000,
) -> None:
  """Writes tensors to new files of at most `max_bytes` (or of one tensor).

  rows(name): arrays of the planned type which, one after the other, are the
    tensor. It is asked for each tensor when its turn comes, and once.
  """
  path = pathlib.Path(directory)
  shards = _shards(tensors, max_bytes)
  if len(shards) == 1:
    _write_file(path / SINGLE, shards[0], rows)
    return
  weight_map = {}
  for number, shard in enumerate(shards, start=1):
    name = f'model-{number:05}-of-{len(shards):05}.safetensors'
    _write_file(path / name, shard, rows)
    weight_map |= dict.fromkeys(shard, name)
  total = sum(map(_num_bytes, tensors.values()))
  index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
  (path / INDEX).write_text(json.dumps(index, indent=2) + '\n')


def parse_json(text: bytes, source: str) -> dict[str, Any]:
  """A JSON object; ValueError names its `source` if it is none."""
  tree = None
  with contextlib.suppress(ValueError, RecursionError):
    tree = json.loads(text)
  if not isinstance(tree, dict):
    raise ValueError(f'{source} is no JSON object; copy the checkpoint anew.')
  level = [tree]
  for _ in range(_DEEPEST):
    level = [
      child
      for node in level
      for child in (node.values() if isinstance(node, dict) else node)
      if isinstance(child, dict | list)
    ]
    if not level:
      return tree
  raise ValueError(
    f'{source} nests more than {_DEEPEST} levels of JSON; copy the checkpoint'
    ' anew.'
  )


def _read_index(path: pathlib.Path) -> dict[str, str]:
  weight_map = parse_json(path.read_bytes(), str(path)).get('weight_map')
  if not isinstance(weight_map, dict) or not weight_map:
    raise ValueError(f'{path} has no weight_map; copy the checkpoint anew.')
  for name in weight_map.values():
    plain = isinstance(name, str) and not set(name) & set('/\\\0')
    if not plain or not name.endswith('.safetensors') or name[0] == '.':
      raise ValueError(
        f'{path} names the file {repr(name)[:80]}; only safetensors files'
        ' beside it may be named, so mend the index.'
      )
  for name in sorted(set(weight_map.values())):
    if not (path.parent / name).is_file():
      raise ValueError(
        f'{path} names {name[:80]}, which is not there; copy the whole'
        ' checkpoint.'
      )
  return weight_map


def _read_header(path: pathlib.Path) -> dict[str, Stored]:
  """The tensors of one file, after checking that they fill it exactly."""
  size = path.stat().st_size
  with open(path, 'rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    if size < 8 or length > min(size - 8, MAX_HEADER):
      raise ValueError(
        f'{path} of {size} bytes claims a header of {length} bytes, more than'
        f' it holds or than {MAX_HEADER}; it is damaged or no safetensors file,'
        ' so copy it anew.'
      )
    header = parse_json(file.read(length), f'the header of {path}')
  header.pop('__metadata__', None)
  tensors = {
    name: _entry(path, name, entry, 8 + length)
    for name, entry in header.items()
  }
  end = 8 + length
  for name, stored in sorted(tensors.items(), key=lambda t: _place(t[1])):
    if stored.offset != end:
      raise ValueError(
        f'{path}: {name[:80]} begins at byte {stored.offset} instead of {end},'
        ' so tensors overlap or leave holes; copy the file anew.'
      )
    end += _num_bytes(stored)
  if end != size:
    raise ValueError(
      f'{path} has {size} bytes instead of the {end} that its header describes;'
      ' it is incomplete or damaged, so copy it anew.'
    )
  return tensors


def _entry(path: pathlib.Path, name: str, entry: Any, start: int) -> Stored:
  """One entry of a header, of which nothing is taken on trust."""
  entry = entry if isinstance(entry, dict) else {}
  dtype, shape = entry.get('dtype'), entry.get('shape')
  offsets = entry.get('data_offsets')
  is_known = isinstance(dtype, str) and dtype in _SIZES
  if not is_known or not _are_counts(shape) or not _are_counts(offsets, 2):
    raise ValueError(
      f'{path}: the entry of {name[:80]!r} has no known dtype, shape and'
      ' data_offsets; copy the file anew.'
    )
  stored = Stored(path, dtype, tuple(shape), start + offsets[0])
  if offsets[1] - offsets[0] != _num_bytes(stored):
    raise ValueError(
      f'{path}: {name[:80]!r} of {dtype}{list(shape)} needs'
      f' {_num_bytes(stored)} bytes but its data_offsets are {offsets}; copy'
      ' the file anew.'
    )
  return stored


def _are_counts(value: Any, length: int | None = None) -> bool:
  """Is it a list of integers >= 0, none of them beyond any file?"""
  return (
    isinstance(value, list)
    and len(value) <= 32
    and length in (None, len(value))
    and all(type(x) is int and 0 <= x < 2**63 for x in value)
  )


def _as_bytes(array: np.ndarray) -> np.ndarray:
  """The memory of a contiguous array."""
  return array.reshape(-1).view(np.uint8)


def _place(stored: Stored) -> tuple[int, int]:
  return stored.offset, _num_bytes(stored)


def _num_bytes(tensor: Stored | Planned) -> int:
  return math.prod(tensor.shape) * _SIZES[tensor.dtype]


def _shards(
  tensors: Mapping[str, Planned], max_bytes: int
) -> list[dict[str, Planned]]:
  """The tensors in their order, cut where a file would grow too large."""
  shards: list[dict[str, Planned]] = [{}]
  total = 0
  for name, planned in tensors.items():
    size = _num_bytes(planned)
    if shards[-1] and total + size > max_bytes:
      shards.append({})
      total = 0
    shards[-1][name] = planned
    total += size
  return shards


def _write_file(
  path: pathlib.Path,
  tensors: Mapping[str, Planned],
  rows: Callable[[str], Iterable[np.ndarray]],
) -> None:
  with open(path, 'xb') as file:
    file.write(_header(tensors))
    for name, planned in tensors.items():
      end = file.tell() + _num_bytes(planned)
      for array in rows(name):
        assert array.dtype == DTYPES[planned.dtype], (name, array.dtype)
        file.write(_as_bytes(np.ascontiguousarray(array)))
      assert file.tell() == end, f'{name} is not {planned.shape}'
    file.flush()
    os.fsync(file.fileno())


def _header(tensors: Mapping[str, Planned]) -> bytes:
  """The header and its length, padded so that the tensors begin aligned."""

  def entries() -> Iterator[tuple[str, Any]]:
    # transformers refuses files that do not name the library they are for.
    yield '__metadata__', {'format': 'pt'}
    start = 0
    for name, planned in tensors.items():
      end = start + _num_bytes(planned)
      yield name, {
        'dtype': planned.dtype,
        'shape': list(planned.shape),
        'data_offsets': [start, end],
      }
      start = end

  text = json.dumps(dict(entries()), separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  return len(text).to_bytes(8, 'little') + text
