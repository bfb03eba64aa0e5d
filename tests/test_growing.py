"""Texts that grow by a few ids at a time: configs.prompts.Growing."""

import numpy as np
import pytest

from configs import prompts
from data import codec
from samplers import stop_strings


class Marked(codec.Bytes):
  """Bytes whose texts begin with a lead; counts the ids that it decodes."""

  lead = b'ab'

  def decode(self, ids, *, begins=True):
    self.__dict__['ids'] = self.__dict__.get('ids', 0) + len(ids)
    made = super().decode(ids)
    return made.removeprefix(self.lead) if begins else made


def stream(spelling, rows, size, texts=(b'',), stops=(), most=10**6):
  """Growing texts after every `size` ids of rows that end at their own."""
  stops = stop_strings.StopStrings(stops)
  count = len(rows) // len(texts)
  growing = prompts.Growing(spelling, texts, count, stops, most)
  longest = max(map(len, rows))
  ids_BN = np.zeros((len(rows), longest), np.int32)
  for end in range(size, longest + size, size):
    length_B = np.array([min(len(row), end) for row in rows])
    for ids_N, row, length in zip(ids_BN, rows, length_B, strict=True):
      ids_N[:length] = codec.encode(row)[:length]
    growing.add(ids_BN, length_B)
    yield growing


@pytest.mark.parametrize('size', [1, 2, 3, 7, 40])
def test_pieces_do_not_change_texts(size):
  rows = [b'ab, then abab', b'aabb', b'xab', b'abab']
  found = []
  for growing in stream(Marked(), rows, size, texts=(b'', b'a prompt')):
    now = list(zip(growing.texts, growing.certain, strict=True))
    for old, (new, sure) in zip(found or [b''] * 4, now, strict=True):
      assert new[: len(old)] == old and len(old) <= sure <= len(new)
    found = [bytes(text[:sure]) for text, sure in now]
  # Only where nothing comes before is the lead none of the text.
  assert found == [b', then abab', b'aabb', b'xab', b'abab']


@pytest.mark.parametrize('size', [1, 2, 5, 30])
def test_stop_strings_and_the_number_of_bytes_end_texts(size):
  rows = [b'one two END three', b'one, two, EN', b'x' * 30]
  *_, growing = stream(
    codec.Bytes(), rows, size, stops=(b'END', b'o EN'), most=12
  )
  assert growing.texts == [b'one tw', b'one, two, EN', b'x' * 12]
  assert growing.stopped_B.tolist() == [True, False, False]
  assert growing.certain == [6, 10, 12]


def test_every_id_is_decoded_once():
  spelling = Marked()
  rows = [b'ab' + b'0123456789' * 50, b'once']
  *_, growing = stream(spelling, rows, 16)
  assert growing.texts == [rows[0][2:], b'once']
  assert spelling.__dict__['ids'] == sum(map(len, rows))
