"""Fixed rows of ids cut from the documents of a split, at random access."""

import numpy as np

from data import codec
from data import text


class Rows:
  """Row i of a split's id stream, BOS bytes EOS BOS bytes EOS ...

  Row i reads ids stream[i T : (i + 1) T] and predicts stream[i T + 1 :
  (i + 1) T + 1], so every id but the first is a target exactly once and every
  id is a byte, a BOS or an EOS of a document: nothing is dropped, and only the
  last row is padded. A document cut by a row's end goes on in the next row as
  that row's document 1.

  A row is a dictionary of arrays of length T:
    ids: int32, padded with codec.PADDING.
    targets: int32, the following ids, padded likewise.
    documents: int32, which document of the row an id belongs to, from 1;
      0 is padding.
    mask: float32, 1 where the target is of the same document as the id, which
      leaves out each BOS (nothing before it says that it comes) and padding.
  """

  def __init__(self, corpus: text.Corpus, row_length: int) -> None:
    if row_length < 1:
      raise ValueError(f'row_length={row_length} must be >= 1.')
    if not len(corpus):
      raise ValueError(f'{corpus.path} has no document to make rows of.')
    self.corpus = corpus
    self.row_length = row_length
    # Of every document and of the end: where it starts in the id stream.
    self._starts = np.asarray(corpus.offsets) + 2 * np.arange(len(corpus) + 1)
    # A plain view: slices of np.memmap are several times slower to make.
    self._bytes = np.asarray(corpus.bytes)

  @property
  def stream_length(self) -> int:
    """Ids of the whole split: its bytes and two per document."""
    return int(self._starts[-1])

  def __len__(self) -> int:
    return -(-(self.stream_length - 1) // self.row_length)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    if not 0 <= index < len(self):
      raise IndexError(f'row {index} of {len(self)}')
    start = index * self.row_length
    length = self.row_length + 1
    stop = min(start + length, self.stream_length)
    ids_U = np.full(length, codec.PADDING, np.int32)
    documents_U = np.zeros(length, np.int32)
    ids_U[: stop - start], documents_U[: stop - start] = self._cut(start, stop)
    same_T = documents_U[1:] == documents_U[:-1]
    return {
      'ids': ids_U[:-1],
      'targets': ids_U[1:],
      'documents': documents_U[:-1],
      'mask': (same_T & (documents_U[1:] > 0)).astype(np.float32),
    }

  def _cut(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of stream[start:stop] and their documents, counted from 1."""
    first = int(np.searchsorted(self._starts, start, 'right')) - 1
    last = int(np.searchsorted(self._starts, stop - 1, 'right')) - 1
    starts_N = self._starts[first : last + 2] - start
    ids_U = np.zeros(stop - start, np.int32)
    bos_N, eos_N = starts_N[:-1], starts_N[1:] - 1
    ids_U[bos_N[bos_N >= 0]] = codec.BOS
    ids_U[eos_N[eos_N < stop - start]] = codec.EOS
    # The bytes between the special ids are contiguous in the corpus.
    is_byte_U = ids_U == 0
    read = max(start - int(self._starts[first]) - 1, 0)
    here = int(self.corpus.offsets[first]) + read
    there = here + int(np.sum(is_byte_U))
    ids_U[is_byte_U] = codec.encode(self._bytes[here:there])
    counts_N = np.diff(np.clip(starts_N, 0, stop - start))
    return ids_U, np.repeat(np.arange(1, len(counts_N) + 1), counts_N)
