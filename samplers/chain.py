"""Rules in the order written, then one draw per row with its own key."""

import dataclasses
import difflib
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from samplers import truncation

Rule = Callable[[jax.Array], jax.Array]

_RULES = {
  'temperature': truncation.Temperature,
  'top_k': truncation.TopK,
  'top_p': truncation.TopP,
}
_CHOICES = 'choices are greedy, ' + ', '.join(f'{name}(X)' for name in _RULES)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chain:
  """A sampler: rules over the logits from first to last, then a draw."""

  rules: tuple[Rule, ...] = ()

  def __call__(self, keys_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
    """One int32 token per row, which depends on that row and its key only.

    A row made greedy (temperature 0) ignores its key; a row of nothing but
    -inf gives id 0.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    for rule in self.rules:
      logits_BV = rule(logits_BV)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV)


def parse(text: str) -> Chain:
  """Reads `greedy` or a line like `temperature(0.8)|top_k(40)|top_p(0.95)`."""
  return Chain(tuple(_parse_rule(part.strip()) for part in text.split('|')))


def _parse_rule(text: str) -> Rule:
  if text == 'greedy':
    return truncation.Temperature(0.0)
  match = re.fullmatch(r'(\w+)\s*(?:\(\s*([^()\s]*)\s*\))?', text)
  if not match:
    raise ValueError(
      f'sampler rule {text!r} is not of the form name(number); {_CHOICES},'
      ' joined by |'
    )
  name, number = match.groups()
  if name == 'greedy':
    raise ValueError(f"sampler rule {text!r}: 'greedy' takes no number")
  if name not in _RULES:
    near = difflib.get_close_matches(name, ('greedy', *_RULES), n=1)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    raise ValueError(f'sampler rule {name!r} is unknown; {hint}{_CHOICES}')
  try:
    value = float(number or '')
  except ValueError:
    raise ValueError(
      f'sampler rule {text!r} needs one number in brackets, as in {name}(1)'
    ) from None
  return _RULES[name](value)
