"""Events that may follow a history, drawn cell by cell.

Array names end in their axes: B entities, R events of a chunk, C columns, V
ids, N new events.
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

_CHUNK = 16  # Events of the history that are read at a time.
_HOUR = 3600


class Futures(NamedTuple):
  """New events of every entity.

  ids_BNC: local ids; numbers_BNC: the numbers, NaN where there is none;
  times_BN: seconds of UTC since 1970.
  """

  ids_BNC: np.ndarray
  numbers_BNC: np.ndarray
  times_BN: np.ndarray


class Service:
  """Entities whose events are read one after the other, at a constant cost.

  step: from models.forward.step; hidden: whether labels are not to be read.
  """

  def __init__(
    self,
    step: Callable[..., Any],
    params: Any,
    cache: Any,
    tokenizer: Any,
    *,
    hidden: bool,
  ) -> None:
    self._step, self._params, self._hidden = step, params, hidden
    self._first_C = np.asarray(tokenizer.offsets_C, np.int32)
    self._has_label = tokenizer.label is not None
    self.cache = cache

  def ask(self, ids_BC: np.ndarray, values_BC: np.ndarray) -> np.ndarray:
    """Logits [B, C, V] of the cells of the next event, given those before.

    A cell's own id does not matter to its logits.
    """
    logits_BTV, _ = self._run(ids_BC[:, None], values_BC[:, None], None)
    return np.asarray(logits_BTV)

  def read(
    self,
    ids_BRC: np.ndarray,
    values_BRC: np.ndarray,
    real_BR: np.ndarray | None = None,
  ) -> np.ndarray:
    """The same of R events that have come, which are remembered.

    real_BR: False for padding, which may only stand at the end.
    """
    logits, self.cache = self._run(ids_BRC, values_BRC, real_BR)
    return np.asarray(logits)

  def _run(
    self,
    ids_BRC: np.ndarray,
    values_BRC: np.ndarray,
    real_BR: np.ndarray | None,
  ) -> tuple[jax.Array, Any]:
    batch, events, columns = ids_BRC.shape
    ids_BRC = ids_BRC.astype(np.int32) + self._first_C
    if self._has_label and self._hidden:
      ids_BRC[..., -1] = self._first_C[-1] + event_codes.MASK
    if real_BR is None:
      real_BR = np.ones((batch, events), bool)
    documents_BR = real_BR.astype(np.int32)
    return _advance(
      self._step,
      self._params,
      ids_BRC.reshape(batch, -1),
      np.repeat(documents_BR, columns, axis=1),
      self.cache,
      values_BRC.astype(np.float32).reshape(batch, -1),
    )


@functools.partial(jax.jit, static_argnames=('step',))
def _advance(
  step: Callable[..., Any],
  params: Any,
  ids_BT: jax.Array,
  documents_BT: jax.Array,
  cache: Any,
  value_BT: jax.Array,
) -> tuple[jax.Array, Any]:
  logits_BTV, cache = step(
    params, ids_BT, documents_BT, cache, value=value_BT
  )
  return logits_BTV.astype(jnp.float32), cache


def read_history(
  service: Service, corpus: event_batches.Corpus, entities: np.ndarray
) -> None:
  """Has a service read all events of some entities of a corpus."""
  starts_B = np.asarray(corpus.offsets_N1)[entities]
  sizes_B = np.asarray(corpus.offsets_N1)[entities + 1] - starts_B
  for place in range(0, int(sizes_B.max(initial=0)), _CHUNK):
    place_R = place + np.arange(_CHUNK)
    real_BR = place_R[None] < sizes_B[:, None]
    event_BR = np.where(real_BR, starts_B[:, None] + place_R[None], 0)
    service.read(corpus.ids_EC[event_BR], corpus.values_EC[event_BR], real_BR)


def draw(
  service: Service,
  tokenizer: Any,
  last_B: np.ndarray,
  events: int,
  rng: np.random.Generator,
) -> Futures:
  """New events after those that the service has read.

  last_B: seconds of the last event of each entity.
  """
  if not any(column.kind == 'gap' for column in tokenizer.columns):
    raise ValueError(
      "the schema has no 'gap' among `derived`, so the times of new events are"
      ' unknown; add it, and train again.'
    )
  batch, columns = len(last_B), len(tokenizer.columns)
  times_BN = np.zeros((batch, events), np.int64)
  ids_BNC = np.zeros((batch, events, columns), np.int32)
  numbers_BNC = np.full((batch, events, columns), np.nan)
  for n in range(events):
    ids_BC = ids_BNC[:, n]
    values_BC = np.full((batch, columns), np.nan, np.float32)
    for c, column in enumerate(tokenizer.columns):
      if column.kind in ('hour', 'weekday'):
        hour_B = times_BN[:, n] // _HOUR
        # The epoch began on a Thursday.
        day_B = (hour_B // 24 + 3) % 7
        part_B = hour_B % 24 if column.kind == 'hour' else day_B
        ids_BC[:, c] = column.code.first + part_B
        continue
      first = int(tokenizer.offsets_C[c])
      logits_BV = service.ask(ids_BC, values_BC)[:, c]
      logits_BV = logits_BV[:, first : first + column.size]
      ids_BC[:, c] = choose(logits_BV, possible(column), rng)
      if isinstance(column.code, event_codes.Bins):
        numbers_B = _numbers(column, ids_BC[:, c], rng)
        numbers_BNC[:, n, c] = numbers_B
        values_BC[:, c] = column.code.values(pa.array(numbers_B))
      if column.kind == 'gap':
        last_B = last_B + numbers_B.astype(np.int64)
        times_BN[:, n] = last_B
    service.read(ids_BC[:, None], values_BC[:, None])
  return Futures(ids_BNC, numbers_BNC, times_BN)


def possible(column: Any) -> np.ndarray:
  """Local ids that a new cell may have: real values, and nothing at all.

  Labels and gaps are always there.
  """
  possible_V = np.arange(column.size) >= column.code.first
  if isinstance(column.code, event_codes.Bins):
    possible_V[event_codes.ZERO] = True
  if column.kind not in ('label', 'gap'):
    possible_V[event_codes.NULL] = True
  return possible_V


def choose(
  logits_BV: np.ndarray, possible_V: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """One possible id per row, with the probabilities that the logits give."""
  logits_BV = np.where(possible_V, logits_BV.astype(np.float64), -np.inf)
  return np.argmax(logits_BV + rng.gumbel(size=logits_BV.shape), axis=1)


def _numbers(
  column: Any, ids_B: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """A train value of each bin, NaN where there is none."""
  decoded = column.code.decode(ids_B, rng)
  return decoded.to_numpy(zero_copy_only=False).astype(np.float64)
