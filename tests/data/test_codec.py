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


def test_byte_codec_is_the_byte_vocabulary():
  name = codec.Bytes()
  text = bytes(range(256))
  np.testing.assert_array_equal(name.encode(text), codec.encode(text))
  assert name.decode(codec.encode(text)) == text
  assert name.vocabulary_size == len(name.lengths_V) == codec.VOCABULARY
  assert name.lengths_V[: codec.OFFSET].tolist() == [0] * codec.OFFSET
  assert np.all(name.lengths_V[codec.OFFSET :] == 1)
  assert name.is_trained
  assert name.trained(None) == name.untrained() == name == codec.Bytes()


def test_stream_reads_ids_of_a_small_type():
  stored = np.array([250, 255, 0, 7], np.uint8)
  stream = codec.Stream(stored, np.array([0, 1, 4]), shift=codec.OFFSET)
  ids = stream.read(1, 3)
  assert ids.dtype == np.int32
  assert ids.tolist() == [259, 4]
