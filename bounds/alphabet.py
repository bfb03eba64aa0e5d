"""Which symbols a stream of bytes is read as, fixed before any is seen.

A document is its bytes and an end. An alphabet puts the 257 into classes. A
byte of a class of several is two symbols of the stream: its class, and after it
which member, each equally likely. The loss of the second is a constant, given
the first, so it equals its risk and only the class is bet on; a smaller
alphabet has lower ceilings. The risk that is bounded is that of both: the class
drawn anew given the bytes before, the member given the class besides.
"""

import dataclasses
import functools
import math

import numpy as np

END = 256


@dataclasses.dataclass(frozen=True)
class Alphabet:
  """Classes of the 256 bytes and of the end of a document (256).

  kept: those that are a class of their own; the rest, if any, are one more.
  """

  kept: tuple[int, ...]

  @functools.cached_property
  def classes(self) -> tuple[tuple[int, ...], ...]:
    """The members of every class."""
    rest = tuple(x for x in range(END + 1) if x not in self.kept)
    return (*((x,) for x in self.kept), *((rest,) if rest else ()))

  @property
  def size(self) -> int:
    return len(self.classes)

  @functools.cached_property
  def class_of(self) -> np.ndarray:
    """The class of each of the 257 (int32)."""
    class_S = np.zeros(END + 1, np.int32)
    for index, members in enumerate(self.classes):
      class_S[list(members)] = index
    return class_S

  def spelling_bits(self, symbols_N: np.ndarray) -> float:
    """Bits that say which member of their class the symbols are."""
    counts_C = np.bincount(self.class_of[symbols_N], minlength=self.size)
    sizes_C = np.array([len(members) for members in self.classes])
    return math.fsum(counts_C * np.log2(sizes_C))


# The order is that of the code in a model file.
ALPHABETS = {
  'bytes': Alphabet(tuple(range(END + 1))),
  'ascii': Alphabet((9, 10, *range(32, 127), END)),
}


def named(name: str) -> Alphabet:
  """The alphabet of a name; ValueError if there is none."""
  if name not in ALPHABETS:
    raise ValueError(
      f'--alphabet={name} is unknown; choose one of {", ".join(ALPHABETS)}'
    )
  return ALPHABETS[name]
