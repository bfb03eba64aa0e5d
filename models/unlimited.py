"""LM-Infinite for models as they are: other masks, the same parameters."""

import dataclasses
from typing import Any

import flax.linen as nn

from models import masks as masks_lib
from models import patching
from models import positions

Mask = masks_lib.Causal | masks_lib.Lambda
_OFF = 'off'


def parse(text: str) -> Mask:
  """'10,512': the first 10 tokens and the last 512; 'off': all of them.

  A third number is the top_k of masks.Lambda.
  """
  if text == _OFF:
    return masks_lib.Causal()
  try:
    n_global, n_local, *top_k = (int(part) for part in text.split(','))
    (top_k,) = top_k or [0]
  except ValueError:
    raise ValueError(
      f'--lambda={text} must be two numbers joined by a comma, as 10,512: the'
      ' first and the last ids of a document that are seen; a third is how many'
      f" ids between each head adds; or '{_OFF}' for all ids."
    ) from None
  return masks_lib.Lambda(n_global=n_global, n_local=n_local, top_k=top_k)


def read_with(model: nn.Module, mask: Mask) -> nn.Module:
  """The model with `mask` for every layer that is without a mere window.

  These are layers that look back without limit, or with a masks.Lambda, which
  a masks.Causal takes off again. Windows stay; the longest row is without
  limit. Patches that may be of any length end after n_local bytes, so that the
  open one takes no more memory. Parameters are the same (Han et al., arXiv
  2308.16137).

  Raises ValueError for a model without such a layer, whose positions are not
  relative, or whose rows are shorter than what the mask keeps.
  """
  check_rows(getattr(model, 'max_length', None), mask)
  if not _limits(model):
    raise ValueError(
      f'{type(model).__name__} has no layer that looks back without limit, so'
      ' that there is nothing for a masks.Lambda to limit; leave it as it is.'
    )
  return _replaced(model, mask)


def check(model: nn.Module, longest: int | None = None) -> None:
  """ValueError if a masks.Lambda of the model keeps more than its rows hold.

  longest: ids that rows of a model without a max_length of its own have.
  """
  own = getattr(model, 'max_length', None)
  longest = longest if own is None else own
  for mask in getattr(model, 'masks', ()):
    check_rows(longest, mask)
  for part in _parts(model):
    check(part, longest)


def check_rows(longest: int | None, mask: Any) -> None:
  """ValueError if rows, so caches, of at most `longest` ids cannot fill it."""
  for name in ('n_global', 'n_local'):
    count = getattr(mask, name, 0)
    if longest is not None and count > longest:
      raise ValueError(
        f'mask.{name}={count} exceeds the cache, which holds model.max_length='
        f'{longest} ids; lower it to that, or raise max_length.'
      )


def _is_limit(mask: Any) -> bool:
  return mask.window is None or bool(mask.n_global)


def _parts(model: nn.Module) -> list[nn.Module]:
  names = {field.name for field in dataclasses.fields(model)}
  values = (getattr(model, name) for name in names - {'parent'})
  return [value for value in values if isinstance(value, nn.Module)]


def _limits(model: nn.Module) -> bool:
  """Whether some layer is without a mere window."""
  found = any(map(_is_limit, getattr(model, 'masks', ())))
  return found or any(map(_limits, _parts(model)))


def _replaced(model: nn.Module, mask: Mask) -> nn.Module:
  changes: dict[str, Any] = {}
  for field in dataclasses.fields(model):
    value = getattr(model, field.name)
    if field.name == 'masks':
      position = getattr(model, 'position', None)
      is_relative = isinstance(position, positions.Rotary | positions.Alibi)
      if mask.n_global and any(map(_is_limit, value)) and not is_relative:
        raise ValueError(
          f'{type(model).__name__} has position={position!r}, but distances'
          ' can only be limited where positions are relative:'
          ' positions.Rotary or positions.Alibi.'
        )
      changes['masks'] = tuple(mask if _is_limit(m) else m for m in value)
    elif field.name == 'max_length':
      changes['max_length'] = None
    elif isinstance(value, patching.Patching):
      if mask.n_global and value.max_length is None:
        changes[field.name] = dataclasses.replace(
          value, max_length=mask.n_local
        )
    elif field.name not in ('parent', 'name') and isinstance(value, nn.Module):
      changes[field.name] = _replaced(value, mask)
  return model.clone(parent=None, **changes)
