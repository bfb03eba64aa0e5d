"""What a model says of every symbol of a stream, each predicted once.

For certificates: the probability of each symbol's class among the classes of
an alphabet, and what is known before the symbol is: the entropy.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from data import codec
from evals import bits_per_byte
from evals import shares

# The 256 bytes and a document's end, as ids of the model.
IDS = (*range(codec.OFFSET, codec.VOCABULARY), codec.EOS)


class Scores(NamedTuple):
  """One entry per symbol, documents in order, each with its end.

  probability_N: float64, of the symbol's class; they sum to 1 over classes.
  entropy_N: float32 bits of the distribution over classes.
  rank_N: int16, how many classes are likelier; ties go to the lower class.
  """

  probability_N: np.ndarray
  entropy_N: np.ndarray
  rank_N: np.ndarray


def scores(
  apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
  params: Any,
  documents: Sequence[np.ndarray],
  *,
  classes: tuple[tuple[int, ...], ...],
  window: int,
  stride: int,
  batch_size: int,
) -> Scores:
  """Scores uint8 `documents`, each symbol from what comes before it alone.

  Documents longer than `window` are read in windows that advance by `stride`.
  Where a symbol's context begins is the same for every length that its document
  may turn out to have, else its length would be told before its end.
  classes: members, out of the 256 bytes and 256 for the end, of every class.
  """
  index_S = np.zeros(len(IDS), np.int32)
  for index, members in enumerate(classes):
    index_S[list(members)] = index
  sizes_N = np.array([len(document) + 1 for document in documents])
  starts_N = np.cumsum(sizes_N) - sizes_N
  total = int(sizes_N.sum())
  found = Scores(
    np.zeros(total),
    np.zeros(total, np.float32),
    np.zeros(total, np.int16),
  )
  rows = bits_per_byte.pack(_pieces(sizes_N, window, stride), window)
  batches = (
    _batch(documents, rows[first : first + batch_size], (batch_size, window))
    for first in range(0, len(rows), batch_size)
  )

  def measured(batch: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    class_BT = index_S[batch['symbols']]
    return score(
      apply, params, batch['ids'], batch['documents'], class_BT, classes
    )

  said = time.monotonic()
  for done, (batch, values) in enumerate(
    shares.shared(measured, batches, params)
  ):
    scored = batch['place'] >= 0
    where = starts_N[batch['owner'][scored]] + batch['place'][scored]
    for out_N, value_BT in zip(found, values, strict=True):
      out_N[where] = value_BT[scored]
    if time.monotonic() - said > 10:
      said = time.monotonic()
      logging.info('scored %d of %d rows', done * batch_size, len(rows))
  return found


def score(
  apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
  params: Any,
  ids_BT: np.ndarray,
  documents_BT: np.ndarray,
  class_BT: np.ndarray,
  classes: tuple[tuple[int, ...], ...],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Probability (float64), entropy in bits and rank of the class of symbols."""
  weight_BT, total_BTC, entropy_BT, rank_BT = _score(
    apply, params, ids_BT, documents_BT, class_BT, classes
  )
  total_BT = np.asarray(total_BTC).sum(-1, dtype=np.float64)
  probability_BT = np.asarray(weight_BT, np.float64) / total_BT
  return probability_BT, np.asarray(entropy_BT), np.asarray(rank_BT)


