"""LM-Infinite for models as they are: other masks, the same parameters."""

import dataclasses
from typing import Any

import flax.linen as nn

from models import masks as masks_lib
from models import positions


def parse(text: str) -> masks_lib.Lambda:
  """'10,512': the first 10 tokens and the last 512."""
  try:
    n_global, n_local = (int(part) for part in text.split(','))
  except ValueError:
    raise ValueError(
      f'--lambda={text} must be two numbers joined by a comma, as 10,512: the'
      ' first and the last ids of a document that are seen.'
    ) from None
  return masks_lib.Lambda(n_global=n_global, n_local=n_local)


def read_with(model: nn.Module, mask: masks_lib.Lambda) -> nn.Module:
  """The model with `mask` for every layer that looks back without limit.

  Windows, which have a limit already, stay; the longest row is without limit.
  Parameters are the same (Han et al., arXiv 2308.16137).

  Raises ValueError for a model without such a layer, or whose positions are
  not relative.
  """
  changed = _replaced(model, mask)
  if changed == model:
    raise ValueError(
      f'{type(model).__name__} has no layer that looks back without limit, so'
      ' that there is nothing for a masks.Lambda to limit; leave it as it is.'
    )
  return changed


def _replaced(model: nn.Module, mask: masks_lib.Lambda) -> nn.Module:
  changes: dict[str, Any] = {}
  for field in dataclasses.fields(model):
    value = getattr(model, field.name)
    if field.name == 'masks':
      position = getattr(model, 'position', None)
      changes['masks'] = tuple(
        mask if found.window is None else found for found in value
      )
      if changes['masks'] != value and not isinstance(
        position, positions.Rotary | positions.Alibi
      ):
        raise ValueError(
          f'{type(model).__name__} has position={position!r}, but distances'
          ' can only be limited where positions are relative:'
          ' positions.Rotary or positions.Alibi.'
        )
    elif field.name == 'max_length':
      changes['max_length'] = None
    elif field.name not in ('parent', 'name') and isinstance(value, nn.Module):
      changes[field.name] = _replaced(value, mask)
  return model.clone(parent=None, **changes)
