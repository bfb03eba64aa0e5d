"""The document-level bound of arXiv 2312.17173: new documents, not symbols."""

import dataclasses

import numpy as np

from bounds import betting
from bounds import bound


@dataclasses.dataclass(frozen=True)
class Documents:
  """`betting.Betting` on the mean loss of each document, N := documents.

  Bounded is the expected mean loss of a new document, each document counting
  alike, if documents are independent and identically distributed; else the
  mean over documents of that expectation given the documents before. Random:
  the documents. The contexts of a document start with it. `ceiling` is one
  number, at least every possible loss: the ceiling of a symbol depends on the
  document that it is in, so it is not predictable here.
  """

  delta: float = 0.05
  slacks: tuple[float, ...] = betting.SLACKS

  def __post_init__(self) -> None:
    betting.check(self.delta, self.slacks)

  def __call__(
    self,
    losses_N: np.ndarray,
    description_bits: float,
    *,
    documents_N: np.ndarray,
    ceiling: float,
  ) -> bound.Bound:
    losses_N = bound.as_losses(losses_N)
    if losses_N.max() > ceiling:
      raise ValueError(
        f'loss {losses_N.max()} exceeds the ceiling {ceiling}, which is at'
        ' least every possible loss'
      )
    means_N = document_means(losses_N, documents_N)
    rule = betting.Betting(self.delta, self.slacks)
    result = rule(means_N, description_bits, ceilings_N=float(ceiling))
    return bound.Bound(
      result.value, {**result.terms, 'documents': float(len(means_N))}
    )


def document_means(losses_N: np.ndarray, documents_N: np.ndarray) -> np.ndarray:
  """Mean loss of every document, in order of their ids; any ids will do."""
  documents_N = np.asarray(documents_N)
  if documents_N.shape != np.shape(losses_N):
    raise ValueError(
      f'documents of shape {documents_N.shape} must name one for each of the'
      f' losses of shape {np.shape(losses_N)}'
    )
  _, index_N, counts = np.unique(
    documents_N, return_inverse=True, return_counts=True
  )
  return np.bincount(index_N, weights=losses_N) / counts
