"""What samples are worth without a judge of taste: repeated, varied, likely?

Words are runs of letters, digits and underscores, or other marks that are no
space. Repetition is that of Welleck et al. 2020 (arXiv 1908.04319), distinct-n
that of Li et al. 2016 (arXiv 1510.03055).
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from data import codec
from evals import bits_per_byte

_WORD = re.compile(rb'\w+|[^\w\s]')
_ROWS = 16
_STEP = 64  # Rows are padded to a multiple, so that few shapes are compiled.

Apply = Callable[[Any, jax.Array, jax.Array], jax.Array]


class Score(NamedTuple):
  """Of what follows prompts: bits of all its bytes over their number.

  error: standard error over samples, nan for one; perplexity: per id.
  """

  bits_per_byte: float
  error: float
  perplexity: float


def repetition(texts: Sequence[bytes], size: int = 4) -> float:
  """Mean share of a text's n-grams of words that it had before; 0 for none."""
  shares = []
  for text in texts:
    grams = _grams(text, size)
    shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
  return sum(shares) / max(len(shares), 1)


def distinct(texts: Sequence[bytes], size: int) -> float:
  """Different n-grams of words of all texts over their number; nan for none."""
  grams = [gram for text in texts for gram in _grams(text, size)]
  return len(set(grams)) / len(grams) if grams else math.nan


def score(
  apply: Apply,
  params: Any,
  spelling: codec.Codec,
  prompts: Sequence[bytes],
  texts: Sequence[bytes],
) -> Score:
  """How likely a model finds the texts after their prompts.

  The prompt and the text are spelled one after the other: with ids of several
  bytes an upper bound, as in evals.bits_per_byte. ValueError without a byte.
  """
  heads = [spelling.prompt(prompt) for prompt in prompts]
  tails = [spelling.encode(text) for text in texts]
  sizes_N = np.array([len(text) for text in texts])
  if not sizes_N.sum():
    raise ValueError(
      f'the {len(texts)} samples have no byte to score; draw longer ones, or'
      ' begin with other prompts.'
    )
  bits_N = nats(apply, params, heads, tails) / math.log(2)
  mean = bits_N.sum() / sizes_N.sum()
  residual_N = bits_N - mean * sizes_N
  count = len(sizes_N)
  error = math.nan
  if count > 1:
    variance = count / (count - 1) * np.sum(residual_N**2)
    error = math.sqrt(variance) / sizes_N.sum()
  per_id = bits_N.sum() / sum(map(len, tails))
  return Score(float(mean), error, float(2**per_id))


def nats(
  apply: Apply,
  params: Any,
  heads: Sequence[np.ndarray],
  tails: Sequence[np.ndarray],
) -> np.ndarray:
  """[N]: -log p of the ids of every tail after those of its head."""
  lengths = [
    len(head) + len(tail) for head, tail in zip(heads, tails, strict=True)
  ]
  width = -(-max(lengths) // _STEP) * _STEP
  found = []
  for first in range(0, len(heads), _ROWS):
    ids_BT = np.zeros((_ROWS, width), np.int32)
    owned_BT = np.zeros((_ROWS, width), bool)
    documents_BT = np.zeros((_ROWS, width), np.int32)
    rows = range(first, min(first + _ROWS, len(heads)))
    for row, i in enumerate(rows):
      ids_BT[row, : lengths[i]] = np.concatenate([heads[i], tails[i]])
      documents_BT[row, : lengths[i]] = 1
      # An id is predicted at the place before its own.
      owned_BT[row, len(heads[i]) - 1 : lengths[i] - 1] = True
    targets_BT = np.roll(ids_BT, -1, axis=1)
    nats_BT = bits_per_byte.score(
      apply, params, ids_BT, targets_BT, documents_BT
    )
    of_tails_BT = np.where(owned_BT, np.asarray(nats_BT, np.float64), 0.0)
    found.append(of_tails_BT.sum(axis=1)[: len(rows)])
  return np.concatenate(found)


def _grams(text: bytes, size: int) -> list[tuple[bytes, ...]]:
  words = _WORD.findall(text)
  return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
