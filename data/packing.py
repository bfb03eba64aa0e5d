"""Fixed rows of ids cut from the documents of a split, at random access."""

from collections.abc import Mapping

import numpy as np

from data import codec
from data import text


class Rows:
  """Row i of a split's id stream, BOS ids EOS BOS ids EOS ...

  The ids are those of the corpus's codec: one per byte, or BPE tokens.

  Row i reads ids stream[i T : (i + 1) T] and predicts stream[i T + 1 :
  (i + 1) T + 1], so every id but the first is a target exactly once and every
  id is a document's text, BOS or EOS: nothing is dropped, and only the last row
  is padded. A document cut by a row's end goes on in the next row as that row's
  document 1.

  A row is a dictionary of arrays of length T:
    ids: int32, padded with codec.PADDING.
    targets: int32, the following ids, padded likewise.
    documents: int32, which document of the row an id belongs to, from 1;
      0 is padding.
    mask: float32, 1 where the target is of the same document as the id, which
      leaves out each BOS (nothing before it says that it comes) and padding.
    and every array of `stored`, which has one number per id of the stream:
      float32, padded with 0.
  """

  def __init__(
    self,
    corpus: text.Corpus,
    row_length: int,
    stored: Mapping[str, np.ndarray] | None = None,
  ) -> None:
    if row_length < 1:
      raise ValueError(f'row_length={row_length} must be >= 1.')
    if not len(corpus):
      raise ValueError(f'{corpus.path} has no document to make rows of.')
    self.corpus = corpus
    self.row_length = row_length
    # Plain views: slices of np.memmap are several times slower to make.
    ids, offsets, shift = corpus.stream
    self._text = codec.Stream(np.asarray(ids), np.asarray(offsets), shift)
    # Of every document and of the end: where it starts in the id stream.
    self._starts = self._text.offsets + 2 * np.arange(len(corpus) + 1)
    self._stored = dict(stored or {})
    for name, values in self._stored.items():
      if len(values) != self.stream_length:
        raise ValueError(
          f'{name} has {len(values)} numbers for {self.stream_length} ids of'
          f' {corpus.path}; delete it, so that it is made anew.'
        )

  @property
  def stream_length(self) -> int:
    """Ids of the whole split: those of its text and two per document."""
    return int(self._starts[-1])

  def __len__(self) -> int:
    return -(-(self.stream_length - 1) // self.row_length)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    if not 0 <= index < len(self):
      raise IndexError(f'row {index} of {len(self)}')
    start = index * self.row_length
    ids_U, documents_U = self.cut(start, start + self.row_length + 1)
    same_T = documents_U[1:] == documents_U[:-1]
    row = {
      'ids': ids_U[:-1],
      'targets': ids_U[1:],
      'documents': documents_U[:-1],
      'mask': (same_T & (documents_U[1:] > 0)).astype(np.float32),
    }
    for name, values in self._stored.items():
      row[name] = np.zeros(self.row_length, np.float32)
      there = values[start : start + self.row_length]
      row[name][: len(there)] = there
    return row

  def cut(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of stream[start:stop] and their documents, counted from 1.

    Both are padded where the stream has ended.
    """
    length, stop = stop - start, min(stop, self.stream_length)
    padding = (0, length - (stop - start))
    ids_U, documents_U = self._read(start, stop)
    return np.pad(ids_U, padding), np.pad(documents_U, padding)

  def _read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    first = int(np.searchsorted(self._starts, start, 'right')) - 1
    last = int(np.searchsorted(self._starts, stop - 1, 'right')) - 1
    starts_N = self._starts[first : last + 2] - start
    # -1 marks what is neither the beginning nor the end of a document.
    ids_U = np.full(stop - start, -1, np.int32)
    bos_N, eos_N = starts_N[:-1], starts_N[1:] - 1
    ids_U[bos_N[bos_N >= 0]] = self.corpus.codec.bos
    ids_U[eos_N[eos_N < stop - start]] = self.corpus.codec.stops[0]
    # The ids between the special ones are contiguous in the corpus.
    is_text_U = ids_U < 0
    read = max(start - int(self._starts[first]) - 1, 0)
    here = int(self._text.offsets[first]) + read
    there = here + int(np.sum(is_text_U))
    ids_U[is_text_U] = self._text.read(here, there)
    counts_N = np.diff(np.clip(starts_N, 0, stop - start))
    documents_N = np.arange(1, len(counts_N) + 1, dtype=np.int32)
    return ids_U, np.repeat(documents_N, counts_N)
