"""The states that a store of nearest neighbours is keyed by.

They are what the feed-forward layer of the last block reads, which served best
in kNN-LM (Khandelwal et al. 2020, arXiv 1911.00172, section 5) and which NEST
(Li et al. 2024, arXiv 2405.19325) takes over. Its released code keeps what the
whole last block reads instead.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from models import byte_latent
from models import lm
from models import patched

_NAME = 'feed_forward_norm'


@functools.lru_cache
def step(
  model: nn.Module,
) -> Callable[..., tuple[tuple[jax.Array, jax.Array], Any]]:
  """As models.forward.step, but gives ((logits_BTV, key_BTD), cache).

  Without a cache it reads whole rows, which may hold several documents.
  ValueError for a model that has no such states.
  """
  *parents, _ = path = _path(model)
  scanned = path[-1] == 'blocks'

  def apply(
    params: Any, ids_BT: jax.Array, documents_BT: jax.Array, cache: Any = None
  ) -> tuple[tuple[jax.Array, jax.Array], Any]:
    (logits_BTV, cache), kept = model.apply(
      {'params': params},
      ids_BT,
      documents_BT,
      cache,
      capture_intermediates=lambda module, _: module.name == _NAME,
      mutable=['intermediates'],
    )
    found = kept['intermediates']
    for name in (*parents, path[-1], _NAME):
      found = found[name]
    key_BTD = found['__call__'][0]
    return (logits_BTV, key_BTD[-1] if scanned else key_BTD), cache

  return apply


def width(model: nn.Module) -> int:
  """Numbers per key."""
  return _stack(model)[1].width


def for_rows(model: nn.Module) -> nn.Module:
  """The model with room for every byte of whole rows, parameters the same."""
  match model:
    case patched.Patched():
      return model.clone(model=for_rows(model.model), wait=1)
    case byte_latent.ByteLatent():
      return model.clone(reserve=1.0, rows=1)
  return model


def _path(model: nn.Module) -> tuple[str, ...]:
  """Names of the modules from the model down to its last block."""
  parents, stack = _stack(model)
  last = 'blocks' if stack.scan_layers else f'block_{stack.layers - 1}'
  return (*parents, last)


def _stack(model: nn.Module) -> tuple[tuple[str, ...], Any]:
  """Where the last blocks are, and what says how many and how wide."""
  match model:
    case lm.ByteLM():
      return (), model
    case byte_latent.ByteLatent():
      return ('local_decoder',), model.decoder
    case patched.Patched():
      return ('model', 'local_decoder'), model.model.decoder
  raise ValueError(
    f'{type(model).__name__} has no last block whose feed-forward layer reads a'
    ' key; use a models.lm.ByteLM, byte_latent.ByteLatent or patched.Patched'
  )
