"""Stop strings: nothing of them is shown, and nothing before them is lost."""

import hypothesis
import pytest
from hypothesis import strategies as st

from samplers import stop_strings


def shown(strings, text, size):
  """What a stream shows that learns the text in pieces of that size."""
  stops = stop_strings.StopStrings(strings)
  out = b''
  for end in range(size, len(text) + size, size):
    length, is_stopped = stops.cut(text[:end])
    assert length >= len(out), 'taken back'
    out = text[:length]
    if is_stopped:
      return out
  return out


@pytest.mark.parametrize('size', [1, 2, 3, 50])
def test_text_ends_before_the_first_stop_string(size):
  text = b'one\n\ntwo END three\n\n'
  assert shown((b'\n\n',), text, size) == b'one'
  assert shown((b'END', b'o E'), text, size) == b'one\n\ntw'
  assert shown((b'ababc',), b'xabababcx', size) == b'xab'
  assert shown((), text, size) == text


def test_what_may_begin_a_stop_string_is_held_back():
  stops = stop_strings.StopStrings((b'\n\n', b'stop', b'top'))
  assert stops.cut(b'a st') == (2, False)
  assert stops.cut(b'a sto!') == (6, False)
  assert stops.cut(b'a to') == (2, False)
  assert stops.cut(b'a\n') == (1, False)
  assert stops.cut(b'') == (0, False)


def test_pieces_do_not_change_what_is_shown():
  strings, text = (b'aab', b'ba', b'cc'), b'acabcaacbcaabcc'
  assert {shown(strings, text, n) for n in range(1, 16)} == {text[:10]}


def test_the_stop_string_that_is_complete_first_wins():
  # One begins before the other and ends after it.
  stops = stop_strings.StopStrings((b'top', b'stopx'))
  assert stops.cut(b'a stopx') == (3, True)
  assert shown((b'top', b'stopx'), b'a stopx', 1) == b'a s'
  # Complete at the same byte: the longer one.
  assert shown((b'top', b'stop'), b'a stop', 6) == b'a '


@hypothesis.settings(max_examples=300)
@hypothesis.given(
  st.text('abc', max_size=20),
  st.lists(st.text('abc', min_size=1, max_size=4), max_size=2),
  st.lists(
    st.tuples(st.integers(0, 19), st.integers(1, 8)), min_size=1, max_size=3
  ),
  st.lists(st.integers(1, 6), min_size=20, max_size=20),
)
def test_pieces_of_any_size_end_a_text_at_the_same_place(
  text, others, spans, sizes
):
  # Parts of the text, of which one may begin before and end after another.
  parts = {text[start : start + size] for start, size in spans} | {*others}
  strings = tuple(part.encode() for part in sorted(parts - {''}))
  stops, text = stop_strings.StopStrings(strings), text.encode()
  found = [
    (end, end - len(string))
    for end in range(len(text) + 1)
    for string in stops.strings
    if text[:end].endswith(string)
  ]
  expected = (min(found)[1], True) if found else None
  known, end = 0, 0
  for size in sizes:
    end += size
    cut = stops.cut(text[:end], known)
    assert known <= cut.length
    known = cut.length
    if cut.is_stopped:
      break
  if expected is None:
    assert not cut.is_stopped
  else:
    assert cut == expected == stops.cut(text)


def test_empty_stop_string_is_named():
  with pytest.raises(ValueError, match='stop string is empty'):
    stop_strings.StopStrings((b'x', b''))
