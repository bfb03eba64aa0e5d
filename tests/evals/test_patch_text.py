"""What a terminal shows gives back every byte and every patch."""

import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from evals import patch_text

HOSTILE = (
  b'a|b\\n \\| </script> & "\'\x00\x1b[31m\r\n\t\n\xff\xfe\xc3 \xe2\x82'
  b'\xf0\x9f\x91\x8d\xed\xa0\x80\xc0\x80\xf8\x88\x80\x80\x80'
  + 'é€\u200b\ufeff\u202e\u00a0\ufe0f\u3164שּ日本'.encode()
)


def shown(text, starts, nats=None):
  """`starts` are the first bytes of patches, 0 apart."""
  marks = np.zeros(len(text), int)
  marks[[start for start in starts if 0 < start < len(text)]] = 1
  return patch_text.Shown('name', text, len(text), np.cumsum(marks), nats)


def unescaped(text):
  """The bytes that `plain` has spelled."""
  names = {'n': b'\n', 'r': b'\r', 't': b'\t', '\\': b'\\', '|': b'|'}
  found, i = b'', 0
  while i < len(text):
    if text[i] != '\\':
      found += text[i].encode()
    elif text[i + 1] == 'x':
      found += bytes.fromhex(text[i + 2 : i + 4])
      i += 3
    else:
      found += names[text[i + 1]]
      i += 1
    i += 1
  return found


def patches_of(part):
  return [
    part.text[int(i[0]) : int(i[-1]) + 1]
    for i in (
      np.flatnonzero(part.patch_N == patch) for patch in np.unique(part.patch_N)
    )
  ]


texts = st.one_of(
  st.binary(max_size=40),
  st.text(max_size=20).map(lambda text: text.encode('utf-8', 'ignore')),
  st.just(HOSTILE),
)


@hypothesis.given(texts, st.sets(st.integers(0, 80)))
def test_plain_form_goes_both_ways(text, starts):
  part = shown(text, starts)
  lines = patch_text.plain(part).split('\n')
  joined = ''.join(lines)
  assert all(character.isprintable() for character in joined)
  pieces = re.split(r'\|(?!$)', re.sub(r'\\.', lambda m: m[0].replace(
    '|', '\0'), joined)) if joined else []  # fmt: skip
  pieces = [unescaped(piece.replace('\0', '|')) for piece in pieces]
  assert pieces == patches_of(part)


@hypothesis.given(texts, st.sets(st.integers(0, 80)), st.booleans())
def test_coloured_form_goes_both_ways(text, starts, with_nats):
  rng = np.random.default_rng(len(text))
  nats = rng.uniform(0, 6, len(text) + 1) if with_nats else None
  part = shown(text, starts, nats)
  found, parities, parity = b'', [], None
  line = patch_text.coloured(part, 5.0)
  assert line.endswith('\x1b[0m')
  for code, piece in re.findall('\x1b\\[([0-9;]+)m([^\x1b]*)', line):
    if code == '0':
      assert not piece.strip('\n')
      continue
    shade = int(code.rsplit(';', 1)[1])
    parity = next(i for i, x in enumerate(patch_text._SHADES) if shade in x)
    raw = unescaped(piece)
    found += raw
    parities += [parity] * len(raw)
  assert found == text
  assert parities == (part.patch_N % 2).tolist()


def test_shades_follow_the_entropy_before_the_byte():
  nats = np.array([0.0, 2.6, 9.0, 0.1, 1.3])
  found = patch_text.coloured(shown(b'abcd', [], nats), 5.0)
  shades = [int(code) for code in re.findall(r'48;5;(\d+)m', found)]
  ramp = patch_text._SHADES[0]
  assert shades == [ramp[0], ramp[2], ramp[3], ramp[0]]


@pytest.mark.parametrize(
  ('text', 'starts', 'expected'),
  [
    (b'', [], ''),
    (b'x', [], 'x'),
    ('aé'.encode(), [1], 'a|é'),
    ('aé'.encode(), [2], 'a\\xC3|\\xA9'),
    (b'\xc3', [], '\\xC3'),
    (b'\xe2\x82x', [], '\\xE2\\x82x'),
    (b'a\n\nb', [2], 'a\\n\n|\\n\nb'),
    ('\u200b'.encode(), [], '\\xE2\\x80\\x8B'),
    ('\u3164'.encode(), [], '\\xE3\\x85\\xA4'),
    (b'|\\', [1], '\\||\\\\'),
  ],
)
def test_spelling(text, starts, expected):
  assert patch_text.plain(shown(text, starts)) == expected
