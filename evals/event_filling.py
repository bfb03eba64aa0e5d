"""Missing cells of events, each given all that is known of its event.

Array names end in their axes: E events, R events of a row, C columns, V ids.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from data import event_batches
from data import event_codes


class Filled(NamedTuple):
  """Local ids of all cells, and how probable those are that were filled."""

  ids_EC: np.ndarray
  probability_EC: np.ndarray


def fill(
  apply: Callable[..., jax.Array],
  params: Any,
  corpus: Any,
  missing_EC: np.ndarray,
  *,
  rows: event_batches.EventRows,
  window: int,
  batch_size: int = 4,
) -> Filled:
  """Fills cells with their median (numbers) or most probable value.

  Several of an event are filled one after the other, by columns, each given
  those before. The history is read as it is known when a cell is filled: cells
  that are missing in several columns of it are NULL at first.

  rows: those that the model was trained on, with shuffled columns, whose
    labels are hidden alike. window: events.
  """
  if not rows.shuffle:
    raise ValueError(
      'the model reads columns in one order only and cannot fill cells given'
      ' those after them; train it with rows=EventRows(shuffle=1.0).'
    )
  tokenizer = corpus.tokenizer
  ids_EC = np.asarray(corpus.ids_EC).astype(np.int32)
  values_EC = np.array(corpus.values_EC, np.float32)
  probability_EC = np.full(ids_EC.shape, np.nan, np.float32)
  left_EC = missing_EC.copy()
  while left_EC.any():
    target_E = np.argmax(left_EC, axis=1)
    asked_E = left_EC.any(1)
    known = _Known(ids_EC, values_EC, left_EC, target_E)
    for event_K, logits_KV in _logits(
      apply, params, corpus, known, rows, window, batch_size
    ):
      for c, column in enumerate(tokenizer.columns):
        of_K = asked_E[event_K] & (target_E[event_K] == c)
        event_M = event_K[of_K]
        first = int(tokenizer.offsets_C[c])
        logits_MV = logits_KV[of_K, first : first + column.size]
        ids_EC[event_M, c], probability_EC[event_M, c] = best(
          column, logits_MV
        )
        values_EC[event_M, c] = _numbers(column, ids_EC[event_M, c])
    left_EC[np.flatnonzero(asked_E), target_E[asked_E]] = False
  return Filled(ids_EC, probability_EC)


def best(
  column: Any, logits_MV: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The median bin of numbers, else the likeliest value; its probability."""
  code = column.code
  real_V = np.arange(column.size) >= code.first
  is_number = isinstance(code, event_codes.Bins)
  if is_number:
    real_V[event_codes.ZERO] = True
  logits_MV = np.where(real_V, logits_MV.astype(np.float64), -np.inf)
  p_MV = np.exp(logits_MV - logits_MV.max(1, keepdims=True, initial=-1e30))
  p_MV /= p_MV.sum(1, keepdims=True)
  id_M = np.argmax(p_MV, axis=1)
  if is_number:
    # The order of numbers: zero stands between the negative and the others.
    middle_V = [np.median(samples) for samples in code.samples]
    number_V = np.full(column.size, np.inf)
    number_V[code.first :], number_V[event_codes.ZERO] = middle_V, 0.0
    order_V = np.argsort(number_V, kind='stable')
    rank_M = np.sum(np.cumsum(p_MV[:, order_V], axis=1) < 0.5, axis=1)
    id_M = order_V[np.minimum(rank_M, column.size - 1)]
  return id_M, np.take_along_axis(p_MV, id_M[:, None], axis=1)[:, 0]


class _Known(NamedTuple):
  """What is known of all cells, and which one of each event is asked for."""

  ids_EC: np.ndarray
  values_EC: np.ndarray
  left_EC: np.ndarray
  target_E: np.ndarray


def _logits(
  apply: Callable[..., jax.Array],
  params: Any,
  corpus: Any,
  known: _Known,
  how: event_batches.EventRows,
  window: int,
  batch_size: int,
) -> Any:
  """Events and the logits [K, V] of their cell that is asked for."""
  shown = _Shown(
    corpus.tokenizer, known.ids_EC, known.values_EC, corpus.offsets_N1,
    np.ones(len(known.ids_EC), bool),
  )  # fmt: skip
  columns = len(corpus.tokenizer.columns)
  how = event_batches.EventRows(
    mask_all=float(how.mask_all == 1), context=window // 2
  )
  laid = event_batches.Rows(shown, window * columns, how)
  # Known cells first, the one asked for, other missing, then a hidden label,
  # which says nothing and stands there in most rows of training. Events that
  # miss nothing stay as they are.
  key_EC = np.where(known.left_EC, 2, 0)
  if how.mask_all == 1 and corpus.tokenizer.label is not None:
    key_EC[:, -1] = 3
  asked_E = np.flatnonzero(known.left_EC.any(1))
  key_EC[asked_E, known.target_E[asked_E]] = 1
  order_EC = np.argsort(key_EC, axis=1, kind='stable')
  rank_EC = np.argsort(order_EC, axis=1).astype(np.int32)
  for first in range(0, len(laid), batch_size):
    last = min(first + batch_size, len(laid))
    numbers = [min(first + i, last - 1) for i in range(batch_size)]
    batch = [laid[i] for i in numbers]
    places = [laid.places(i) for i in numbers]
    event_BR = np.stack([event_R for event_R, _, _ in places])
    fresh_BR = np.stack([fresh_R for _, _, fresh_R in places])
    fresh_BR[last - first :] = False
    logits_BRV = _asked(
      apply,
      params,
      *(np.stack([row[name] for row in batch]) for name in
        ('ids', 'documents', 'value')),
      rank_EC[event_BR].reshape(batch_size, -1),
      known.target_E[event_BR],
    )  # fmt: skip
    yield event_BR[fresh_BR], np.asarray(logits_BRV)[fresh_BR]


class _Shown(NamedTuple):
  """A corpus of cells as they are known so far."""

  tokenizer: Any
  ids_EC: np.ndarray
  values_EC: np.ndarray
  offsets_N1: np.ndarray
  scored_E: np.ndarray


@functools.partial(jax.jit, static_argnames=('apply',))
def _asked(
  apply: Callable[..., jax.Array],
  params: Any,
  ids_BT: jax.Array,
  documents_BT: jax.Array,
  value_BT: jax.Array,
  rank_BT: jax.Array,
  target_BR: jax.Array,
) -> jax.Array:
  """Logits [B, R, V] of one column of each event."""
  logits_BTV = apply(
    params, ids_BT, documents_BT, value=value_BT, rank=rank_BT
  )
  logits_BRCV = logits_BTV.reshape(
    *target_BR.shape, -1, logits_BTV.shape[-1]
  )
  return jnp.take_along_axis(
    logits_BRCV, target_BR[:, :, None, None], axis=2
  )[:, :, 0]


def _numbers(column: Any, ids_M: np.ndarray) -> np.ndarray:
  """Standardised numbers of filled cells, NaN where a column has none."""
  if not isinstance(column.code, event_codes.Bins) or not len(ids_M):
    return np.full(len(ids_M), np.nan, np.float32)
  decoded = column.code.decode(ids_M, None).to_numpy(zero_copy_only=False)
  return column.code.values(pa.array(decoded.astype(float)))
