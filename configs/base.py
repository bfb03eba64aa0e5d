"""The experiment: a frozen Config, its command-line changes, its JSON form.

A Config is a tree of frozen dataclasses, Linen modules among them, whose
leaves are numbers, strings, booleans, None and tuples of these. Its JSON form
is {"class": "models.lm.ByteLM", "fields": {...}} for every dataclass.
"""

import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import math
import pathlib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import flax.linen as nn
from absl import flags

from configs import field_types

# The packages whose dataclasses a stored config may instantiate.
PACKAGES = (
  'bounds',
  'configs',
  'data',
  'evals',
  'models',
  'samplers',
  'training',
)
_NONE = type(None)
# Levels of a stored config; ours have less than twenty.
_DEEPEST = 60
_PATH = re.compile(r'[A-Za-z]\w*(\.[A-Za-z_]\w*)+', re.ASCII)
_DIRECTORY = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Everything that decides what a run computes.

  model: Linen module over byte ids, as models.lm.ByteLM.
  data: corpus, as data.text.Text.
  optimizer, objective, mesh: from training.
  sampler: how the run's samples are drawn, as samplers.chain.Chain.
  rows: how documents become rows, as data.event_batches.EventRows; None for
    the rows of text of data.packing.
  initial: parameters not drawn at random, from configs.initial.
  evals: evaluators, run every `eval_every` steps and at the end.
  shardings: (regular expression of a parameter path, its axes) pairs.
  row_length: bytes per row; batch_size: rows per step over all devices.
  accumulate: parts a batch is cut into, one after the other.
  eval_bytes: bytes of the validation split scored each time.
  checkpoint_every: steps between checkpoints, of which `keep` stay.

  Where the data are tables, read cells for bytes.
  """

  model: Any
  data: Any
  optimizer: Any
  objective: Any
  sampler: Any
  mesh: Any
  row_length: int
  batch_size: int
  steps: int
  initial: tuple[Any, ...] = ()
  rows: Any = None
  evals: tuple[Any, ...] = ()
  shardings: tuple[tuple[str, tuple[Any, ...]], ...] = ()
  accumulate: int = 1
  seed: int = 0
  log_every: int = 10
  eval_every: int = 500
  eval_bytes: int = 100_000
  checkpoint_every: int = 500
  keep: int = 2

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      least = 0 if field.name == 'seed' else 1
      if field.type is int and value < least:
        raise ValueError(f'{field.name}={value} must be at least {least}')
    if self.batch_size % self.accumulate:
      raise ValueError(
        f'batch_size={self.batch_size} does not divide into '
        f'accumulate={self.accumulate} equal parts'
      )


def experiments() -> list[str]:
  """The experiment files of this directory, as --config takes them."""
  return sorted(
    f'{_DIRECTORY.name}/{file.name}'
    for file in _DIRECTORY.glob('*.py')
    if '\ndef get_config(' in file.read_text(encoding='utf-8')
  )


def load(path: str) -> Config:
  """The Config of an experiment file; ValueError if there is none."""
  file = pathlib.Path(path)
  if not file.is_file():
    known = experiments()
    near = _near(f'{_DIRECTORY.name}/{file.stem}.py', known)
    raise ValueError(
      f'--config={path} is no file{near}; there are {_listed(known)}'
    )
  if file.suffix != '.py':
    raise ValueError(f'--config={path} is no Python file; its name ends in .py')
  if file.resolve().parent == _DIRECTORY.resolve():
    module = importlib.import_module(f'{__package__}.{file.stem}')
  else:
    spec = importlib.util.spec_from_file_location('experiment', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
  get_config = getattr(module, 'get_config', None)
  config = get_config() if callable(get_config) else None
  if not isinstance(config, Config):
    raise ValueError(
      f'--config={path} must define get_config() that returns a '
      'configs.base.Config'
    )
  return config


def override(config: Any, assignments: Sequence[str]) -> Any:
  """The config with `path=value` applied, each parsed as its field's type."""
  changes: dict[str, Any] = {}
  for assignment in assignments:
    path, equals, text = assignment.partition('=')
    if not equals:
      raise ValueError(f'--set {assignment} must read path=value, as steps=100')
    below = changes
    *parents, leaf = path.strip().split('.')
    for name in parents:
      below = below.setdefault(name, {})
      if isinstance(below, str):
        break
    if isinstance(below, str) or isinstance(below.get(leaf), dict):
      raise ValueError(f'--set {assignment}: set the whole or its parts')
    below[leaf] = text.strip()
  return _replaced(config, changes, Any, '', list(_paths(config)))


