"""Bytes survive the vocabulary."""

import numpy as np
import pytest

from data import codec


def test_every_byte_has_its_own_id_and_comes_back():
  text = bytes(range(256))
  ids = codec.encode(text)
  assert ids.dtype == np.int32
  np.testing.assert_array_equal(ids, np.arange(4, 260))
  assert codec.VOCABULARY == 260
  assert codec.decode(ids) == text
  np.testing.assert_array_equal(ids, codec.encode(np.frombuffer(text, 'u1')))


def test_decode_drops_special_ids_only():
  ids = [codec.BOS, 4, codec.DELIMITER, 259, codec.EOS, codec.PADDING]
  assert codec.decode(ids) == b'\x00\xff'
  assert codec.decode([]) == b''
  assert codec.encode(b'').shape == (0,)


@pytest.mark.parametrize(
  ('call', 'argument', 'says'),
  [
    (codec.encode, 'text', r"text\.encode\('utf-8'\)"),
    (codec.encode, np.zeros(3, np.int32), 'int32'),
    (codec.decode, [260], '0 to 259'),
    (codec.decode, [-1], '-1'),
  ],
)
def test_wrong_input_is_named(call, argument, says):
  with pytest.raises(ValueError, match=says):
    call(argument)
