"""Rules in the order written, then one draw per row with its own key.

A rule is a frozen dataclass and a pytree, `rule(logits_BV) -> logits_BV`. One
that remembers also has `init` and `update` (`samplers.history`) and takes its
memory; one that leaves something to chance has `toss(keys_B)` and takes what
that gave. One that drops ids to draw better says `truncates`: a row made greedy
has no use for that, so it skips such rules.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from samplers import constraints
from samplers import draw
from samplers import history
from samplers import knobs
from samplers import presets
from samplers import truncation

_CHOICES = 'choices are greedy, ' + ', '.join(
  f'{name}(X)' for name in presets.RULES
)
_LISTS = ('ids', 'exempt', 'breakers')
_MOST_IDS = 1 << 21


@knobs.register
@dataclasses.dataclass(frozen=True)
class Chain:
  """A sampler: rules over the logits from first to last, then a draw."""

  rules: tuple[Any, ...] = ()

  def __post_init__(self) -> None:
    constraints.check(self.rules)

  def __or__(self, other: Any) -> 'Chain':
    """The chain with one more rule, or with those of another chain, behind."""
    rules = other.rules if isinstance(other, Chain) else (other,)
    return Chain((*self.rules, *rules))

  def __call__(self, keys_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
    """One int32 token per row, which depends on that row and its key only.

    A row made greedy (temperature 0) ignores its key; a row of nothing but
    -inf gives id 0.
    """
    return draw.draw(keys_B, self.transform(keys_B, logits_BV, ()))

  def init(self, prompt: history.Prompt) -> tuple[Any, ...]:
    """What every rule that remembers starts with, in their order."""
    for rule in self.rules:
      knobs.check_rows(rule, len(prompt.lengths_B))
    return tuple(
      rule.init(prompt) for rule in self.rules if hasattr(rule, 'init')
    )

  def step(
    self,
    keys_B: jax.Array,
    logits_BV: jax.Array,
    memory: tuple[Any, ...],
    active_B: jax.Array,
  ) -> tuple[jax.Array, tuple[Any, ...]]:
    """A token per row and the memory that knows of it; inactive rows rest."""
    logits_BV = self.transform(keys_B, logits_BV, memory)
    token_B = draw.draw(keys_B, logits_BV)
    drawn = history.Drawn(token_B, active_B, logits_BV)
    return token_B, self.remember(memory, drawn)

  def remember(
    self, memory: tuple[Any, ...], drawn: history.Drawn
  ) -> tuple[Any, ...]:
    """The memory that knows of these tokens too."""
    remembering = [rule for rule in self.rules if hasattr(rule, 'init')]
    return tuple(
      rule.update(part, drawn)
      for rule, part in zip(remembering, memory, strict=True)
    )

  def transform(
    self, keys_B: jax.Array, logits_BV: jax.Array, memory: tuple[Any, ...]
  ) -> jax.Array:
    """The float32 logits that a token is drawn from.

    ValueError for a knob that has one value per row, of other rows than these.
    """
    remembering = [type(r).__name__ for r in self.rules if hasattr(r, 'init')]
    if len(remembering) != len(memory):
      raise ValueError(
        f'{", ".join(remembering) or "no rule"} of this sampler must remember '
        f'and there are {len(memory)} memories; pass the sampler to '
        'samplers.loop.prefill, as sampler=, and the same one to decode'
      )
    logits_BV, parts, streams = logits_BV.astype(jnp.float32), iter(memory), 0
    for place, rule in enumerate(self.rules):
      knobs.check_rows(rule, len(logits_BV))
      before_BV = logits_BV
      if hasattr(rule, 'init'):
        logits_BV = rule(logits_BV, next(parts))
      elif hasattr(rule, 'toss'):
        # A stream apart from that of the draw, which is the key itself.
        streams += 1
        own_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, streams)
        logits_BV = rule(logits_BV, rule.toss(own_keys_B))
      else:
        logits_BV = rule(logits_BV)
      if getattr(rule, 'truncates', False):
        logits_BV = _spare_greedy(
          self.rules[place + 1 :], logits_BV, before_BV
        )
    return logits_BV


def _spare_greedy(
  later: tuple[Any, ...], logits_BV: jax.Array, before_BV: jax.Array
) -> jax.Array:
  """Truncated logits, but as before in rows that a later rule makes greedy.

  Rows that an earlier rule made greedy have a single id left, which stays.
  """
  for rule in later:
    if isinstance(rule, truncation.Temperature):
      logits_BV = jnp.where(rule.is_greedy(), before_BV, logits_BV)
  return logits_BV


def parse(text: str) -> Chain:
  """Reads `greedy` or a line like `temperature(0.8)|top_k(40)|top_p(0.95)`.

  More fields of a rule follow by name, as `xtc(0.5, threshold=0.1)`; ids are
  written `deny(0-3 255)`, biases `bias(10:-2 32:0.5)`. A preset in front, as
  `llama.cpp: top_p(0.9)|temperature(0.8)`, puts the rules in its order and
  sets fields that are not written to what the library has.
  """
  match = re.match(r'\s*([\w.]+)\s*:', text)
  name, lines = (match[1], text[match.end() :]) if match else (None, text)
  preset = presets.find(name) if name else presets.Preset(())
  defaults = {rule: dict(fields) for rule, fields in preset.defaults}
  rules = tuple(
    _parse_rule(part.strip(), defaults) for part in lines.split('|')
  )
  return Chain(presets.arrange(rules, name) if name else rules)


def _parse_rule(text: str, defaults: Mapping[str, Mapping[str, Any]]) -> Any:
  if text == 'greedy':
    return truncation.Temperature(0.0)
  match = re.fullmatch(r'(\w+)\s*(?:\(([^()|]*)\))?', text)
  if not match:
    raise ValueError(
      f'sampler rule {text!r} is not of the form name(number); {_CHOICES},'
      ' joined by |'
    )
  name, inside = match.groups()
  if name == 'greedy':
    raise ValueError(f"sampler rule {text!r}: 'greedy' takes no number")
  if name not in presets.RULES:
    near = presets.hint(name, ('greedy', *presets.RULES))
    raise ValueError(f'sampler rule {name!r} is unknown; {near}{_CHOICES}')
  rule = presets.RULES[name]
  fields = [field.name for field in dataclasses.fields(rule)]
  if name == 'bias':
    return rule(**_parse_biases(inside or '', text))
  values: dict[str, Any] = {}
  for place, part in enumerate((inside or '').split(',')):
    field, equals, value = part.rpartition('=')
    field = field.strip() if equals else fields[0] if not place else ''
    if not field:
      raise ValueError(
        f'sampler rule {text!r} needs one number in brackets, as in {name}(1),'
        f' and its other fields by name; they are {", ".join(fields)}'
      )
    if field not in fields:
      near = presets.hint(field, fields)
      raise ValueError(
        f'sampler rule {text!r}: {name} has no field {field!r}; {near}its '
        f'fields are {", ".join(fields)}'
      )
    if field in values:
      raise ValueError(
        f'sampler rule {text!r} gives {field} twice; drop one of them'
      )
    values[field] = _parse_value(field, value.strip(), text, name)
  return rule(**{**defaults.get(name, {}), **values})


def _parse_value(field: str, value: str, text: str, name: str) -> Any:
  if field in _LISTS:
    return _parse_ids(value, text)
  try:
    return float(value)
  except ValueError:
    raise ValueError(
      f'sampler rule {text!r} needs one number in brackets, as in {name}(1)'
      f' or {name}({field}=1)'
    ) from None


def _parse_ids(value: str, text: str) -> tuple[int, ...]:
  ids: list[int] = []
  for item in value.split():
    span = re.fullmatch(r'([0-9]{1,9})(?:-([0-9]{1,9}))?', item)
    if not span:
      raise ValueError(
        f'sampler rule {text!r}: {item!r} is no id; write ids as 10 or 97-122,'
        ' with spaces between them'
      )
    first, last = int(span[1]), int(span[2] or span[1])
    if last < first:
      raise ValueError(
        f'sampler rule {text!r}: {item!r} runs backwards; write {last}-{first}'
      )
    if last - first + len(ids) >= _MOST_IDS:
      raise ValueError(
        f'sampler rule {text!r} names more than {_MOST_IDS} ids; no vocabulary'
        ' has as many, so write a shorter span'
      )
    ids.extend(range(first, last + 1))
  return tuple(ids)


def _parse_biases(inside: str, text: str) -> dict[str, tuple[Any, ...]]:
  ids: list[int] = []
  values: list[float] = []
  for item in inside.split():
    where, _, value = item.partition(':')
    try:
      bias = float(value)
    except ValueError:
      raise ValueError(
        f'sampler rule {text!r}: {item!r} is no bias; write id:value, as in '
        'bias(10:-2 97-122:0.5)'
      ) from None
    more = _parse_ids(where, text)
    ids.extend(more)
    values.extend([bias] * len(more))
  return {'ids': tuple(ids), 'values': tuple(values)}
