"""An entropy model without a network: one table row per n-gram of ids.

What a language model would predict is replaced by how uncertain the byte after
the same n ids was in the training text, interpolated over n by the escape
method C of prediction by partial matching (Moffat 1990).
"""

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import masks
from models import ngrams

_UNSEEN = -1.0


class NgramEntropy(nn.Module):
  """Entropy in nats of the next id, looked up by the last n ids.

  The longest n-gram of `sizes` whose table row was seen by `fit` decides.

  sizes: n-gram lengths, rising; rows: rows of each hash table.
  """

  sizes: tuple[int, ...] = (1, 2, 3)
  rows: int = 2**16

  def init_cache(self, batch_size: int, length: int) -> tuple[Any, Any]:
    """Nothing read yet: the ids that count, oldest first, and how many."""
    del length
    recent_BC = jnp.zeros((batch_size, max(self.sizes) - 1), jnp.int32)
    return recent_BC, jnp.zeros(batch_size, jnp.int32)

  @nn.compact
  def __call__(
    self,
    ids_BT: jax.Array,
    documents_BT: jax.Array | None = None,
    cache: tuple[Any, Any] | None = None,
  ) -> tuple[jax.Array, tuple[Any, Any] | None]:
    """Float32 nats [B, T] and the extended cache, as models.lm.ByteLM."""
    if documents_BT is None:
      documents_BT = jnp.ones_like(ids_BT)
    if cache is None:
      recent_BC = jnp.zeros((ids_BT.shape[0], 0), jnp.int32)
      age_BT = masks.row_tokens(documents_BT).position_BT
    else:
      recent_BC, length_B = cache
      age_BT = length_B[:, None] + jnp.arange(ids_BT.shape[1])[None]
    tables = [
      self.param(
        f'table_{size}', nn.initializers.constant(_UNSEEN), (self.rows,)
      )
      for size in self.sizes
    ]
    entropy_BT = jnp.full(ids_BT.shape, np.log(256), jnp.float32)
    places = _contexts(self, ids_BT, age_BT, recent_BC)
    for table, place_BT in zip(tables, places, strict=True):
      found_BT = jnp.take(table, place_BT, mode='clip')
      entropy_BT = jnp.where(found_BT >= 0, found_BT, entropy_BT)
    if cache is None:
      return entropy_BT, None
    real_B = jnp.sum(documents_BT > 0, axis=1, dtype=jnp.int32)
    recent_BC = ngrams.latest(recent_BC, ids_BT, real_B)
    return entropy_BT, (recent_BC, length_B + real_B)


def _contexts(
  model: NgramEntropy,
  ids_BT: jax.Array,
  age_BT: jax.Array,
  recent_BC: jax.Array,
) -> list[jax.Array]:
  """Table row of the last n ids of each position, for each n."""
  window_BTN = ngrams.windows(ids_BT, age_BT, recent_BC, max(model.sizes))
  return [
    ngrams.hash_ids(window_BTN[..., -size:], model.rows)
    for size in model.sizes
  ]


def fit(
  model: NgramEntropy, rows: Iterable[dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
  """The tables of `model`, from rows of ids, targets, documents and mask.

  A context that was followed by n ids, d of them different, escapes to the
  next shorter one with probability e = d / (n + d); its entropy is that of
  the escape, plus (1 - e) of the ids' and e of the shorter contexts'.
  """
  look_up = jax.jit(
    lambda ids_BT, documents_BT: _contexts(
      model,
      ids_BT,
      masks.row_tokens(documents_BT).position_BT,
      jnp.zeros((ids_BT.shape[0], 0), jnp.int32),
    )
  )
  places, targets = [[] for _ in model.sizes], []
  for row in rows:
    counted = row['mask'] > 0
    targets.append(row['targets'][counted])
    found = look_up(row['ids'][None], row['documents'][None])
    for kept, place_1T in zip(places, found, strict=True):
      kept.append(np.asarray(place_1T)[0][counted])
  target_N = np.concatenate(targets).astype(np.int64)
  shorter_N = np.full(len(target_N), np.log(256))
  params = {}
  for size, kept in zip(model.sizes, places, strict=True):
    place_N = np.concatenate(kept)
    nats_R = _entropies(place_N, target_N, shorter_N, model.rows)
    params[f'table_{size}'] = nats_R.astype(np.float32)
    shorter_N = nats_R[place_N]
  return params


def _entropies(
  place_N: np.ndarray, target_N: np.ndarray, shorter_N: np.ndarray, rows: int
) -> np.ndarray:
  """Nats after each table row that occurs in place_N, _UNSEEN for others."""
  ids = int(target_N.max()) + 1
  pair_P, count_P = np.unique(place_N * ids + target_N, return_counts=True)
  row_P = pair_P // ids
  total_R = np.bincount(row_P, count_P, minlength=rows)
  kinds_R = np.bincount(row_P, minlength=rows)
  logs_R = np.bincount(row_P, count_P * np.log(count_P), minlength=rows)
  below_R = np.bincount(place_N, shorter_N, minlength=rows)
  seen_R = total_R > 0
  total_R, kinds_R = np.maximum(total_R, 1), np.maximum(kinds_R, 1)
  escape_R = kinds_R / (total_R + kinds_R)
  choice_R = -escape_R * np.log(escape_R) - (1 - escape_R) * np.log1p(-escape_R)
  own_R = np.log(total_R) - logs_R / total_R
  mixed_R = choice_R + (1 - escape_R) * own_R + escape_R * below_R / total_R
  return np.where(seen_R, mixed_R, _UNSEEN)
