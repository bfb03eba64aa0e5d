"""Stop strings: nothing of them is shown, and nothing before them is lost."""

import pytest

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


def test_empty_stop_string_is_named():
  with pytest.raises(ValueError, match='stop string is empty'):
    stop_strings.StopStrings((b'x', b''))
