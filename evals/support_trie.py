"""Which ids follow a context in a corpus: a trie of the beginnings of lines.

Zhou, Keuper and Fritz 2025, Balancing Diversity and Risk in LLM Sampling
(arXiv 2408.13586), with lines for sentences: a node is the words a line begins
with, its children are the words that follow, and its support are the ids that
the children begin with.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from data import codec


class Node(NamedTuple):
  """A context that many lines share, and what follows it.

  context: ids; support: ids that follow, ascending; lines: how many share it.
  """

  context: np.ndarray
  support: np.ndarray
  lines: int


@dataclasses.dataclass(frozen=True)
class Trie:
  """The nodes to look at, after the paper.

  roots: the most frequent first words; branch: children of a node that are
    looked at, the most frequent ones; depth: levels below a root.
  least_children: a node with fewer different words is left out.
  """

  roots: int = 10
  branch: int = 2
  depth: int = 5
  least_children: int = 3

  def nodes(
    self, documents: Iterable[np.ndarray], spelling: codec.Codec
  ) -> list[Node]:
    """The nodes of documents of bytes; ValueError if there is none."""
    lines = list(_lines(documents, self.depth + 2))
    counts = collections.Counter(line[0] for line in lines)
    found: list[Node] = []
    for word, _ in _most(counts, self.roots):
      below = [line for line in lines if line[0] == word]
      self._grow([word], below, spelling, found)
    if not found:
      raise ValueError(
        f'the corpus has no beginning of a line that {self.least_children}'
        ' words follow; take a larger one'
      )
    return found

  def _grow(
    self,
    prefix: list[bytes],
    lines: list[list[bytes]],
    spelling: codec.Codec,
    found: list[Node],
  ) -> None:
    """Adds the node of a prefix, shared by these lines, and those below."""
    level = len(prefix)
    counts = collections.Counter(
      line[level] for line in lines if len(line) > level
    )
    if len(counts) >= self.least_children:
      node = _node(prefix, counts, spelling)
      if node is not None:
        found.append(node)
    if level > self.depth:
      return
    for word, _ in _most(counts, self.branch):
      below = [x for x in lines if len(x) > level and x[level] == word]
      self._grow([*prefix, word], below, spelling, found)


def _lines(
  documents: Iterable[np.ndarray], words: int
) -> Iterator[list[bytes]]:
  """The first words of every line that has two."""
  for document in documents:
    for line in np.asarray(document).tobytes().splitlines():
      found = line.split(maxsplit=words)[:words]
      if len(found) > 1:
        yield found


def _most(counts: collections.Counter, number: int) -> list[tuple[bytes, int]]:
  """The most frequent; of equals the first in the order of bytes."""
  return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:number]


def _node(
  prefix: list[bytes], counts: collections.Counter, spelling: codec.Codec
) -> Node | None:
  """What comes where the ids of the children begin to differ."""
  texts = [b' '.join([*prefix, child]) + b' ' for child in sorted(counts)]
  rows = [spelling.encode(text) for text in texts]
  common = 0
  while (
    min(map(len, rows)) > common
    and len({int(row[common]) for row in rows}) == 1
  ):
    common += 1
  if not common or min(map(len, rows)) <= common:
    return None
  support = np.unique([row[common] for row in rows])
  return Node(rows[0][:common], support, sum(counts.values()))
