"""Every rule by name, and the orders that other libraries apply them in.

transformers and vLLM truncate what the temperature has changed; llama.cpp and
mlx-lm truncate first, which keeps other sets by top-p, min-p, typical, epsilon
and eta.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from samplers import bat
from samplers import constraints
from samplers import dry
from samplers import entropy
from samplers import mirostat
from samplers import penalties
from samplers import truncation
from samplers import xtc

RULES: Mapping[str, type] = {
  'temperature': truncation.Temperature,
  'top_k': truncation.TopK,
  'top_p': truncation.TopP,
  'min_p': truncation.MinP,
  'typical': entropy.Typical,
  'epsilon': entropy.Epsilon,
  'eta': entropy.Eta,
  'top_n_sigma': truncation.TopNSigma,
  'top_h': entropy.TopH,
  'top_h_of_100': entropy.TopHOfHundred,
  'xtc': xtc.Xtc,
  'mirostat': mirostat.Mirostat,
  'repetition': penalties.Repetition,
  'frequency': penalties.Frequency,
  'presence': penalties.Presence,
  'dry': dry.Dry,
  'bias': constraints.Bias,
  'allow': constraints.Allow,
  'deny': constraints.Deny,
  'min_length': constraints.MinLength,
  'max_length': constraints.MaxLength,
  'bat': bat.Bat,
  'bat_set': bat.BatSet,
}
_NAMES = {rule: name for name, rule in RULES.items()}


# Name of a rule, then its fields and their values.
_Defaults = tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]


@dataclasses.dataclass(frozen=True)
class Preset:
  """The rules that a library has, in its order."""

  order: tuple[str, ...]
  # What it means by a name where that is not what we mean.
  meaning: tuple[tuple[str, str], ...] = ()
  # Fields of its rules that are not what they are here.
  defaults: _Defaults = ()


def _penalties_within(window: int) -> _Defaults:
  """Penalties that count the last tokens, those of the prompt too."""
  names = 'repetition', 'frequency', 'presence'
  return tuple(
    (name, (('window', window), ('prompt', True))) for name in names
  )


PRESETS: Mapping[str, Preset] = {
  'hf': Preset(
    (
      'bias',
      'repetition',
      'min_length',
      'max_length',
      'allow',
      'deny',
      'temperature',
      'top_h_of_100',
      'top_k',
      'top_p',
      'min_p',
      'typical',
      'epsilon',
      'eta',
    ),
    (('top_h', 'top_h_of_100'),),
  ),
  'vllm': Preset(
    (
      'allow',
      'deny',
      'min_length',
      'bias',
      'repetition',
      'frequency',
      'presence',
      'temperature',
      'min_p',
      'top_k',
      'top_p',
    )
  ),
  'llama.cpp': Preset(
    (
      'bias',
      'repetition',
      'frequency',
      'presence',
      'dry',
      'top_n_sigma',
      'top_k',
      'typical',
      'top_p',
      'min_p',
      'xtc',
      'temperature',
      'mirostat',
    ),
    defaults=_penalties_within(64),
  ),
  'mlx': Preset(
    (
      'bias',
      'repetition',
      'presence',
      'frequency',
      'top_p',
      'min_p',
      'xtc',
      'top_k',
      'temperature',
    ),
    defaults=_penalties_within(20),
  ),
}


def find(preset: str) -> Preset:
  """The preset of that name; ValueError if there is none."""
  if preset not in PRESETS:
    raise ValueError(
      f'preset {preset!r} is unknown; {hint(preset, PRESETS)}choices are '
      f'{", ".join(PRESETS)}'
    )
  return PRESETS[preset]


def arrange(rules: Iterable[Any], preset: str) -> tuple[Any, ...]:
  """The rules as a library of that name applies them; ValueError if it cannot.

  A rule of the same name that the library computes in another way becomes that
  one. Fields stay as they are: its defaults are for `samplers.chain.parse`.
  """
  found = find(preset)
  order, meaning = found.order, dict(found.meaning)
  placed = []
  for rule in rules:
    name = _NAMES.get(type(rule), type(rule).__name__)
    if name in meaning:
      rule = _as(RULES[meaning[name]], rule, preset)
      name = meaning[name]
    if name not in order:
      raise ValueError(
        f'preset {preset!r} has no rule {name!r}; its rules are '
        f'{", ".join(order)}; without a preset the order is the one written'
      )
    placed.append((order.index(name), rule))
  return tuple(rule for _, rule in sorted(placed, key=lambda pair: pair[0]))


def hint(name: str, names: Iterable[str]) -> str:
  """`did you mean ...? ` where a name is near."""
  near = difflib.get_close_matches(name, tuple(names), n=1)
  return f'did you mean {near[0]!r}? ' if near else ''


def _as(kind: type, rule: Any, preset: str) -> Any:
  """The same knobs in the rule of another class."""
  known = {field.name for field in dataclasses.fields(kind)}
  values = {
    field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)
  }
  for name in values.keys() - known:
    if values[name] is not None:
      raise ValueError(
        f'{name}={values[name]} does not exist in preset {preset!r} for '
        f'{_NAMES[type(rule)]}; leave it out'
      )
  return kind(**{name: values[name] for name in known})
