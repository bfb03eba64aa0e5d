"""config.json of a released checkpoint: typed reading, refusals by name."""

import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from models import positions
from released import tensor_files

NAME = 'config.json'
EPSILON = 1e-5  # of models.attention.RMSNorm
MAX_LAYERS = 1000


def read(directory: str | os.PathLike[str]) -> 'Fields':
  """The config of a checkpoint directory; ValueError if it has none."""
  path = pathlib.Path(directory)
  if not path.is_dir():
    raise ValueError(
      f'--source={path} is no directory; name that of a transformers'
      f' checkpoint, with its {NAME}.'
    )
  if not (path / NAME).is_file():
    raise ValueError(
      f'{path} has no {NAME}; name the directory of a transformers checkpoint'
      ' (save_pretrained writes one).'
    )
  text = (path / NAME).read_bytes()
  return Fields(tensor_files.parse_json(text, str(path / NAME)))


def write(directory: str | os.PathLike[str], tree: dict[str, Any]) -> None:
  path = pathlib.Path(directory) / NAME
  path.write_text(json.dumps(tree, indent=2) + '\n')


class Fields:
  """An object of the config; a field that is absent or null has its default.

  path: where it stands in the config, for messages.
  defaults: of fields that have one.
  """

  def __init__(
    self,
    tree: Mapping[str, Any],
    path: str = '',
    defaults: Mapping[str, Any] | None = None,
  ) -> None:
    self._tree = tree
    self._path = path
    self._defaults = defaults or {}

  def get(self, name: str) -> Any:
    value = self._tree.get(name)
    return self._defaults.get(name) if value is None else value

  def with_defaults(self, defaults: Mapping[str, Any]) -> 'Fields':
    return Fields(self._tree, self._path, defaults)

  def is_null(self, name: str) -> bool:
    """Does the config say null, and not merely nothing?"""
    return name in self._tree and self._tree[name] is None

  def integer(self, name: str, *, largest: int = 2**31 - 1) -> int:
    value = self.get(name)
    if type(value) is not int or not 1 <= value <= largest:
      self.refuse(name, f'must be an integer in 1..{largest}')
    return value

  def optional_integer(self, name: str) -> int | None:
    """As `integer`; here null means that there is no limit."""
    if self.is_null(name) or self.get(name) is None:
      return None
    return self.integer(name)

  def number(self, name: str) -> float:
    value = self.get(name)
    is_number = type(value) in (int, float)
    if not is_number or not abs(value) <= sys.float_info.max:
      self.refuse(name, 'must be a finite number')
    return float(value)

  def section(
    self, name: str, defaults: Mapping[str, Any] | None = None
  ) -> 'Fields':
    """An object within the object; empty if there is none."""
    value = self.get(name)
    if not isinstance(value, dict | None):
      self.refuse(name, 'must be an object')
    return Fields(value or {}, f'{self._path}{name}.', defaults)

  def require(self, name: str, *allowed: Any) -> None:
    """Raises ValueError unless the field has one of the values."""
    value = self.get(name)
    if not any(value == x and type(value) is type(x) for x in allowed):
      listed = ' or '.join(map(json.dumps, allowed))
      self.refuse(name, f'is not supported, only {listed} is')

  def refuse(self, name: str, rule: str) -> None:
    """Raises ValueError with the value of a field and the rule it breaks."""
    value = json.dumps(self.get(name))
    value = value if len(value) <= 80 else f'{value[:77]}...'
    raise ValueError(
      f'{NAME}: {self._path}{name}={value} {rule}; choose a checkpoint for'
      ' which that holds.'
    )


def position(fields: Fields) -> positions.Rotary:
  """The rotary angles, of old and of new layouts.

  New ones have rope_parameters, old ones rope_theta and rope_scaling beside
  the other fields. Raises ValueError for angles scaled in a way that
  models.positions does not know.
  """
  new, old = fields.section('rope_parameters'), fields.section('rope_scaling')
  scaling = None
  for section in (old, new):
    scaling = _scaling(section) or scaling
    section.require('partial_rotary_factor', None, 1.0, 1)
  fields.require('partial_rotary_factor', None, 1.0, 1)
  holder = new if new.get('rope_theta') is not None else fields
  return positions.Rotary(_positive(holder, 'rope_theta'), scaling)


