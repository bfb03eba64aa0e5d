"""Text with its patches for a terminal, every byte visible and recoverable."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Characters that have no ink though Unicode counts them as printable.
_BLANK = frozenset(
  {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}
).union(range(0x180B, 0x1810), range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))
_ESCAPES = {'\\': '\\\\', '|': '\\|'}
_BYTE_ESCAPES = {0x0A: '\\n\n', 0x0D: '\\r', 0x09: '\\t'}
# Backgrounds of even and odd patches, by rising entropy; 256-colour numbers.
_SHADES = ((17, 18, 25, 32), (52, 88, 124, 166))
_RESET = '\x1b[0m'


class Shown(NamedTuple):
  """The beginning of a document, to be looked at.

  size: bytes of the whole document.
  patch_N: the patch of each byte of `text`, rising.
  nats_N: entropy after the begin mark and after each byte, one more than
    bytes: number i is the uncertainty about byte i. None without entropies.
  """

  name: str
  text: bytes
  size: int
  patch_N: np.ndarray
  nats_N: np.ndarray | None


class Cell(NamedTuple):
  """text[start:stop], which is one visible character, or one byte if not."""

  start: int
  stop: int
  character: str | None


def cells(text: bytes, patch_N: np.ndarray) -> Iterator[Cell]:
  """Cuts a text where it is a character that one patch holds, else by byte."""
  start = 0
  while start < len(text):
    stop = start + _width(text[start])
    character = None
    if stop <= len(text) and patch_N[start] == patch_N[stop - 1]:
      character = _visible(text[start:stop])
    if character is None:
      stop = start + 1
    yield Cell(start, stop, character)
    start = stop


def _width(lead: int) -> int:
  """Bytes of the UTF-8 character that begins with `lead`, if one does."""
  return 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)


@functools.lru_cache(maxsize=4096)
def _visible(raw: bytes) -> str | None:
  """The character that the bytes spell, if it leaves a mark on a page."""
  try:
    character = raw.decode('utf-8')
  except UnicodeDecodeError:
    return None
  seen = character.isprintable() and ord(character) not in _BLANK
  return character if seen else None


def printable(name: str) -> str:
  """A file's name, whose bytes need not be UTF-8 and may be any control."""
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def plain(shown: Shown) -> str:
  r"""Patches with | between them.

  Backslashes and | of the text have a backslash before them, bytes without a
  visible character are \n, \r, \t or \x and two digits. A line also ends
  after each \n, for the eye only.
  """
  parts, last = [], None
  for cell in cells(shown.text, shown.patch_N):
    patch = shown.patch_N[cell.start]
    if last is not None and patch != last:
      parts.append('|')
    last = patch
    parts.append(_spelled(cell, shown.text))
  return ''.join(parts)


def coloured(shown: Shown, full: float) -> str:
  """As `plain`, but patches differ by background and have no | between.

  The background is the brighter the less certain a byte was; at `full` nats
  it is brightest.
  """
  level_N = np.full(len(shown.text), 1)
  if shown.nats_N is not None:
    shares_N = shown.nats_N[:-1] / max(full, 1e-9)
    level_N = np.clip((4 * shares_N).astype(int), 0, 3)
  parts, last = [], None
  for cell in cells(shown.text, shown.patch_N):
    shade = _SHADES[shown.patch_N[cell.start] % 2][level_N[cell.start]]
    if shade != last:
      parts.append(f'\x1b[97;48;5;{shade}m')
    last = shade
    text = _spelled(cell, shown.text)
    if text.endswith('\n'):  # A colour would run on to the window's edge.
      text, last = f'{text[:-1]}{_RESET}\n', None
    parts.append(text)
  return ''.join([*parts, _RESET])


def _spelled(cell: Cell, text: bytes) -> str:
  if cell.character is not None:
    return _ESCAPES.get(cell.character, cell.character)
  byte = text[cell.start]
  return _BYTE_ESCAPES.get(byte, f'\\x{byte:02X}')
