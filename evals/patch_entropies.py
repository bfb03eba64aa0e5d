"""Entropies after every byte of whole documents, of any length."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from data import codec

_ROWS = 8  # Windows that are read at a time.


def stream(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
  """Ids BOS bytes EOS of each text back to back, and documents from 1.

  As the rows of training are cut from them; int32 [N] both.
  """
  marked = [
    np.concatenate([[codec.BOS], codec.encode(text), [codec.EOS]])
    for text in texts
  ]
  documents = [np.full(len(x), i) for i, x in enumerate(marked, start=1)]
  none = np.zeros(0, np.int32)
  return tuple(
    np.concatenate([none, *x]).astype(np.int32) for x in (marked, documents)
  )


def entropies(
  measure: Callable[[Any, jax.Array, jax.Array], jax.Array],
  params: Any,
  ids_N: np.ndarray,
  documents_N: np.ndarray,
  *,
  window: int,
  context: int,
  progress: Callable[[int], Any] = lambda done: None,
) -> np.ndarray:
  """Float32 nats [N] after every id, from ids of its own document only.

  measure: pure (params, ids_BT, documents_BT) -> nats [B, T].
  window: ids measured at a time, each after `context` ids that are read too
    and all that the window holds before it.
  progress: is told now and then how many ids are done.
  """
  size = len(ids_N)
  nats_N = np.zeros(size, np.float32)
  padding = (context, -size % window)
  ids_M, documents_M = (np.pad(x, padding) for x in (ids_N, documents_N))
  starts = range(0, size, window)
  run = jax.jit(measure)
  for first in range(0, len(starts), _ROWS):
    # The last rows are repeated, so that there is one shape to compile.
    rows = [starts[min(first + i, len(starts) - 1)] for i in range(_ROWS)]
    found_BT = np.asarray(
      run(
        params,
        np.stack([ids_M[s : s + context + window] for s in rows]),
        np.stack([documents_M[s : s + context + window] for s in rows]),
      ),
      np.float32,
    )
    for start, found_T in zip(rows, found_BT, strict=True):
      there = nats_N[start : start + window]
      there[:] = found_T[context : context + len(there)]
    progress(min(rows[-1] + window, size))
  return nats_N