def to_json(value: Any, path: str = 'config') -> Any:
  """The JSON form; ValueError names the first field that has none."""
  if value is None or isinstance(value, bool | str):
    return value
  if isinstance(value, int) and abs(value) < 2**63:
    return value
  if isinstance(value, float) and math.isfinite(value):
    return value
  if isinstance(value, tuple):
    return [to_json(v, f'{path}.{i}') for i, v in enumerate(value)]
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    name = _class_name(type(value))
    if name.split('.')[0] not in PACKAGES or '.' in type(value).__qualname__:
      raise ValueError(
        f'{path} is a {name}, which a checkpoint could not rebuild; define '
        f'the class at the top of a module of {_listed(PACKAGES)}'
      )
    fields = {k: to_json(v, f'{path}.{k}') for k, v in _children(value)}
    return {'class': name, 'fields': fields}
  raise ValueError(
    f'{path}={value!r} cannot be stored; use numbers (finite, 64 bits), '
    'strings, booleans, None, tuples and frozen dataclasses of these'
  )


def from_json(tree: Any, path: str = 'config', depth: int = 0) -> Any:
  """Inverse of `to_json`; instantiates dataclasses of PACKAGES only.

  ValueError names the first place that is not as it should be: no class that
  there is, a value of another type than its field's, or one that is refused.
  """
  if depth > _DEEPEST:
    raise ValueError(f'{path} lies deeper than {_DEEPEST} levels; flatten it')
  if isinstance(tree, list):
    return tuple(
      from_json(v, f'{path}.{i}', depth + 1) for i, v in enumerate(tree)
    )
  if not isinstance(tree, dict):
    return tree
  kinds = {key: type(value) for key, value in tree.items()}
  if kinds != {'class': str, 'fields': dict}:
    raise ValueError(
      f'{path} must hold a "class" path and a "fields" object, not '
      f'{_cut(_listed(kinds))}'
    )
  cls = _find_class(tree['class'], path)
  known, hints = _field_names(cls), field_types.hints_of(cls)
  fields = {}
  for name, value in tree['fields'].items():
    if name not in known:
      raise ValueError(
        f'{path}: {tree["class"]} has no field {_cut(name)!r}'
        f'{_near(_cut(name), known)}; its fields are {_listed(known)}'
      )
    fields[name] = from_json(value, f'{path}.{name}', depth + 1)
    if not field_types.fits(fields[name], hints[name]):
      raise ValueError(
        f'{path}.{name}={_cut(_shown(fields[name]))} must be'
        f' {field_types.named(hints[name])}; the config was changed, or written'
        ' by another version of this code'
      )
  return _instance(cls, fields, path)


def _instance(cls: type, fields: dict[str, Any], path: str) -> Any:
  """A component; ValueError names it where it refuses its fields."""
  try:
    return cls(**fields)
  except ValueError as error:
    raise ValueError(f'{path}: {" ".join(str(error).split())}') from error
  except (TypeError, AttributeError, ArithmeticError, LookupError) as error:
    raise ValueError(f'{path}: {_class_name(cls)}: {error}') from error


def differences(a: Any, b: Any, path: str = '') -> list[str]:
  """One `path: value in a != value in b` per place where two configs differ."""
  in_a, in_b = dict(_children(a)), dict(_children(b))
  if type(a) is type(b) and in_a and in_a.keys() == in_b.keys():
    return [
      line
      for name, value in in_a.items()
      for line in differences(value, in_b[name], f'{path}.{name}'.lstrip('.'))
    ]
  return [] if a == b else [f'{path}: {_shown(a)} != {_shown(b)}']


def _field_names(cls: type) -> list[str]:
  # Linen adds these two; they say where a module is bound, not what it is.
  hidden = ('parent', 'name') if issubclass(cls, nn.Module) else ()
  return [
    field.name
    for field in dataclasses.fields(cls)
    if field.init and field.name not in hidden
  ]


def _children(node: Any) -> list[tuple[str, Any]]:
  """Names and values of the fields of a dataclass or the items of a tuple."""
  if isinstance(node, tuple):
    return [(str(i), value) for i, value in enumerate(node)]
  if not dataclasses.is_dataclass(node) or isinstance(node, type):
    return []
  return [(name, getattr(node, name)) for name in _field_names(type(node))]


def _paths(node: Any, prefix: str = '') -> Iterator[str]:
  for name, value in _children(node):
    yield prefix + name
    yield from _paths(value, f'{prefix}{name}.')


def _hints(node: Any, hint: Any) -> dict[str, Any]:
  """What the children of a node are annotated as."""
  if not isinstance(node, tuple):
    return typing.get_type_hints(type(node))
  items = typing.get_args(hint)
  if items[1:] == (...,):
    items = items[:1] * len(node)
  if len(items) != len(node):
    items = (Any,) * len(node)
  return {str(i): item for i, item in enumerate(items)}


