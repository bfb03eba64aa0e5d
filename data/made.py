"""Texts that are made up, so that there are as many as one wants."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from data import sources

# Documents that are looked at to see whether the maker has changed.
_LOOKED_AT = 16
_ALPHABETS = ('0123456789', 'abcdefghijklmnopqrstuvwxyz')
_SHORTEST = 3


class Maker(Protocol):
  """What makes up texts, as evals.passkey.Passkey: a frozen dataclass."""

  def document(self, number: int) -> bytes:
    """Text `number`, always the same."""


@dataclasses.dataclass(frozen=True)
class Made:
  """The first `count` documents of a maker, each a group of its own."""

  maker: Any
  count: int = 1000

  def documents(self) -> Iterator[sources.Document]:
    for number in range(self.count):
      name = str(number)
      yield sources.Document(name, name, self.maker.document(number))

  def fingerprint(self) -> str:
    """A hash of the maker's settings and of its first documents."""
    digest = hashlib.sha256(repr(self).encode())
    first = dataclasses.replace(self, count=min(self.count, _LOOKED_AT))
    for document in first.documents():
      sources.add_to_digest(digest, document)
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class InTurn:
  """A maker of the texts of several makers, one after the other."""

  makers: tuple[Any, ...]

  def document(self, number: int) -> bytes:
    turn, place = divmod(number, len(self.makers))
    return self.makers[place].document(turn)


@dataclasses.dataclass(frozen=True)
class Echoes:
  """A maker of texts that say a few random words again and again.

  All that can be foretold of them is a copy of what stands further up, so
  that looking for it pays from the first step on, which is what makes
  induction heads (arXiv 2209.11895).

  size: bytes of a text. words: most that a text has, as often few as many; it
  says them in any order. longest: bytes of a word, at least 3, of one alphabet.
  """

  size: int
  words: int = 16
  longest: int = 20
  seed: int = 0

  def __post_init__(self) -> None:
    if self.size < 1 or self.words < 1 or self.longest < _SHORTEST:
      raise ValueError(
        f'made: size={self.size} and words={self.words} must be at least 1,'
        f' and longest={self.longest} at least {_SHORTEST}.'
      )

  def document(self, number: int) -> bytes:
    rng = np.random.default_rng((self.seed, number))
    letters = list(_ALPHABETS[int(rng.integers(len(_ALPHABETS)))])
    count = round(self.words ** rng.random())
    sizes = rng.integers(_SHORTEST, self.longest + 1, count)
    words = [''.join(rng.choice(letters, size)) for size in sizes]
    order = rng.integers(len(words), size=self.size)
    return ' '.join(words[i] for i in order)[: self.size].encode()
