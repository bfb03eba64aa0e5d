"""The stream that a certificate is about: documents in a fixed order."""

import dataclasses
import glob
import hashlib
import os
import pathlib
from typing import Any

import jax
import numpy as np

from bounds import alphabet as alphabets
from bounds import certificate
from data import text
from evals import symbol_scores

# Rows scored at a time: part of what is computed, so always the same.
_BATCH_ROWS = 4


@dataclasses.dataclass(frozen=True)
class Stream:
  """Documents (uint8), and where they are from."""

  name: str
  documents: tuple[np.ndarray, ...]

  @property
  def bytes(self) -> int:
    return sum(len(document) for document in self.documents)

  @property
  def sha256(self) -> str:
    """Of every document's length and bytes, in order."""
    digest = hashlib.sha256()
    for document in self.documents:
      digest.update(len(document).to_bytes(8, 'little'))
      digest.update(np.ascontiguousarray(document))
    return digest.hexdigest()

  @property
  def symbols(self) -> np.ndarray:
    """All bytes, each document followed by its end (int16)."""
    parts = []
    for document in self.documents:
      parts += [document.astype(np.int16), [alphabets.END]]
    return np.concatenate(parts).astype(np.int16)


def open_stream(
  name: str, data: Any = None, *, max_bytes: int | None = None
) -> Stream:
  """The documents of a split, or of files.

  name: a split of `data` (by default of the standard library), or a file or
    glob, one document per file in the order of their paths.
  max_bytes: only the first so many bytes, the last document cut.
  """
  if name in text.SPLITS:
    corpus = (data or text.Text()).open(name)
    documents = (corpus[i] for i in range(len(corpus)))
  else:
    paths = sorted(glob.glob(os.path.expanduser(name), recursive=True))
    paths = [path for path in paths if os.path.isfile(path)]
    if not paths:
      raise ValueError(
        f'--stream={name} is no split ({", ".join(text.SPLITS)}) and names no'
        ' file; give a path or a quoted pattern'
      )
    documents = (
      np.frombuffer(pathlib.Path(path).read_bytes(), np.uint8) for path in paths
    )
  kept, room = [], max_bytes
  for document in documents:
    document = np.asarray(document[:room])
    kept.append(document)
    if room is not None:
      room -= len(document)
      if not room:
        break
  stream = Stream(name, tuple(kept))
  if not stream.bytes:
    raise ValueError(
      f'--stream={name} holds no byte; there is nothing to score'
    )
  return stream


def spelling_bits(stream: Stream, alphabet: str) -> float:
  """Bits that say which member of its class every symbol is."""
  return alphabets.named(alphabet).spelling_bits(stream.symbols)


def evidence(
  apply: Any,
  params: Any,
  stream: Stream,
  *,
  alphabet: str,
  window: int,
  stride: int,
) -> certificate.Evidence:
  """What a network says of every symbol of a stream, each seen once."""
  kind = alphabets.named(alphabet)
  with jax.default_matmul_precision('highest'):
    found = symbol_scores.scores(
      apply, params, stream.documents,
      classes=kind.classes, window=window, stride=stride,
      batch_size=_BATCH_ROWS,
    )  # fmt: skip
  return certificate.Evidence(
    *found, kind.size, spelling_bits(stream, alphabet), stream.bytes
  )
