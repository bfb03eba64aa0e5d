"""The output layer of any model of this package, as one matrix."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from models import linear
from models import patched


def find(model: Any, params: Any) -> np.ndarray:
  """[V, D]: logits = find(model, params) @ the normed last hidden state.

  A structured head is multiplied out. ValueError for a model without a linear
  output layer, as one that only knows what it has counted.
  """
  if isinstance(model, patched.Patched):
    return find(model.model, params['model'])
  if getattr(model, 'tie_head', False):
    return np.asarray(params['embed']['embedding'])
  head = params.get('head') if isinstance(params, dict) else None
  if head is None:
    raise ValueError(
      f'{type(model).__name__} has no output layer (parameters below head);'
      ' take a model that has one'
    )
  if 'kernel' in head:
    return np.asarray(head['kernel']).T
  width = len(params['final_norm']['scale'])
  layer = linear.of_role(model.linear, 'head').copy(
    features=model.vocabulary_size, dtype='float32'
  )
  return np.asarray(layer.apply({'params': head}, jnp.eye(width))).T
