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
from data import codec
from data import text
from evals import symbol_scores

# Of rows scored at a time: part of what is computed, so always the same.
_BATCH_SYMBOLS = 1 << 16


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
  name: str,
  data: Any = None,
  *,
  max_bytes: int | None = None,
  flag: str = 'stream',
) -> Stream:
  """The documents of a split, or of files.

  name: a split of `data` (by default of the standard library), or a file or
    glob, one document per file in the order of their paths.
  max_bytes: only the first so many bytes, the last document cut.
  flag: where the name is from, for errors.
  """
  if name in text.SPLITS:
    corpus = (data or text.Text()).open(name)
    documents = (corpus[i] for i in range(len(corpus)))
  else:
    paths = sorted(glob.glob(os.path.expanduser(name), recursive=True))
    paths = [path for path in paths if os.path.isfile(path)]
    if not paths:
      raise ValueError(
        f'--{flag}={name} is no split ({", ".join(text.SPLITS)}) and names no'
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
      f'--{flag}={name} holds no byte; there is nothing to score'
    )
  return stream


def _batch_rows(window: int) -> int:
  return min(4, max(1, _BATCH_SYMBOLS // window))


def spelling_bits(stream: Stream, alphabet: str) -> float:
  """Bits that say which member of its class every symbol is."""
  return alphabets.named(alphabet).spelling_bits(stream.symbols)


def _check_causal(
  apply: Any, params: Any, kind: alphabets.Alphabet, window: int
) -> None:
  """Raises ValueError if later ids change what is said of earlier ones.

  On two rows that agree in their first half: a bound needs predictions that
  know the past only, and a file may describe any network. Runs the program
  that scores the stream.
  """
  rng = np.random.default_rng(0)
  # Few letters, so that something recurs; each of the other half is another.
  letter_BT = rng.integers(8, size=(_batch_rows(window), window))
  half = window // 2
  later_BT = (np.arange(window) >= half) * rng.integers(1, 8, letter_BT.shape)
  true_BT = kind.class_of[97 + np.roll(letter_BT, -1, axis=1)]
  one, other = (
    symbol_scores.score(
      apply, params, (97 + codec.OFFSET + x_BT % 8).astype(np.int32),
      np.ones(x_BT.shape, np.int32), true_BT, kind.classes,
    )
    for x_BT in (letter_BT, letter_BT + later_BT)
  )  # fmt: skip
  named = zip(symbol_scores.Scores._fields, one, other, strict=True)
  for name, x_BT, y_BT in named:
    if name == 'rank_N':  # Ties may be broken by rounding.
      continue
    x_BT, y_BT = x_BT[:, :half], y_BT[:, :half]
    if not np.allclose(x_BT, y_BT, rtol=1e-3, atol=1e-6, equal_nan=True):
      raise ValueError(
        'the network sees what it predicts: later bytes change what it says of'
        ' earlier ones, so nothing can be certified of it'
      )


def evidence(
  apply: Any,
  params: Any,
  stream: Stream,
  *,
  alphabet: str,
  window: int,
  stride: int,
) -> certificate.Evidence:
  """What a network says of every symbol of a stream, each seen once.

  Raises ValueError for a network that says NaN, or that sees what it predicts.
  """
  kind = alphabets.named(alphabet)
  with jax.default_matmul_precision('highest'):
    _check_causal(apply, params, kind, window)
    found = symbol_scores.scores(
      apply, params, stream.documents,
      classes=kind.classes, window=window, stride=stride,
      batch_size=_batch_rows(window),
    )  # fmt: skip
  if not np.isfinite(found.probability_N.sum() + found.entropy_N.sum()):
    raise ValueError(
      f'the network gives NaN on stream {stream.name}; its training diverged,'
      ' so certify an earlier checkpoint (--step)'
    )
  return certificate.Evidence(
    *found, kind.size, spelling_bits(stream, alphabet), stream.bytes
  )
