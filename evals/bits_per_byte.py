"""Bits per byte of a model over whole documents, each byte scored once."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from data import codec
from evals import shares


class Piece(NamedTuple):
  """A window of one document: ids[start : stop] in, the next ids out.

  Targets before `score_from` were scored by an earlier piece.
  """

  document: int
  start: int
  stop: int
  score_from: int


@dataclasses.dataclass(frozen=True)
class BitsPerByte:
  """-log2 p of every byte given the bytes before it in its document.

  A document of more ids than `window` is read in windows that advance by
  `stride`, so that an id has at least window - stride ids of context (all there
  are near the document's start). Begin and end marks are read but not scored.

  Where an id stands for several bytes, as in BPE, what counts is the sum over
  a document's ids of -log2 p, over its bytes. That scores the one way in which
  the codec spells the document, whose probability is at most the sum over all
  ways: an upper bound on what the model needs for the bytes.

  window: ids per row; stride: new targets per window; batch_size: rows.
  """

  window: int = 512
  stride: int = 256
  batch_size: int = 16

  def __post_init__(self) -> None:
    if not 0 < self.stride <= self.window or self.batch_size < 1:
      raise ValueError(
        f'evals: stride={self.stride} must be in 1..window={self.window}, and'
        f' batch_size={self.batch_size} at least 1.'
      )

  def run(
    self,
    apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,
    documents: Sequence[np.ndarray],
    *,
    max_bytes: int | None = None,
  ) -> dict[str, float | None]:
    """Scores `documents`, or a prefix of `max_bytes` bytes of them.

    Documents are uint8 arrays, read as the ids of their attribute `codec` (a
    data.text.Corpus has one), else of codec.Bytes.

    Returns bits_per_byte with its standard error over documents (of a ratio
    of sums, by linearisation; None for a single document), and the counts of
    bytes and documents; where ids are not bytes, bits_per_token and tokens.
    """
    spelling = getattr(documents, 'codec', codec.Bytes())
    documents = _prefix(documents, max_bytes)
    sizes_N = np.array([len(document) for document in documents])
    nats_N = np.zeros(len(documents))
    narrow = np.min_scalar_type(spelling.vocabulary_size)
    texts = [spelling.encode(text).astype(narrow) for text in documents]
    rows = pack(self._pieces(np.array([*map(len, texts)])), self.window)
    firsts = range(0, len(rows), self.batch_size)
    batches = (
      self._batch(texts, rows[first : first + self.batch_size], spelling.bos)
      for first in firsts
    )

    def nats(batch: dict[str, np.ndarray]) -> tuple[jax.Array]:
      inputs = (batch[name] for name in ('ids', 'targets', 'documents'))
      return (score(apply, params, *inputs),)

    said = time.monotonic()
    scores = shares.shared(nats, batches, params)
    for first, (batch, (nats_BT,)) in zip(firsts, scores, strict=True):
      scored = batch['owner'] >= 0
      np.add.at(nats_N, batch['owner'][scored], np.float64(nats_BT[scored]))
      if time.monotonic() - said > 10:
        said = time.monotonic()
        logging.info('scored %d of %d rows', first, len(rows))
    bits = nats_N.sum() / math.log(2) / sizes_N.sum()
    residual_N = nats_N / math.log(2) - bits * sizes_N
    count = len(sizes_N)
    spread = None
    if count > 1:
      variance = count / (count - 1) * np.sum(residual_N**2)
      spread = float(math.sqrt(variance) / sizes_N.sum())
    found = {
      'bits_per_byte': float(bits),
      'bits_per_byte_stderr': spread,
      'bytes': int(sizes_N.sum()),
      'documents': count,
    }
    if not isinstance(spelling, codec.Bytes):
      tokens = sum(map(len, texts))
      per_token = float(nats_N.sum() / math.log(2) / tokens)
      found |= {'bits_per_token': per_token, 'tokens': tokens}
    return found

  def _pieces(self, counts_N: np.ndarray) -> Iterator[Piece]:
    """Windows over BOS ids EOS of every document; targets end at the EOS."""
    for document, count in enumerate(counts_N):
      inputs = int(count)  # BOS and all ids but the last predict the ids.
      stop = min(self.window, inputs)
      if stop:
        yield Piece(document, 0, stop, 0)
      while stop < inputs:
        scored, stop = stop, min(stop + self.stride, inputs)
        yield Piece(document, stop - self.window, stop, scored)

  def _batch(
    self, texts: list[np.ndarray], rows: list[list[Piece]], bos: int
  ) -> dict[str, np.ndarray]:
    """Rows of pieces as arrays [B, T]; owner is -1 where nothing is scored."""
    shape = (self.batch_size, self.window)
    names = ('ids', 'targets', 'documents')
    batch = {name: np.zeros(shape, np.int32) for name in names}
    batch['owner'] = np.full(shape, -1)
    for row, pieces in enumerate(rows):
      column = 0
      for number, piece in enumerate(pieces, start=1):
        # The first is BOS, so the one at place i is the text's i - 1.
        ids = texts[piece.document][max(piece.start - 1, 0) : piece.stop]
        if piece.start == 0:
          ids = np.concatenate([[bos], ids])
        size = piece.stop - piece.start
        span = slice(column, column + size)
        batch['ids'][row, span] = ids[:size]
        batch['targets'][row, span] = ids[1 : size + 1]
        batch['documents'][row, span] = number
        scored = slice(column + piece.score_from - piece.start, column + size)
        batch['owner'][row, scored] = piece.document
        column += size
    return batch


def pack(pieces: Iterator[Piece], window: int) -> list[list[Piece]]:
  """First-fit decreasing: rows of pieces whose lengths sum to <= window."""
  rows: list[list[Piece]] = []
  room: list[list[int]] = [[] for _ in range(window + 1)]
  for piece in sorted(pieces, key=lambda p: p.start - p.stop):
    size = piece.stop - piece.start
    free = next((r for r in range(size, window + 1) if room[r]), None)
    if free is None:
      rows.append([])
      index, free = len(rows) - 1, window
    else:
      index = room[free].pop()
    rows[index].append(piece)
    room[free - size].append(index)
  return rows


def _prefix(
  documents: Sequence[np.ndarray], max_bytes: int | None
) -> list[np.ndarray]:
  """The non-empty documents, the last one cut so that max_bytes remain."""
  kept, left = [], max_bytes
  for i in range(len(documents)):
    document = np.asarray(documents[i])
    if left is not None:
      document = document[:left]
      left -= len(document)
    if len(document):
      kept.append(document)
    if left == 0:
      break
  if not kept:
    raise ValueError(
      'the split has no byte to score; choose another --split or more data.'
    )
  return kept


@functools.partial(jax.jit, static_argnames=('apply',))
def score(
  apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
  params: Any,
  ids_BT: jax.Array,
  targets_BT: jax.Array,
  documents_BT: jax.Array,
) -> jax.Array:
  """Cross-entropy in nats of every target, known to every process."""
  logits_BTV = apply(params, ids_BT, documents_BT)
  log_p_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32))
  nats_BT = -jnp.take_along_axis(log_p_BTV, targets_BT[..., None], -1)[..., 0]
  if jax.sharding.get_abstract_mesh().empty:
    return nats_BT
  return jax.lax.with_sharding_constraint(nats_BT, jax.sharding.PartitionSpec())