@functools.partial(jax.jit, static_argnames=('apply', 'classes'))
def _score(
  apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
  params: Any,
  ids_BT: jax.Array,
  documents_BT: jax.Array,
  class_BT: jax.Array,
  classes: tuple[tuple[int, ...], ...],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  logits_BTV = apply(params, ids_BT, documents_BT).astype(jnp.float32)
  logits_BTS = logits_BTV[..., np.array(IDS)]
  weight_BTC = class_weights(logits_BTS, classes)
  true_BT1 = jnp.take_along_axis(weight_BTC, class_BT[..., None], -1)
  lower_11C = jnp.arange(len(classes))[None, None]
  before_BTC = (weight_BTC > true_BT1) | (
    (weight_BTC == true_BT1) & (lower_11C < class_BT[..., None])
  )
  entropy_BT = entropy(weight_BTC)
  return true_BT1[..., 0], weight_BTC, entropy_BT, before_BTC.sum(-1)


def class_weights(
  logits_BTS: jax.Array, classes: tuple[tuple[int, ...], ...]
) -> jax.Array:
  """Unnormalised probabilities of classes, from logits of the 257 symbols."""
  top_BT1 = jax.lax.stop_gradient(logits_BTS.max(-1, keepdims=True))
  weight_BTS = jnp.exp(logits_BTS - top_BT1)
  single = [members[0] for members in classes if len(members) == 1]
  parts = [weight_BTS[..., np.array(single)]]
  for members in classes[len(single) :]:
    several = weight_BTS[..., np.array(members)]
    parts.append(several.sum(-1, keepdims=True))
  return jnp.concatenate(parts, -1)


def entropy(weight_BTC: jax.Array) -> jax.Array:
  """Bits of the distribution that is proportional to the weights."""
  p_BTC = weight_BTC / weight_BTC.sum(-1, keepdims=True)
  return -(p_BTC * jnp.log2(jnp.maximum(p_BTC, 1e-30))).sum(-1)


def _pieces(
  counts_N: np.ndarray, window: int, stride: int
) -> Iterator[bits_per_byte.Piece]:
  """Windows over BOS and bytes; targets are the bytes and the end."""
  for document, count in enumerate(counts_N):
    inputs = int(count)
    stop = min(window, inputs)
    yield bits_per_byte.Piece(document, 0, stop, 0)
    while stop < inputs:
      scored, start = stop, stop + stride - window
      stop = min(stop + stride, inputs)
      yield bits_per_byte.Piece(document, start, stop, scored)


def _batch(
  documents: Sequence[np.ndarray],
  rows: list[list[bits_per_byte.Piece]],
  shape: tuple[int, int],
) -> dict[str, np.ndarray]:
  """Rows of pieces as arrays [B, T]; place is -1 where nothing is scored."""
  names = ('ids', 'symbols', 'documents', 'owner')
  batch = {name: np.zeros(shape, np.int32) for name in names}
  batch['place'] = np.full(shape, -1)
  for row, pieces in enumerate(rows):
    column = 0
    for number, piece in enumerate(pieces, start=1):
      text = np.asarray(documents[piece.document])
      size = piece.stop - piece.start
      span = slice(column, column + size)
      ids = text[max(piece.start - 1, 0) : piece.stop - 1] + np.int32(
        codec.OFFSET
      )
      if piece.start == 0:
        ids = np.concatenate([[codec.BOS], ids])
      symbols = text[piece.start : piece.stop].astype(np.int32)
      if len(symbols) < size:
        symbols = np.concatenate([symbols, [len(IDS) - 1]])
      batch['ids'][row, span] = ids
      batch['symbols'][row, span] = symbols
      batch['documents'][row, span] = number
      skip = piece.score_from - piece.start
      scored = slice(column + skip, column + size)
      batch['owner'][row, scored] = piece.document
      batch['place'][row, scored] = np.arange(piece.score_from, piece.stop)
      column += size
  return batch


@functools.lru_cache
def measure(
  classes: tuple[tuple[int, ...], ...],
) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
  """(logits_BTV, target ids) -> probability and entropy, for gradients."""
  index_V = np.zeros(codec.VOCABULARY, np.int32)
  for index, members in enumerate(classes):
    index_V[np.array(IDS)[list(members)]] = index

  def run(
    logits_BTV: jax.Array, targets_BT: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    weight_BTC = class_weights(logits_BTV[..., np.array(IDS)], classes)
    class_BT1 = jnp.asarray(index_V)[targets_BT][..., None]
    true_BT = jnp.take_along_axis(weight_BTC, class_BT1, -1)[..., 0]
    return true_BT / weight_BTC.sum(-1), entropy(weight_BTC)

  return run
