"""From the name of a token in a tokenizer.json to its bytes."""

import functools
from collections.abc import Callable
from typing import Any

# Letters of what a sign stands for; it may be in every token many times.
_LONGEST = 64
_DECODERS = ('ByteFallback', 'ByteLevel', 'Fuse', 'Metaspace', 'Replace')


def reader(tree: Any, where: str) -> Callable[[str], bytes]:
  """What the decoder of a file makes of a token.

  Raises ValueError for a decoder of another kind.
  """
  try:
    kinds, changes = _decoder(tree)
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(
      f'{where}: its decoder has no fields as transformers writes them; choose'
      ' another checkpoint.'
    ) from error
  if 'ByteLevel' in kinds:
    return _byte_level
  wrong = [kind for kind in kinds if kind not in (*_DECODERS, 'Strip')]
  if wrong or not kinds:
    raise ValueError(
      f'{where}: decoder={str(wrong[0])[:80] if wrong else None} does not say'
      f' which bytes a token is; choose a checkpoint with'
      f' {", ".join(_DECODERS)}.'
    )

  def read(token: str) -> bytes:
    if 'ByteFallback' in kinds and is_fallback(token):
      return bytes([int(token[3:5], 16)])
    for old, new in changes.items():
      token = token.replace(old, new)
    return token.encode()

  return read


def check_ids(tree: Any, limit: int, where: str) -> None:
  """ValueError for ids beyond a limit.

  The package tokenizers keeps a place for every id below the largest and ends
  the process where there is no memory for them.
  """
  model = tree.get('model') if isinstance(tree, dict) else None
  vocabulary = model.get('vocab') if isinstance(model, dict) else None
  added = tree.get('added_tokens') if isinstance(tree, dict) else None
  ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
  for token in added if isinstance(added, list) else []:
    ids.append(token.get('id') if isinstance(token, dict) else None)
  for i in ids:
    if type(i) is not int or not 0 <= i < limit:
      raise ValueError(
        f'{where} has the id {str(i)[:20]}; ids are integers from 0 to'
        f' {limit - 1}.'
      )


def is_fallback(token: str) -> bool:
  """Whether a token is a byte, as '<0x0A>'."""
  if len(token) != 6 or token[:3] != '<0x' or token[-1] != '>':
    return False
  return all(digit in '0123456789abcdefABCDEF' for digit in token[3:5])


def _decoder(tree: Any) -> tuple[list[str], dict[str, str]]:
  """Kinds of its steps, and what it replaces."""
  decoder = tree.get('decoder') or {}
  steps = decoder.get('decoders', [decoder] if decoder else [])
  kinds = [
    'Replace by Regex' if 'Regex' in step.get('pattern', ()) else step['type']
    for step in steps
  ]
  changes = {
    step.get('replacement') or step['pattern']['String']: step.get(
      'content', ' '
    )
    for step in steps
    if step['type'] in ('Metaspace', 'Replace')
    and 'Regex' not in step.get('pattern', ())
  }
  for text in (*changes, *changes.values(), *kinds):
    if not isinstance(text, str) or len(text) > _LONGEST:
      raise TypeError('no short text')
  if '' in changes:
    raise TypeError('replaces nothing by something')
  return kinds, changes


@functools.cache
def _alphabet() -> dict[str, int]:
  """Which byte each character of a byte-level token is (GPT-2, 2019)."""
  shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
  found = {chr(byte): byte for byte in shown}
  hidden = [byte for byte in range(256) if byte not in shown]
  return found | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def _byte_level(token: str) -> bytes:
  table = _alphabet()
  if all(character in table for character in token):
    return bytes(table[character] for character in token)
  return token.encode()
