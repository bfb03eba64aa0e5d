"""Bits per byte of text that was made noisy, against the text as it was.

The kinds of noise of the Byte Latent Transformer's robustness table (arXiv
2412.09871, section 6.1), which reads HellaSwag through them. Here the text of
the split itself is read, so that small models are measured too.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from data import codec
from evals import bits_per_byte


class Noise(Protocol):
  """A pure function of a text and a generator of random numbers."""

  def __call__(self, text: str, rng: np.random.Generator) -> str:
    """The noisy text."""


def _check_rate(kind: Any) -> None:
  if not 0 <= kind.rate <= 1:
    raise ValueError(
      f'{_name(kind)}: rate={kind.rate} is a probability; give one from 0 to 1.'
    )


def _name(kind: Any) -> str:
  return type(kind).__name__


@dataclasses.dataclass(frozen=True)
class AntSpeak:
  """UPPER CASE, AND A SPACE BEHIND EVERY CHARACTER."""

  def __call__(self, text: str, rng: np.random.Generator) -> str:
    del rng
    return ''.join(f'{character} ' for character in text.upper())


@dataclasses.dataclass(frozen=True)
class Drop:
  """Leaves out each character with probability `rate`."""

  rate: float = 0.1

  def __post_init__(self) -> None:
    _check_rate(self)

  def __call__(self, text: str, rng: np.random.Generator) -> str:
    kept = rng.random(len(text)) >= self.rate
    return ''.join(c for c, keep in zip(text, kept, strict=True) if keep)


@dataclasses.dataclass(frozen=True)
class RandomCase:
  """Each character in upper or lower case, with probability 1/2."""

  def __call__(self, text: str, rng: np.random.Generator) -> str:
    upper = rng.random(len(text)) < 0.5
    return ''.join(
      c.upper() if is_upper else c.lower()
      for c, is_upper in zip(text, upper, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Repeat:
  """With probability `rate`, a character stands 2 to 1 + `most` times.

  most: further copies; each number from 1 to `most` is as likely.
  """

  rate: float = 0.2
  most: int = 4

  def __post_init__(self) -> None:
    _check_rate(self)
    if self.most < 1:
      raise ValueError(
        f'Repeat: most={self.most} must be at least 1 copy; leave the noise'
        ' out instead.'
      )

  def __call__(self, text: str, rng: np.random.Generator) -> str:
    chosen = rng.random(len(text)) < self.rate
    times = 1 + chosen * rng.integers(1, self.most + 1, len(text))
    return ''.join(c * int(n) for c, n in zip(text, times, strict=True))


@dataclasses.dataclass(frozen=True)
class UpperCase:
  """All characters in upper case."""

  def __call__(self, text: str, rng: np.random.Generator) -> str:
    del rng
    return text.upper()


@dataclasses.dataclass(frozen=True)
class NoisyBits:
  """Bits per byte of noisy text, and how many times those of the clean text.

  Noise changes characters of UTF-8; a byte that is none counts as one. What
  it does to a document depends on `seed`, the document and its number only.

  A patch model needs room for the patches of noisy text, which are shorter:
  with `overflow='cut'` what finds no room is charged log2 of the vocabulary.

  kinds: noises, each of another class; window, stride, batch_size: as of
  evals.bits_per_byte.BitsPerByte, which scores.
  """

  kinds: tuple[Any, ...] = (
    AntSpeak(),
    Drop(),
    RandomCase(),
    Repeat(),
    UpperCase(),
  )
  window: int = 512
  stride: int = 384
  batch_size: int = 8
  seed: int = 0

  def __post_init__(self) -> None:
    names = [_name(kind) for kind in self.kinds]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
      raise ValueError(
        f'evals: kinds has {twice[0]} twice, and results are named by class;'
        ' use one evaluator for each.'
      )
    self._scorer()

  def run(
    self,
    apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,
    documents: Sequence[np.ndarray],
    *,
    max_bytes: int | None = None,
  ) -> dict[str, float | None]:
    """Scores `documents`, or what noise makes of their first `max_bytes`.

    Returns, as `noise/<kind>/...`, bits_per_byte of the noisy text (its own
    bytes are counted), ratio of these to those of the clean text, and
    total_ratio, the bits of the noisy text over the bits of the clean one:
    the whole price of the noise, however many bytes it adds or takes away.
    Each with its standard error over documents (`_stderr`; of ratios by the
    jackknife over pairs of documents; None for a single document). The clean
    text is the kind `clean`.
    """
    clean = first_bytes(documents, max_bytes)
    spelling = getattr(documents, 'codec', codec.Bytes())
    bits_N, sizes_N = self._score(apply, params, clean, spelling)
    results = _described('clean', bits_N, sizes_N)
    for kind in self.kinds:
      noisy = [
        noised(kind, document, (self.seed, number))
        for number, document in enumerate(clean)
      ]
      noisy_N, noisy_sizes_N = self._score(apply, params, noisy, spelling)
      name = _name(kind)
      results |= _described(name, noisy_N, noisy_sizes_N)
      ones_N = np.ones(len(clean))
      for quantity, columns in (
        ('ratio', (noisy_N, noisy_sizes_N, bits_N, sizes_N)),
        ('total_ratio', (noisy_N, ones_N, bits_N, ones_N)),
      ):
        value, spread = _ratio(np.stack(columns))
        results[f'noise/{name}/{quantity}'] = value
        results[f'noise/{name}/{quantity}_stderr'] = spread
    return results

  def _scorer(self) -> bits_per_byte.BitsPerByte:
    return bits_per_byte.BitsPerByte(self.window, self.stride, self.batch_size)

  def _score(
    self,
    apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,
    texts: list[np.ndarray],
    spelling: codec.Codec,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Bits and bytes of every document, which are scored one by one."""
    sizes_N = np.array([len(text) for text in texts], np.float64)
    bits_N = np.zeros(len(texts))
    for number, text in enumerate(texts):
      if len(text):
        alone = _Documents([text])
        alone.codec = spelling
        found = self._scorer().run(apply, params, alone)
        bits_N[number] = found['bits_per_byte'] * len(text)
    return bits_N, sizes_N


