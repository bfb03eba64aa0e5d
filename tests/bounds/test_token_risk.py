"""The drawn risk of a token model, and the file that it is of."""

import math

import numpy as np
import pytest

from bounds import header as headers
from bounds import subsample
from bounds import token_file
from bounds import token_risk

DIGEST = '0123456789abcdef' * 4
V = 50


def make(count=400, tokens=5000):
  rng = np.random.default_rng(0)
  return token_risk.Draw(rng.beta(1, 2, count), tokens, V)


def test_bound_is_that_of_the_smoothed_losses_by_hand():
  draw, code, bits, delta = make(), 40, 3000, 0.05
  alpha = 2 ** (-code / 16)
  losses_n = -np.log2((1 - alpha) * draw.probability_n + alpha / V)
  # The steps of the proof, with its one slack and without their classes.
  share = 400 / 5400
  found = token_risk.certify(draw, code, bits, delta)
  slack = found.terms['slack']
  top = math.log2(V / alpha) + slack
  grid = math.log2(len(subsample.SLACKS))
  cost = ((bits + grid) * math.log(2) - math.log(share * delta)) / 5000
  floor = math.log(top - found.value) + cost
  # A lower bound on the mean of ln(B - x), so below that of the draw.
  assert floor < np.log(top - losses_n).mean()
  assert found.terms['empirical_risk'] == pytest.approx(losses_n.mean())
  assert losses_n.mean() < found.value < math.log2(V / alpha)
  assert found.terms['cost'] == pytest.approx(cost)


def test_alpha_is_the_best_of_its_codes_and_bits_and_draws_cost():
  draw = make()
  code = token_risk.choose(draw, 3000, 0.05)
  assert 0 < code < 255
  value = token_risk.certify(draw, code, 3000, 0.05).value
  for other in headers.BASES[::4]:
    assert value <= token_risk.certify(draw, other, 3000, 0.05).value
  assert value < token_risk.certify(draw, code, 4000, 0.05).value
  assert value < token_risk.certify(draw, code, 3000, 0.01).value
  assert value < token_risk.published(draw, code, 3000, 0.05).value
  fewer = draw._replace(probability_n=draw.probability_n[::4])
  assert value < token_risk.certify(fewer, code, 3000, 0.05).value


@pytest.mark.slow
def test_bound_holds_over_draws_and_streams():
  """Losses of known mean, with the code chosen by the draw."""
  delta, bits, failures, runs = 0.2, 0, 0, 50
  for seed in range(runs):
    rng = np.random.default_rng(seed)
    p_N = np.where(rng.random(2000) < 0.02, 1e-6, 0.9)
    drawn = rng.choice(2000, 200, replace=False)
    draw = token_risk.Draw(p_N[drawn], 2000, V)
    code = token_risk.choose(draw, bits, delta)
    alpha = min(2 ** (-code / 16), 0.9)
    loss = -np.log2((1 - alpha) * np.array([1e-6, 0.9]) + alpha / V)
    risk = 0.02 * loss[0] + 0.98 * loss[1]
    failures += token_risk.certify(draw, code, bits, delta).value < risk
  assert failures / runs < delta


def test_file_comes_back_with_the_tokens_it_names():
  file = b'PW and the rest'
  data = token_file.pack(file, DIGEST)
  assert data.startswith(token_file.MAGIC)
  assert token_file.unpack(data, DIGEST) == file
  assert len(data) <= len(file) + 16
  for broken, words in (
    (data[:-1], 'cut short'),
    (data + b'x', 'belongs to nothing'),
    (b'XX' + data[2:], 'no model file'),
    (data[:9] + bytes([data[9] ^ 1]) + data[10:], 'checksum'),
  ):
    with pytest.raises(ValueError, match=words):
      token_file.unpack(broken, DIGEST)
  with pytest.raises(ValueError, match='not of fedcba9876543210'):
    token_file.unpack(data, DIGEST[::-1])
