"""Fields of dataclasses, from a line as `gamma=0.1, passages=20`."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any


def parse(
  text: str, label: str, kinds: Sequence[type], *, omit: Sequence[str] = ()
) -> dict[str, Any]:
  """The named fields of some dataclasses; ValueError names a wrong one.

  A field is a number, one that may be None, or a tuple of numbers, which are
  written with spaces between them.

  label: whose settings they are; omit: fields that the line may not name.
  """
  known = {f.name: f for kind in kinds for f in dataclasses.fields(kind)}
  known = {name: f for name, f in known.items() if name not in omit}
  values: dict[str, Any] = {}
  for part in filter(None, (part.strip() for part in text.split(','))):
    name, _, value = (x.strip() for x in part.partition('='))
    if name not in known:
      near = difflib.get_close_matches(name, known, n=1)
      hint = f'did you mean {near[0]!r}? ' if near else ''
      raise ValueError(
        f'{part!r} is no setting of {label}; {hint}write name=number, the names'
        f' being {", ".join(known)}'
      )
    if name in values:
      raise ValueError(f'{label} has {name} twice; drop one')
    values[name] = _read(known[name], value, part, label)
  return values


def _read(
  field: dataclasses.Field, value: str, part: str, label: str
) -> Any:
  kind, is_tuple = field.type, typing.get_origin(field.type) is tuple
  if is_tuple or isinstance(kind, types.UnionType):
    kind = typing.get_args(kind)[0]
  try:
    if is_tuple:
      return tuple(kind(x) for x in value.split())
    return kind(value)
  except ValueError:
    words = 'a whole number' if kind is int else 'a number'
    example = field.default
    if is_tuple:
      words = 'numbers with spaces between them'
      example = ' '.join(map(str, example))
    hint = '' if example is None else f', as {field.name}={example}'
    raise ValueError(f'{part!r} of {label} needs {words}{hint}') from None
