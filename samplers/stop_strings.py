"""Strings that end a text, looked for on the host between chunks of tokens.

A stop string may begin in one token and end in another, so that what could be
its beginning is held back until it is known not to be one.
"""

import dataclasses
from typing import NamedTuple


class Cut(NamedTuple):
  """What of a text so far may be shown."""

  length: int
  is_stopped: bool  # nothing will be added


@dataclasses.dataclass(frozen=True)
class StopStrings:
  """Ends a text before the stop string that is complete first.

  Of several that are complete at the same byte it is the longest: however the
  text comes in pieces, it ends at the same place.
  """

  strings: tuple[bytes, ...] = ()

  def __post_init__(self) -> None:
    if b'' in self.strings:
      raise ValueError('stop string is empty, which every text has; drop it')

  def cut(self, text: bytes | bytearray, known: int = 0) -> Cut:
    """How much of a text, all that was generated so far, may be shown.

    known: how much of it this said before, when the text was shorter.
    """
    starts = [(text.find(string, known), string) for string in self.strings]
    found = [(at + len(string), at) for at, string in starts if at >= 0]
    if found:
      return Cut(min(found)[1], True)
    held = 0
    for string in self.strings:
      for size in range(min(len(string) - 1, len(text)), held, -1):
        if text.endswith(string[:size]):
          held = size
          break
    return Cut(len(text) - held, False)
