"""Results of a long command, kept as it finds them.

A command that is stopped, by whatever signal, goes on from there.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from training import manifest

_ABSENT = 'nothing'


@dataclasses.dataclass(frozen=True)
class Kept:
  """A JSON file of results by name.

  setting: JSON of all that decides them besides their names; results of
    another one are refused.
  kind: of command, for errors; label: of the results in the file; flag: of
    the command, that names another place.
  """

  path: pathlib.Path
  setting: Any
  kind: str = 'sweep'
  label: str = 'results'
  flag: str = '--workdir'

  def read(self, parse: Callable[[Any], Any]) -> dict[str, Any]:
    """What is there, each result through `parse`; nothing without the file."""
    if not self.path.exists():
      return {}
    try:
      stored = json.loads(self.path.read_text(encoding='utf-8'))
      found = {name: parse(x) for name, x in stored[self.label].items()}
      before = stored['setting']
    except (
      ValueError, KeyError, TypeError, AttributeError, RecursionError,
    ) as error:  # fmt: skip
      raise ValueError(
        f'{self.path} is no {self.kind} of this release; remove it or name'
        f' another {self.flag}'
      ) from error
    now = json.loads(json.dumps(self.setting))
    changed = next(_differences(before, now), None)
    if changed is not None:
      raise ValueError(
        f'{self.path} is a {self.kind} of other settings ({changed}); repeat'
        f' them to go on with it, or name another {self.flag}'
      )
    return found

  def write(self, found: dict[str, Any]) -> None:
    """Replaces the file, wholly or not at all."""
    self.path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({'setting': self.setting, self.label: found}, indent=2)
    manifest.write_file(self.path, text + '\n')


def _differences(before: Any, now: Any, path: str = '') -> Iterator[str]:
  """One `path: before != now` per place where two JSON trees differ."""
  if isinstance(before, list) and isinstance(now, list):
    before, now = dict(enumerate(before)), dict(enumerate(now))
  if isinstance(before, dict) and isinstance(now, dict):
    for name in {**before, **now}:
      # A stored config has them between a component and its parts.
      below = path if name == 'fields' else f'{path}.{name}'.lstrip('.')
      yield from _differences(
        before.get(name, _ABSENT), now.get(name, _ABSENT), below
      )
  elif before != now:
    yield f'{path}: {_cut(before)} != {_cut(now)}'


def _cut(value: Any) -> str:
  text = value if value == _ABSENT else repr(value)
  return text if len(text) <= 40 else f'{text[:37]}...'
