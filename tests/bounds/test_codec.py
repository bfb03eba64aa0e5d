import math
import subprocess
import sys
import zlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from scipy import special

from bounds import codec
from bounds import quantise
from bounds import rangecoder

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(0, 0.02, (40, 30))
TENSORS = (
  quantise.Deadzone(1.1)(WEIGHTS),
  quantise.Ternary(per_row=True)(RNG.standard_normal((6, 5))),
  quantise.Uniform(0.1, per_row=True)(RNG.standard_cauchy((3, 4, 2))),
  quantise.Uniform(0.05)(RNG.standard_normal(9)),
  quantise.Uniform(1.0)(np.array(0.3)),
  quantise.Codebook(3)(RNG.standard_normal((8, 9))),
)
FILE = codec.encode(TENSORS, b'notes of the caller')


def same(one, other):
  assert (one.shift, one.levels) == (other.shift, other.levels)
  np.testing.assert_array_equal(one.codes, other.codes)
  np.testing.assert_array_equal(one.symbols, other.symbols)
  assert one.symbols.shape == other.symbols.shape
  assert one.decode().tobytes() == other.decode().tobytes()


def wrapped(body):
  """A file with a valid checksum around any body."""
  head = codec.MAGIC + bytes([codec.VERSION, len(body)]) + body
  return head + zlib.crc32(head).to_bytes(4, 'big')


def test_round_trip_is_exact():
  notes, tensors, size = codec.decode(FILE)
  assert notes == b'notes of the caller'
  assert size == len(FILE)
  for one, other in zip(TENSORS, tensors, strict=True):
    same(one, other)
  assert codec.encode(tensors, notes) == FILE
  assert codec.decode(codec.encode([])).tensors == []


def test_fresh_process_decodes_the_same_weights(tmp_path):
  path = tmp_path / 'model.pw'
  path.write_bytes(FILE)
  program = (
    'import pathlib, sys, zlib; from bounds import codec;'
    'data = pathlib.Path(sys.argv[1]).read_bytes();'
    'file = codec.decode(data); assert file.size == len(data);'
    'print(zlib.crc32(b"".join(t.decode().tobytes() for t in file.tensors)));'
    'assert not {"jax", "pickle"} & {m for m in sys.modules if m == "jax"}'
  )
  command = [sys.executable, '-c', program, str(path)]
  root = __file__.rsplit('/', 3)[0]
  got = subprocess.run(command, cwd=root, capture_output=True, check=True)
  expected = zlib.crc32(b''.join(t.decode().tobytes() for t in TENSORS))
  assert int(got.stdout) == expected


def test_garbage_after_the_file_changes_nothing():
  for tail in (b'\0', FILE, RNG.bytes(1000)):
    notes, tensors, size = codec.decode(FILE + tail)
    assert (notes, size) == (b'notes of the caller', len(FILE))
    for one, other in zip(TENSORS, tensors, strict=True):
      same(one, other)


def test_every_truncation_is_refused():
  for size in range(len(FILE)):
    with pytest.raises(ValueError, match=r'cut short|no model file'):
      codec.decode(FILE[:size])


def test_every_flipped_bit_is_refused():
  for place in range(8 * len(FILE)):
    data = bytearray(FILE)
    data[place // 8] ^= 1 << place % 8
    with pytest.raises(ValueError, match=r'damaged|cut short|version'):
      codec.decode(bytes(data))


def test_newer_version_is_named():
  data = bytearray(FILE)
  data[2] = 9
  with pytest.raises(ValueError, match='format version 9, this decoder reads'):
    codec.decode(bytes(data))


@hypothesis.given(strategies.binary(max_size=100))
def test_any_body_decodes_or_is_refused(body):
  # Past the checksum, as only somebody who forges it gets.
  try:
    file = codec.decode(wrapped(body), max_values=5000)
  except ValueError:
    return
  assert sum(t.symbols.size for t in file.tensors) <= 5000


def test_sizes_are_checked_before_anything_is_allocated():
  coder, sizes = rangecoder.Encoder(), rangecoder.Integers(1)
  for number in (0, 1, 3, 1 << 20, 1 << 20, 1 << 20):
    sizes.code(coder, 0, number)
  forged = wrapped(coder.finish())
  with pytest.raises(ValueError, match=f'{1 << 60} weights; at most 67108864'):
    codec.decode(forged)
  with pytest.raises(ValueError, match='at most 1199 are allowed'):
    codec.decode(codec.encode(TENSORS[:1]), max_values=1199)
  assert codec.decode(codec.encode(TENSORS[:1]), max_values=1200)


@pytest.mark.parametrize('step', [0.8, 0.02])  # Symbols up to 5 and 200.
def test_length_is_the_ideal_one(step):
  weights = np.random.default_rng(0).standard_normal((200, 200))
  coded = quantise.Uniform(step)(weights)
  static = np.unique(coded.symbols, return_counts=True)[1]
  entropy = -(static * np.log2(static / static.sum())).sum()
  ideal = codec.ideal_bits(coded.symbols)
  assert entropy < ideal < entropy + 8 * len(static)
  bits = 8 * len(codec.encode([coded]))
  # 80 bits around the body, some 60 for shape, scale and rule.
  assert ideal + 80 < bits < ideal + 200


def test_ideal_length_against_symbols_by_hand():
  # Zero?: 3 of 5; sign: one of each; beyond one?: one of two; beyond two?: no.
  def kt(zeros, ones):
    beta = special.beta(zeros + 0.5, ones + 0.5) / math.pi
    return -math.log2(beta)

  expected = kt(3, 2) + kt(1, 1) + kt(1, 1) + kt(1, 0)
  symbols = np.array([[0, 0, 1, -2, 0]])
  assert codec.ideal_bits(symbols) == pytest.approx(expected)


def test_neighbours_help_where_sizes_cluster():
  rng = np.random.default_rng(0)
  size = np.repeat(np.repeat(rng.random((10, 10)) < 0.2, 10, 0), 10, 1)
  coded = quantise.Coded(
    (rng.choice([-1, 1], size.shape) * size).astype(np.int32),
    np.zeros(1, np.int32),
  )
  clustered = 8 * len(codec.encode([coded]))
  assert clustered < 0.6 * codec.ideal_bits(coded.symbols)
  same(codec.decode(codec.encode([coded])).tensors[0], coded)


def test_what_does_not_fit_is_refused():
  codes = np.zeros(1, np.int32)
  with pytest.raises(ValueError, match='larger quantiser step'):
    codec.encode([quantise.Coded(np.full(2, 1 << 24, np.int32), codes)])
  with pytest.raises(ValueError, match='scale codes fit neither'):
    codec.encode([quantise.Coded(np.ones(3, np.int32), np.zeros(2, np.int32))])
  with pytest.raises(ValueError, match='shift 16'):
    codec.encode([quantise.Coded(np.ones(3, np.int32), codes, 16)])
  with pytest.raises(ValueError, match=r'codebook \(5, 9\) must have'):
    codec.encode([quantise.Coded(np.full(3, 3, np.int32), codes, 0, (5, 9))])
  with pytest.raises(ValueError, match='no meaning with a codebook'):
    codec.encode([quantise.Coded(np.ones(3, np.int32), codes, 2, (5, 9))])
  with pytest.raises(ValueError, match='at most 8 axes'):
    codec.encode([quantise.Coded(np.ones((1,) * 9, np.int32), codes)])
  with pytest.raises(ValueError, match='bytes of notes'):
    codec.encode([], b'x' * 70_000)