class _Documents(list):
  """Documents with a codec, as a data.text.Corpus has them."""

  codec: codec.Codec


def noised(
  kind: Noise, document: np.ndarray, seed: int | tuple[int, ...]
) -> np.ndarray:
  """What a noise makes of the bytes (uint8) of a document.

  Bytes that are no UTF-8 count as characters without a case.
  """
  text = document.tobytes().decode('utf-8', 'surrogateescape')
  made = kind(text, np.random.default_rng(seed))
  return np.frombuffer(made.encode('utf-8', 'surrogateescape'), np.uint8)


def first_bytes(
  documents: Sequence[np.ndarray], max_bytes: int | None
) -> list[np.ndarray]:
  """The documents that are not empty, cut after `max_bytes` bytes of them."""
  kept, left = [], max_bytes
  for i in range(len(documents)):
    document = np.asarray(documents[i])[:left]
    if len(document):
      kept.append(document)
    if left is not None:
      left -= len(document)
      if not left:
        break
  if not kept:
    raise ValueError(
      'the split has no byte to score; choose another --split or more data.'
    )
  return kept


def _described(
  name: str, bits_N: np.ndarray, sizes_N: np.ndarray
) -> dict[str, float | None]:
  """Bits per byte with its standard error, by linearisation, and the bytes."""
  count, size = len(bits_N), max(sizes_N.sum(), 1.0)
  bits = bits_N.sum() / size
  spread = None
  if count > 1:
    residual = np.sum((bits_N - bits * sizes_N) ** 2)
    spread = float(math.sqrt(count / (count - 1) * residual) / size)
  return {
    f'noise/{name}/bits_per_byte': float(bits),
    f'noise/{name}/bits_per_byte_stderr': spread,
    f'noise/{name}/bytes': int(sizes_N.sum()),
  }


def _ratio(columns_4N: np.ndarray) -> tuple[float, float | None]:
  """(sum of a / sum of b) / (sum of c / sum of d), and its jackknife error."""

  def evaluate(sums: np.ndarray) -> np.ndarray:
    return sums[0] / np.maximum(sums[1], 1) / (sums[2] / sums[3])

  count = columns_4N.shape[1]
  whole_4 = columns_4N.sum(axis=1)
  if count < 2:
    return float(evaluate(whole_4)), None
  without_N = evaluate(whole_4[:, None] - columns_4N)
  variance = (count - 1) / count * np.sum((without_N - without_N.mean()) ** 2)
  return float(evaluate(whole_4)), float(math.sqrt(variance))