def _replaced(
  node: Any, changes: dict[str, Any], hint: Any, above: str, paths: list[str]
) -> Any:
  """A node with all its changes made at once, so that it checks them once."""
  children = dict(_children(node))
  hints = _hints(node, hint) if children else {}
  changed = {}
  for name, change in changes.items():
    path = f'{above}.{name}'.lstrip('.')
    if name not in children:
      same = [p for p in paths if p.split('.')[-1] == name]
      near = f'; did you mean {same[0]}?' if same else _near(path, paths)
      raise ValueError(
        f'--set {path}: {above or "the config"} has no field {name!r}{near}; '
        f'its fields are {_listed(children)}'
      )
    old, kind = children[name], hints[name]
    if isinstance(change, str):
      changed[name] = _parsed(change, kind, old, path)
    else:
      changed[name] = _replaced(old, change, kind, path, paths)
  if isinstance(node, tuple):
    return tuple((children | changed).values())
  return dataclasses.replace(node, **changed)


def _parsed(text: str, hint: Any, old: Any, path: str) -> Any:
  """The value that a text stands for in a field; ValueError if none."""
  if dataclasses.is_dataclass(old):
    raise ValueError(
      f'--set {path}={text}: a component is chosen in the config file; --set '
      f'changes its fields {_listed(dict(_children(old)))}'
    )
  if hint in (Any, tuple):
    kinds = {type(v) for v in old} if isinstance(old, tuple) else set()
    hint = tuple[kinds.pop(), ...] if len(kinds) == 1 else type(old)
  try:
    return _parse(text, hint)
  except ValueError:
    kind = hint.__name__ if isinstance(hint, type) else str(hint)
    raise ValueError(
      f'--set {path}={text!r} must be {kind.removeprefix("typing.")}, as '
      f'{old!r}'
    ) from None


def _parse(text: str, hint: Any) -> Any:
  """Strict reading of a text as bool, int, float, str, None or tuple."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  named = {'true': True, 'false': False, 'none': None}
  if origin in (typing.Union, types.UnionType):
    # None first and text last, since every text can be read as text.
    for choice in sorted(arguments, key=lambda a: (a is str, a is not _NONE)):
      with contextlib.suppress(ValueError):
        return _parse(text, choice)
  elif origin is typing.Literal and text in map(str, arguments):
    return {str(a): a for a in arguments}[text]
  elif origin is tuple:
    inner = text[1:-1] if text[:1] + text[-1:] in ('()', '[]') else text
    texts = [t.strip() for t in inner.rstrip(', ').split(',')] if inner else []
    if arguments[1:] == (...,):
      arguments = arguments[:1] * len(texts)
    return tuple(_parse(t, a) for t, a in zip(texts, arguments, strict=True))
  elif hint is str:
    return text
  elif hint is int and re.fullmatch(r'[+-]?[0-9]+(_[0-9]+)*', text):
    return int(text)
  elif hint is float and math.isfinite(float(text)):
    return float(text)
  elif text.lower() in named and type(named[text.lower()]) is hint:
    return named[text.lower()]
  raise ValueError(text)


def _find_class(name: str, path: str) -> type:
  """The dataclass with a stored class path, from PACKAGES only."""
  module, _, class_name = name.rpartition('.')
  cls = None
  is_ours = module.split('.')[0] in PACKAGES and '__' not in module
  if is_ours and _PATH.fullmatch(name):
    # A script of ours defines its flags again, and holds no component.
    with contextlib.suppress(ImportError, flags.Error):
      cls = getattr(importlib.import_module(module), class_name, None)
  is_class = isinstance(cls, type) and dataclasses.is_dataclass(cls)
  if not is_class or _class_name(cls) != name:
    raise ValueError(
      f'{path}: {_cut(name)} is no dataclass of {_listed(PACKAGES)}; it was '
      'written by another version of this code'
    )
  return cls


def _class_name(cls: type) -> str:
  return f'{cls.__module__}.{cls.__qualname__}'


def _shown(value: Any) -> str:
  is_component = dataclasses.is_dataclass(value)
  return _class_name(type(value)) if is_component else repr(value)


def _cut(text: str) -> str:
  """At most a line of a text that may be of any length."""
  return text if len(text) <= 80 else f'{text[:77]}...'


def _near(name: str, known: Iterable[str]) -> str:
  close = difflib.get_close_matches(name, known, n=1)
  return f'; did you mean {close[0]}?' if close else ''


def _listed(names: Iterable[str]) -> str:
  return ', '.join(names) or 'none'
