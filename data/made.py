"""Texts that are made up, so that there are as many as one wants."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any, Protocol

from data import sources

# Documents that are looked at to see whether the maker has changed.
_LOOKED_AT = 16


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
