import collections
import math
import shutil
import subprocess

import numpy as np
import pytest

from evals import references


def straightforward_code_lengths(stream, order):
  """The k-gram model with one dictionary per context, one byte at a time."""
  counts = collections.defaultdict(collections.Counter)
  lengths = []
  for i, byte in enumerate(stream):
    contexts = [stream[i - k : i] for k in range(order + 1) if k <= i]
    probability = 1 / 256
    for context in contexts:
      seen = counts[context]
      if seen:
        n, kinds = seen.total(), len(seen)
        probability = (seen[byte] + kinds * probability) / (n + kinds)
    for context in contexts:
      counts[context][byte] += 1
    lengths.append(-math.log2(probability))
  return lengths


@pytest.mark.parametrize('order', [0, 1, 2, 3])
@pytest.mark.parametrize('symbols', [1, 2, 5, 256])
@pytest.mark.parametrize('size', [1, 2, 3, 4, 5, 700])
def test_kgram_agrees_with_dictionaries(order, symbols, size):
  rng = np.random.default_rng(order + 10 * symbols)
  # High bytes as well: their place in the context must not be truncated.
  bytes_N = (255 - rng.integers(0, symbols, size)).astype(np.uint8)
  expected = straightforward_code_lengths(bytes_N.tobytes(), order)
  actual = references.kgram_code_lengths(bytes_N, order=order)
  np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_primed_kgram_continues_the_stream():
  rng = np.random.default_rng(0)
  stream_N = rng.integers(97, 102, 500).astype(np.uint8)
  expected = straightforward_code_lengths(stream_N.tobytes(), 3)[300:]
  actual = references.kgram_code_lengths(
    stream_N[300:], prime_M=stream_N[:300]
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_kgram_never_looks_ahead():
  rng = np.random.default_rng(1)
  bytes_N = rng.integers(0, 4, 400).astype(np.uint8)
  changed_N = bytes_N.copy()
  changed_N[250:] = 7
  np.testing.assert_array_equal(
    references.kgram_code_lengths(bytes_N)[:250],
    references.kgram_code_lengths(changed_N)[:250],
  )


def test_noise_costs_at_least_eight_bits():
  bytes_N = np.random.default_rng(2).integers(0, 256, 50_000).astype(np.uint8)
  for name, bits in references.references(bytes_N).items():
    assert bits >= 8, name


def test_kgram_learns_the_entropy_of_a_source():
  rng = np.random.default_rng(3)
  probabilities = np.array([0.5, 0.25, 0.125, 0.125])
  bytes_N = rng.choice(4, 100_000, p=probabilities).astype(np.uint8)
  entropy = -np.sum(probabilities * np.log2(probabilities))
  mean = references.kgram_code_lengths(bytes_N).mean()
  assert entropy - 0.01 < mean < entropy + 0.03


@pytest.mark.parametrize(
  ('command', 'ours'),
  [
    ('gzip', references.gzip_bits_per_byte),
    ('xz', references.xz_bits_per_byte),
  ],
)
def test_compressors_agree_with_the_command_line(command, ours):
  if shutil.which(command) is None:
    pytest.skip(f'{command} is not installed')
  with open(references.__file__, 'rb') as file:
    text = file.read() * 20
  bytes_N = np.frombuffer(text, np.uint8)
  result = subprocess.run(
    [command, '-9', '-c'], input=text, capture_output=True, check=True
  )
  size = ours(bytes_N) * len(text) / 8
  # The deflate of gzip and that of zlib cut their blocks at other places.
  assert abs(size - len(result.stdout)) <= 32 + 0.001 * len(result.stdout)


def test_references_name_every_figure_once():
  bytes_N = np.frombuffer(b'abracadabra' * 50, np.uint8)
  alone = references.references(bytes_N)
  primed = references.references(bytes_N, prime_M=bytes_N)
  assert set(alone) == {'gzip_9', 'xz_9', 'kgram_3'}
  assert set(primed) - set(alone) == {'kgram_3_primed'}
  assert primed['kgram_3_primed'] < primed['kgram_3']


@pytest.mark.parametrize(
  'bytes_N', [np.zeros(0, np.uint8), np.zeros(3, np.int32), np.zeros((2, 2))]
)
def test_anything_but_bytes_is_refused(bytes_N):
  with pytest.raises(ValueError, match='non-empty row of uint8'):
    references.references(bytes_N)
