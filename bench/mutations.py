"""Damage done to valid files and texts, as accidents and attackers do it."""

import contextlib
import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

# What sits at the borders of what a reader may expect.
_NUMBERS = (
  '0', '-1', '1', '255', '65536', '2147483647', '2147483648', '4294967295',
  '1152921504606846976', '9223372036854775807', '9223372036854775808',
  '-9223372036854775808', '1e308', '1e400', '-1e400', 'NaN', 'Infinity',
  '0.5', '1e-320', '1' * 400, '9' * 5000,
)  # fmt: skip
_WORDS = (
  '', ' ', '\0', '\ud800', '\u202e', 'é', '../../x', '/etc/passwd', 'nan',
  'a' * 70_000, 'null', '%n%s', '%Q', '*', '**', '~', '.', 'os.system', 'F32',
  'builtins.eval', 'configs.base.Config', 'data.codec.Bytes', 'object', '日本',
  'models.lm.ByteLM', 'bounds.verify.main', 'models..x',
)  # fmt: skip
_BYTES = (
  b'\0', b'\xff', b'\xff' * 8, b'\0' * 8, b'"', b"'", b'\n', b'\r', b',', b';',
  b'[', b']', b'{', b'}', b'\xed\xa0\x80', b'\xef\xbb\xbf', b'\x80\x04', b'PK',
  b'[' * 200_000, b'{"a":' * 3000, b'(' * 5000, b'\x1f\x8b', b'9' * 200,
)  # fmt: skip
_NUMBER = re.compile(rb'-?\d+(\.\d+)?')
_DEEP = '\1deep\1'


def damaged(rng: random.Random, seeds: Sequence[bytes], kind: str) -> bytes:
  """One of the seeds after a few changes.

  kind: 'bytes', 'json', or 'files', a JSON of the bytes of files (Latin-1) by
    name, of which one is changed.
  """
  data = rng.choice(seeds)
  if kind == 'files':
    return _one_damaged(rng, data)
  if kind == 'json' and rng.random() < 0.8:
    data = _json_damaged(rng, data)
    if rng.random() < 0.8:
      return data
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    data = rng.choice(_CHANGES)(rng, data, seeds)
  return data


def _one_damaged(rng: random.Random, data: bytes) -> bytes:
  files = json.loads(data)
  name = rng.choice(sorted(files))
  content = files[name].encode('latin-1')
  is_json = content[:1] in (b'{', b'[')
  with contextlib.suppress(ValueError):
    content = damaged(rng, [content], 'json' if is_json else 'bytes')
  if rng.random() < 0.05:
    del files[name]
  else:
    files[name] = content.decode('latin-1')
  return json.dumps(files).encode()


def _flip(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
  out = bytearray(data)
  for _ in range(min(rng.choice((1, 1, 2, 8)), len(out))):
    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
  return bytes(out)


def _cut(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
  start, stop = _span(rng, data)
  return rng.choice((data[:start], data[:start] + data[stop:]))


def _repeat(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
  start, stop = _span(rng, data)
  stop = min(stop, start + 4096)
  times = rng.choice((2, 3, 50))
  return data[:start] + data[start:stop] * times + data[stop:]


def _insert(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
  place = rng.randrange(len(data) + 1)
  new = rng.choice((*_BYTES, rng.randbytes(rng.choice((1, 4, 30)))))
  kept = place + rng.choice((0, len(new)))
  return data[:place] + new + data[kept:]


def _splice(rng: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
  other = rng.choice(seeds)
  return (
    data[: rng.randrange(len(data) + 1)]
    + other[rng.randrange(len(other) + 1) :]
  )


def _renumber(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
  """Another number in place of one that is written out."""
  found = list(_NUMBER.finditer(data[:100_000]))
  if not found:
    return data
  match = rng.choice(found)
  new = rng.choice(_NUMBERS).encode()
  return data[: match.start()] + new + data[match.end() :]


def _resize(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
  """Another integer in place of one in binary."""
  width = rng.choice((1, 2, 4, 8))
  place = rng.randrange(max(len(data) - width, 0) + 1)
  bits = 8 * width
  large = 2 ** (bits - 1) - 1, 2**bits - 1, 2 ** min(60, bits - 1)
  value = rng.choice((0, 1, rng.randrange(256), *large))
  order = rng.choice(('little', 'big'))
  return data[:place] + value.to_bytes(width, order) + data[place + width :]


_CHANGES: tuple[Callable[..., bytes], ...] = (
  _flip, _flip, _cut, _repeat, _insert, _splice, _renumber, _renumber, _resize,
)  # fmt: skip


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
  start = rng.randrange(len(data) + 1)
  return start, start + rng.choice((1, 8, 100, len(data)))


def _json_damaged(rng: random.Random, data: bytes) -> bytes:
  """Another value, name or order somewhere in a tree of JSON."""
  holder = [json.loads(data)]
  for _ in range(rng.choice((1, 1, 2, 5))):
    _change(rng, holder)
  text = json.dumps(holder[0], ensure_ascii=rng.random() < 0.5)
  depth = rng.choice((30, 99, 300, 900, 100_000))
  opened, closed = rng.choice((('[', ']'), ('{"a":[', ']}')))
  text = text.replace(json.dumps(_DEEP), opened * depth + closed * depth)
  return text.encode('utf-8', 'surrogatepass')


def _change(rng: random.Random, holder: list[Any]) -> None:
  places = list(_places(holder))
  node, key = rng.choice(places)
  change = rng.randrange(6)
  if change < 3 or (change == 4 and node is holder):
    node[key] = _value(rng)
  elif change == 3 and isinstance(node, dict):
    node[rng.choice((*_WORDS[:12], key + 'x'))] = node.pop(key)
  elif change == 3:
    is_small = len(json.dumps(node[key])) < 1000
    node[key] = [node[key]] * rng.choice((0, 2, 300 if is_small else 3))
  elif change == 4:
    node.pop(key)
  else:
    other, place = rng.choice(places)
    node[key] = json.loads(json.dumps(other[place]))


def _places(node: Any) -> list[tuple[Any, Any]]:
  """Every list or object, with every index or key of it."""
  found, nodes = [], [node]
  while nodes and len(found) < 5000:
    node = nodes.pop()
    keys = list(node) if isinstance(node, dict) else range(len(node))
    for key in keys:
      found.append((node, key))
      if isinstance(node[key], dict | list):
        nodes.append(node[key])
  return found


def _value(rng: random.Random) -> Any:
  choice = rng.randrange(8)
  if choice < 3:
    return _as_number(rng.choice(_NUMBERS[:-1]))
  if choice < 5:
    return rng.choice(_WORDS)
  return rng.choice((None, True, False, [], {}, [1, 'a', None], {'a': {}},
                     [[]], _DEEP, _DEEP, ['a' * 100] * 200))  # fmt: skip


def _as_number(text: str) -> int | float:
  try:
    return int(text)
  except ValueError:
    return float(text)
