"""From what a file says of every symbol of a stream to certified numbers."""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import optimize

from bounds import azuma
from bounds import bernstein
from bounds import betting
from bounds import bound
from bounds import catoni
from bounds import header as headers
from bounds import smoothing
from bounds import topk

# Symbols of the stream that smoothing is chosen by, before all are scored.
_SAMPLE = 200_000

# Bits above a ceiling, for the logarithms that it and a loss are computed by.
_ROUNDING = 1e-9


class Evidence(NamedTuple):
  """What is known of a stream before smoothing.

  probability_N, entropy_N, rank_N: of every symbol's class.
  classes: V; spelling_bits: of members of classes, see alphabet; bytes: m.
  """

  probability_N: np.ndarray
  entropy_N: np.ndarray
  rank_N: np.ndarray
  classes: int
  spelling_bits: float
  bytes: int

  @property
  def per_byte(self) -> float:
    """Symbols per byte, ends of documents included."""
    return len(self.probability_N) / self.bytes

  def in_bytes(self, bits_per_symbol: float) -> float:
    """Bits per byte, spelling included."""
    return bits_per_symbol * self.per_byte + self.spelling_bits / self.bytes

  @property
  def vacuous(self) -> float:
    """Bits per byte of guessing: a bound that is not below says nothing."""
    return self.in_bytes(math.log2(self.classes))


class Smoothed(NamedTuple):
  """Losses and ceilings in bits per symbol, both below one alpha rule."""

  losses_N: np.ndarray
  ceilings_N: np.ndarray


def smooth(evidence: Evidence, base: float, slope: float) -> Smoothed:
  """Losses and ceilings at alpha_i = min(base 2**(-slope H_i), 0.9)."""
  alpha_N = smoothing.adaptive_alphas(
    np.asarray(evidence.entropy_N, np.float64), base, slope
  )
  return Smoothed(
    smoothing.smoothed_losses(
      evidence.probability_N, alpha_N, evidence.classes
    ),
    smoothing.ceilings(alpha_N, evidence.classes) + _ROUNDING,
  )


