"""Whether a value that was stored may be in a field of a component."""

import functools
import sys
import types
import typing
from typing import Any

_LARGEST = {int: 2**63 - 1, float: sys.float_info.max}


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
  """The annotations of a class, looked up once."""
  return typing.get_type_hints(cls)


def fits(value: Any, hint: Any) -> bool:
  """Whether a value of numbers, text, None, tuples and components may be here.

  An int is a float, too; numbers are finite, and integers have 64 bits.
  """
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any or isinstance(hint, typing.TypeVar):
    return True
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, choice) for choice in arguments)
  if origin is typing.Annotated:
    return fits(value, arguments[0])
  if origin is typing.Literal:
    return any(value == x and type(value) is type(x) for x in arguments)
  if hint in (None, type(None)):
    return value is None
  if hint in (bool, str):
    return type(value) is hint
  if hint in (int, float):
    kinds = (int,) if hint is int else (int, float)
    return type(value) in kinds and abs(value) <= _LARGEST[type(value)]
  if (origin or hint) is tuple:
    return isinstance(value, tuple) and _items_fit(value, arguments)
  if isinstance(hint, type) and getattr(hint, '_is_protocol', False):
    return _has_methods(value, hint)
  if isinstance(hint, type):
    return isinstance(value, hint)
  # A Callable and the like: a component, and no plain value.
  return not isinstance(value, bool | int | float | str | tuple | None)


def named(hint: Any) -> str:
  """An annotation as one reads it."""
  name = hint.__name__ if isinstance(hint, type) else str(hint)
  if typing.get_origin(hint) is not None:
    name = str(hint)
  return name.replace('typing.', '')


def _items_fit(value: tuple[Any, ...], arguments: tuple[Any, ...]) -> bool:
  if not arguments:
    return True
  if arguments[1:] == (...,):
    return all(fits(item, arguments[0]) for item in value)
  if arguments == ((),):
    return not value
  return len(value) == len(arguments) and all(
    fits(item, hint) for item, hint in zip(value, arguments, strict=True)
  )


def _has_methods(value: Any, protocol: type) -> bool:
  names = [n for n, x in vars(protocol).items() if callable(x) and n[0] != '_']
  return all(callable(getattr(type(value), name, None)) for name in names)
