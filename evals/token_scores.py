"""What a model says of every token of a stream, or of some that are drawn."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from evals import bits_per_byte
from evals import shares
from evals import symbol_scores


def scores(
  apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
  params: Any,
  texts: Sequence[np.ndarray],
  *,
  bos: int,
  window: int,
  stride: int,
  batch_size: int,
  drawn: np.ndarray | None = None,
) -> symbol_scores.Scores:
  """Scores ids of documents, each token from what comes before it alone.

  Windows are those of evals.symbol_scores, in tokens.
  texts: the ids of every document with its stop. drawn: places in the whole
  stream of the tokens to score, in the order of the answer; None for all.
  """
  sizes_N = np.array([len(ids) for ids in texts])
  starts_N = np.cumsum(sizes_N) - sizes_N
  total = int(sizes_N.sum())
  is_drawn = np.full(total, drawn is None)
  if drawn is not None:
    is_drawn[drawn] = True
  pieces = (
    piece
    for piece in _pieces(sizes_N, window, stride)
    if is_drawn[_span(piece, starts_N)].any()
  )
  rows = bits_per_byte.pack(pieces, window)
  found = symbol_scores.Scores(
    np.zeros(total), np.zeros(total, np.float32), np.zeros(total, np.int32)
  )
  shape = batch_size, window
  batches = (
    _batch(texts, starts_N, rows[first : first + batch_size], shape, bos)
    for first in range(0, len(rows), batch_size)
  )

  def measured(batch: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    inputs = (batch[name] for name in ('ids', 'targets', 'documents'))
    return score(apply, params, *inputs)

  said = time.monotonic()
  for done, (batch, values) in enumerate(
    shares.shared(measured, batches, params)
  ):
    scored = batch['place'] >= 0
    for out_N, value_BT in zip(found, values, strict=True):
      out_N[batch['place'][scored]] = value_BT[scored]
    if time.monotonic() - said > 10:
      said = time.monotonic()
      logging.info('scored %d of %d rows', done * batch_size, len(rows))
  if drawn is None:
    return found
  return symbol_scores.Scores(*(out_N[drawn] for out_N in found))


def score(
  apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
  params: Any,
  ids_BT: np.ndarray,
  targets_BT: np.ndarray,
  documents_BT: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Probability (float64), entropy in bits and rank of every target."""
  nats_BT, entropy_BT, rank_BT = map(
    np.asarray, _score(apply, params, ids_BT, targets_BT, documents_BT)
  )
  return np.exp(-nats_BT.astype(np.float64)), entropy_BT, rank_BT


@functools.partial(jax.jit, static_argnames=('apply',))
def _score(
  apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
  params: Any,
  ids_BT: jax.Array,
  targets_BT: jax.Array,
  documents_BT: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  logits_BTV = apply(params, ids_BT, documents_BT).astype(jnp.float32)
  log_p_BTV = jax.nn.log_softmax(logits_BTV)
  true_BT1 = jnp.take_along_axis(log_p_BTV, targets_BT[..., None], -1)
  lower_11V = jnp.arange(logits_BTV.shape[-1])[None, None]
  before_BTV = (log_p_BTV > true_BT1) | (
    (log_p_BTV == true_BT1) & (lower_11V < targets_BT[..., None])
  )
  entropy_BT = -(jnp.exp(log_p_BTV) * log_p_BTV).sum(-1) / np.log(2)
  return -true_BT1[..., 0], entropy_BT, before_BTV.sum(-1)


def _pieces(
  sizes_N: np.ndarray, window: int, stride: int
) -> Iterator[bits_per_byte.Piece]:
  """Windows over BOS and ids; where one starts does not tell a text's end."""
  for document, size in enumerate(sizes_N.tolist()):
    stop = min(window, size)
    yield bits_per_byte.Piece(document, 0, stop, 0)
    while stop < size:
      scored, start = stop, stop + stride - window
      stop = min(stop + stride, size)
      yield bits_per_byte.Piece(document, start, stop, scored)


def _span(piece: bits_per_byte.Piece, starts_N: np.ndarray) -> slice:
  start = int(starts_N[piece.document])
  return slice(start + piece.score_from, start + piece.stop)


def _batch(
  texts: Sequence[np.ndarray],
  starts_N: np.ndarray,
  rows: list[list[bits_per_byte.Piece]],
  shape: tuple[int, int],
  bos: int,
) -> dict[str, np.ndarray]:
  """Rows of pieces as arrays [B, T]; place is -1 where nothing is scored."""
  names = ('ids', 'targets', 'documents')
  batch = {name: np.zeros(shape, np.int32) for name in names}
  batch['place'] = np.full(shape, -1)
  for row, pieces in enumerate(rows):
    column = 0
    for number, piece in enumerate(pieces, start=1):
      ids = texts[piece.document]
      size = piece.stop - piece.start
      span = slice(column, column + size)
      before = ids[max(piece.start - 1, 0) : piece.stop - 1]
      if piece.start == 0:
        before = np.concatenate([[bos], before])
      batch['ids'][row, span] = before
      batch['targets'][row, span] = ids[piece.start : piece.stop]
      batch['documents'][row, span] = number
      place = _span(piece, starts_N)
      skip = piece.score_from - piece.start
      batch['place'][row, column + skip : column + size] = np.arange(
        place.start, place.stop
      )
      column += size
  return batch