def _scaling(section: Fields) -> positions.Linear | positions.Llama3 | None:
  """What rope_parameters or rope_scaling say beside the base."""
  for name in ('rope_type', 'type'):
    section.require(name, None, 'default', 'linear', 'llama3')
  kind = section.get('rope_type') or section.get('type')
  if kind == 'linear':
    return positions.Linear(_positive(section, 'factor'))
  if kind != 'llama3':
    section.require('factor', None, 1.0, 1)
    return None
  found = positions.Llama3(
    factor=_positive(section, 'factor'),
    low_frequency=_positive(section, 'low_freq_factor'),
    high_frequency=_positive(section, 'high_freq_factor'),
    original_length=section.integer('original_max_position_embeddings'),
  )
  if found.high_frequency <= found.low_frequency:
    section.refuse('high_freq_factor', 'must be above low_freq_factor')
  return found


def _positive(fields: Fields, name: str) -> float:
  if fields.number(name) <= 0:
    fields.refuse(name, 'must be positive')
  return fields.number(name)


def _describe_position(position: positions.Rotary) -> dict[str, Any]:
  """Inverse of `position`; ValueError for what transformers' Llama lacks."""
  if not isinstance(position, positions.Rotary):
    check_choices({'position': (type(position).__name__, 'Rotary')})
  found: dict[str, Any] = {'rope_theta': position.theta}
  scaling = position.scaling
  if scaling is None:
    return found | {'rope_type': 'default'}
  found['factor'] = scaling.factor
  if isinstance(scaling, positions.Linear):
    return found | {'rope_type': 'linear'}
  return found | {
    'rope_type': 'llama3',
    'low_freq_factor': scaling.low_frequency,
    'high_freq_factor': scaling.high_frequency,
    'original_max_position_embeddings': scaling.original_length,
  }


def check_epsilon(fields: Fields) -> None:
  """Raises ValueError for norms other than those of models.stacks."""
  for name in ('rms_norm_eps', 'norm_eps'):
    fields.require(name, None, EPSILON)


def check_block(fields: Fields) -> None:
  """Raises ValueError for blocks that models.blocks does not have."""
  fields.require('hidden_act', None, 'silu')
  for name in ('dropout', 'attention_dropout'):
    fields.require(name, None, 0, 0.0)
  for name in ('attention_bias', 'mlp_bias'):
    fields.require(name, None, False)
  width = fields.integer('hidden_size')
  heads = fields.integer('num_attention_heads')
  if width % (2 * heads):
    fields.refuse(
      'num_attention_heads',
      f'must divide hidden_size={width} into heads of even width',
    )
  fields.require('head_dim', None, width // heads)


def sizes(part: Fields) -> dict[str, Any]:
  """Fields of a models.lm.ByteLM or a models.stacks.Stack."""
  width = part.integer('hidden_size')
  heads = part.integer('num_attention_heads')
  hidden = part.get('intermediate_size')
  return {
    'width': width,
    'layers': part.integer('num_hidden_layers', largest=MAX_LAYERS),
    'heads': heads,
    'key_value_heads': part.optional_integer('num_key_value_heads') or heads,
    'hidden': part.integer('intermediate_size') if hidden else 8 * width // 3,
    'position': position(part),
  }


def describe(stack: Any) -> dict[str, Any]:
  """What `sizes` reads, and what `check_block` checks."""
  return {
    'hidden_size': stack.width,
    'num_hidden_layers': stack.layers,
    'num_attention_heads': stack.heads,
    'num_key_value_heads': stack.key_value_heads or stack.heads,
    'intermediate_size': stack.hidden,
    'rms_norm_eps': EPSILON,
    'rope_parameters': _describe_position(stack.position),
    'hidden_act': 'silu',
  }


def check_choices(choices: Mapping[str, tuple[Any, Any]]) -> None:
  """Raises ValueError for the first field with another value than wanted."""
  for name, (found, wanted) in choices.items():
    if found != wanted:
      raise ValueError(
        f'model.{name} is {found}, but transformers can only have {wanted};'
        ' export a model of that kind.'
      )
