"""JSON of files that nobody vouches for: a value, or one sentence."""

import json
import pathlib
from typing import Any

# Deeper than anything that we write; far below where Python's stack ends.
DEEPEST = 100


def parse(text: bytes | str, place: str, way_out: str) -> Any:
  """The value of a JSON text (UTF-8); ValueError where it is none.

  place: what the text is, as 'FILE' or 'FILE:12'. way_out: what to do then.
  """
  try:
    if isinstance(text, bytes):
      text = text.decode('utf-8')
    value = json.loads(text)
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{place} is no JSON (byte {error.start} is no UTF-8); {way_out}.'
    ) from error
  except (ValueError, RecursionError, MemoryError) as error:
    reason = (str(error) or 'it needs too much memory').splitlines()[0]
    raise ValueError(f'{place} is no JSON ({reason}); {way_out}.') from error
  if depth_exceeds(value, DEEPEST):
    raise ValueError(
      f'{place} nests more than {DEEPEST} levels of JSON; {way_out}.'
    )
  return value


def load(path: pathlib.Path, kind: type, way_out: str) -> Any:
  """The list or the object (`kind`) in a file; ValueError for anything else."""
  found = parse(path.read_bytes(), str(path), way_out)
  if not isinstance(found, kind):
    raise ValueError(f'{path} holds no JSON {kind.__name__}; {way_out}.')
  return found


def depth_exceeds(value: Any, deepest: int) -> bool:
  """Whether lists and objects nest deeper, found without recursion."""
  level = [value]
  for _ in range(deepest):
    level = [node for node in level if isinstance(node, dict | list)]
    if not level:
      return False
    level = [
      child
      for node in level
      for child in (node.values() if isinstance(node, dict) else node)
    ]
  return any(isinstance(node, dict | list) for node in level)