def choose_smoothing(
  evidence: Evidence, description_bits: float, delta: float
) -> tuple[int, int]:
  """Codes (base, slope) of a header that nearly minimise the betting bound.

  By a numerical search on a part of the symbols, then over the codes around.
  """
  count = len(evidence.probability_N)
  cost = bound.cost(description_bits, delta, count)
  every = slice(None, None, max(1, count // _SAMPLE))
  sample = evidence._replace(
    probability_N=evidence.probability_N[every],
    entropy_N=evidence.entropy_N[every],
  )

  def value(base: float, slope: float, slack: float) -> float:
    losses_N, ceilings_N = smooth(sample, 2.0**-base, slope)
    return betting.certify(
      losses_N, cost, ceilings_N=ceilings_N, slacks=(slack,)
    ).value

  def clipped(x: np.ndarray) -> tuple[float, float, float]:
    limits = (headers.BASES[-1] / 16, headers.SLOPES[-1] / 32, 16.0)
    base, slope, slack = np.clip(x, 0, limits)
    return float(base), float(slope), float(slack)

  found = optimize.minimize(
    lambda x: value(*clipped(x)) + np.sum(np.maximum(-x, 0)),
    np.array([4.0, 0.5, 0.5]),
    method='Nelder-Mead',
    options={'xatol': 0.01, 'fatol': 1e-6, 'maxfev': 200},
  )
  base, slope, _ = clipped(found.x)
  return round(base * 16), round(slope * 32)


def certify(
  evidence: Evidence, header: headers.Header, file_bits: int, delta: float
) -> bound.Bound:
  """The main certificate: `betting.Betting`, in bits per byte."""
  return betting_bound(evidence, header.base, header.slope, file_bits, delta)


def betting_bound(
  evidence: Evidence, base: int, slope: int, file_bits: int, delta: float
) -> bound.Bound:
  """`betting.Betting` at codes of smoothing, in bits per byte."""
  rows = smooth(evidence, *headers.smoothing_of(base, slope))
  return in_bytes(
    evidence,
    betting.Betting(delta)(
      rows.losses_N, file_bits, ceilings_N=rows.ceilings_N
    ),
  )


def in_bytes(evidence: Evidence, found: bound.Bound) -> bound.Bound:
  """A bound per symbol as one per byte; its terms in bits likewise."""
  terms = dict(found.terms)
  terms['empirical_risk'] = evidence.in_bytes(terms['empirical_risk'])
  value = evidence.in_bytes(found.value)
  terms['gap'] = value - terms['empirical_risk']
  for name in ('ceiling', 'slack', 'price'):
    if name in terms:
      terms[name] *= evidence.per_byte
  return bound.Bound(value, terms)


@dataclasses.dataclass(frozen=True)
class Ladder:
  """All bounds on one file, from the published one to the main certificate.

  Those of constant alpha take the best of smoothing.ALPHAS and pay 3 bits for
  its index. They are for comparison: that several are looked at is paid for by
  none, so only the main certificate, fixed in advance, is a claim.
  short: only the published bound and the main certificate.
  """

  delta: float = 0.05
  short: bool = False

  def __call__(
    self, evidence: Evidence, header: headers.Header, file_bits: int
  ) -> Mapping[str, bound.Bound]:
    rungs: dict[str, bound.Bound] = {}
    index_bits = file_bits + math.log2(len(smoothing.ALPHAS))
    for alpha in smoothing.ALPHAS:
      rows = smooth(evidence, alpha, 0.0)
      for name, found in self._constant(rows, index_bits, alpha, evidence):
        if name not in rungs or found.value < rungs[name].value:
          rungs[name] = found
    rows = smooth(evidence, *header.smoothing)
    if not self.short:
      rungs['Azuma, alpha by entropy'] = self._tokenwise(
        rows, file_bits, evidence.classes
      )
    rungs['betting, alpha by entropy'] = betting.Betting(self.delta)(
      rows.losses_N, file_bits, ceilings_N=rows.ceilings_N
    )
    return {name: in_bytes(evidence, x) for name, x in rungs.items()}

  def _tokenwise(
    self, rows: Smoothed, bits: float, classes: int
  ) -> bound.Bound:
    alpha_N = classes * np.exp2(_ROUNDING - rows.ceilings_N)
    lows_N = -np.log2(1 - alpha_N * (1 - 1 / classes))
    return azuma.TokenwiseAzuma(self.delta)(
      rows.losses_N,
      bits,
      lows_N=lows_N - _ROUNDING,
      highs_N=rows.ceilings_N,
    )

  def _constant(
    self, rows: Smoothed, bits: float, alpha: float, evidence: Evidence
  ) -> list[tuple[str, bound.Bound]]:
    low, high = smoothing.interval(alpha, evidence.classes)
    # Floats of the loss and of its limits may differ in their last digit.
    limits = {'low': low - 1e-9, 'high': high + 1e-9}
    losses_N = rows.losses_N
    centre = {'centres_N': low, 'reach': high - low + 1e-9}
    delta = self.delta
    published = azuma.Azuma(delta)(losses_N, bits, **limits)
    if self.short:
      return [('Azuma (published)', published)]
    return [
      ('Azuma (published)', published),
      ('Catoni', catoni.Catoni(delta)(losses_N, bits, **limits)),
      (
        'empirical Bernstein',
        bernstein.EmpiricalBernstein(delta, bernstein.RATES[::4])(
          losses_N, bits, **centre
        ),
      ),
      (
        'Freedman',
        bernstein.Freedman(delta, bernstein.RATES[::4])(
          losses_N, bits, **centre
        ),
      ),
      (
        'betting',
        betting.Betting(delta, betting.SLACKS[::4])(
          losses_N, bits, ceilings_N=high + 1e-9
        ),
      ),
    ]


def errors(
  evidence: Evidence, file_bits: int, delta: float
) -> Mapping[str, bound.Bound]:
  """Certified top-1 and top-5 error rates per symbol, before smoothing.

  Both hold at once at confidence 1 - delta; the certificate in bits holds at
  its own.
  """
  return {
    f'top_{k}_error': topk.TopK(k, delta, together=2)(
      evidence.rank_N, file_bits
    )
    for k in (1, 5)
  }


def curve(
  evidence: Evidence,
  header: headers.Header,
  file_bits: int,
  delta: float,
  slack: float,
  points: int = 200,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Symbols, mean loss and bound, in bits per symbol, of growing prefixes.

  At the one slack of the certificate, which pays for its choice.
  """
  losses_N, ceilings_N = smooth(evidence, *header.smoothing)
  bits = file_bits + math.log2(len(betting.SLACKS))
  rule = betting.Curve(delta, slacks=(slack,))
  value_N = rule(losses_N, bits, ceilings_N=ceilings_N)
  count = len(losses_N)
  at = np.unique(np.geomspace(min(1000, count), count, points).astype(int)) - 1
  means_N = np.cumsum(losses_N) / np.arange(1, count + 1)
  return at + 1, means_N[at], value_N[at]
