import ast
import math
import pathlib

import numpy as np
import pytest
from scipy import special

from bounds import rangecoder


def encode_bits(bits):
  coder, model = rangecoder.Encoder(), rangecoder.Model()
  for bit in bits:
    coder.bit(model, bit)
  return coder.finish()


def decode_bits(data, count):
  coder, model = rangecoder.Decoder(data), rangecoder.Model()
  bits = [coder.bit(model) for _ in range(count)]
  coder.finish()
  return bits


@pytest.mark.parametrize('share', [0.0, 0.001, 0.3, 0.999, 1.0])
def test_length_is_that_of_the_kt_model(share):
  bits = (np.random.default_rng(0).random(20_000) < share).astype(int).tolist()
  data = encode_bits(bits)
  assert decode_bits(data, len(bits)) == bits
  ones = sum(bits)
  beta = special.betaln(len(bits) - ones + 0.5, ones + 0.5) - math.log(math.pi)
  ideal = -beta / math.log(2)
  assert ideal - 8 <= 8 * len(data) <= ideal + 10


def test_every_short_sequence_comes_back():
  for count in range(11):
    for pattern in range(1 << count):
      bits = [pattern >> place & 1 for place in range(count)]
      assert decode_bits(encode_bits(bits), count) == bits


def test_carries_run_through_many_bytes():
  # Half of everything below the middle: the code is 0111...1 or 1000...0.
  coder = rangecoder.Encoder()
  numbers = [0x7F, *[0xFF] * 40, 0xFF]
  for number in numbers:
    coder.number(8, number)
  model = rangecoder.Model()
  for _ in range(50):
    coder.bit(model, 1)
  data = coder.finish()
  reader = rangecoder.Decoder(data)
  assert [reader.number(8) for _ in numbers] == numbers
  model = rangecoder.Model()
  assert all(reader.bit(model) for _ in range(50))


def test_integers_of_all_sizes_come_back():
  edge = [0, 1, -1, 14, -14, 15, -15, 16, 255, -256, 2**20, 2**24 - 2]
  edge += [-rangecoder.Integers.LARGEST]
  rng = np.random.default_rng(0)
  wild = np.rint(rng.standard_cauchy(3000) * 3).clip(-1e6, 1e6)
  numbers = edge + wild.astype(int).tolist()
  coder, integers = rangecoder.Encoder(), rangecoder.Integers(3)
  for place, number in enumerate(numbers):
    assert integers.code(coder, place % 3, number) == number
  reader, integers = rangecoder.Decoder(coder.finish()), rangecoder.Integers(3)
  got = [integers.code(reader, place % 3) for place in range(len(numbers))]
  assert got == numbers
  assert all(type(number) is int for number in got)


def test_counts_stay_bounded():
  model = rangecoder.Model()
  model.zeros = (1 << 26) - 2
  for _ in range(1000):
    model.update(1)
  assert model.zeros + model.ones <= 1 << 26
  assert model.zeros % 2 == model.ones % 2 == 1


def test_bytes_that_no_decision_needs_are_refused():
  data = encode_bits([0, 1, 1, 0] * 40)
  reader, model = rangecoder.Decoder(data + b'more of it'), rangecoder.Model()
  for _ in range(160):
    reader.bit(model)
  with pytest.raises(ValueError, match='bytes are left'):
    reader.finish()


def test_coding_is_done_in_integers():
  # Floats could round differently elsewhere and decode to other numbers.
  tree = ast.parse(pathlib.Path(rangecoder.__file__).read_text('utf-8'))
  for node in ast.walk(tree):
    assert not isinstance(node, ast.Div)
    assert not isinstance(getattr(node, 'value', None), float)
    assert not isinstance(node, ast.Import | ast.ImportFrom)
