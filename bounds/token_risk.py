"""The certificate of a token model whose risk is estimated from some tokens."""

import math
from typing import NamedTuple

import numpy as np

from bounds import bound
from bounds import header as headers
from bounds import smoothing
from bounds import subsample

# Any of the codes of a header's base may be chosen by the draw.
_CHOICE_BITS = math.log2(len(headers.BASES))


class Draw(NamedTuple):
  """Tokens of a stream that were drawn without replacement.

  probability_n: of each drawn token; tokens: of the stream; classes: V.
  """

  probability_n: np.ndarray
  tokens: int
  classes: int


def choose(draw: Draw, file_bits: int, delta: float) -> int:
  """The header's code of alpha for which `certify` says least."""
  codes = headers.BASES[::4]
  return min(
    codes, key=lambda code: certify(draw, code, file_bits, delta).value
  )


def certify(draw: Draw, code: int, file_bits: int, delta: float) -> bound.Bound:
  """`subsample.SampledBetting`, in bits per token, at alpha = 2**(-code/16).

  delta is split between the stream and the draw as it says there; that the
  draw chose alpha is paid for by the draw, and by the file for the stream.
  """
  losses_n, low, ceiling = _losses(draw, code)
  return subsample.SampledBetting(delta)(
    losses_n,
    file_bits,
    stream_length=draw.tokens,
    low=low,
    ceiling=ceiling,
    choice_bits=_CHOICE_BITS,
  )


def published(
  draw: Draw, code: int, file_bits: int, delta: float
) -> bound.Bound:
  """The bound of arXiv 2407.18158 at the same alpha, for comparison."""
  losses_n, low, ceiling = _losses(draw, code)
  return subsample.SampledAzuma(delta, without_replacement=True)(
    losses_n,
    file_bits,
    stream_length=draw.tokens,
    low=low,
    high=ceiling,
    choice_bits=_CHOICE_BITS,
  )


def _losses(draw: Draw, code: int) -> tuple[np.ndarray, float, float]:
  """Losses, and between what every possible one lies."""
  alpha = min(headers.smoothing_of(code, 0)[0], 0.9)
  losses_n = smoothing.smoothed_losses(draw.probability_n, alpha, draw.classes)
  low, ceiling = smoothing.interval(alpha, draw.classes)
  # A probability in float32 may exceed 1 by its last digit.
  return losses_n, low - 1e-5, ceiling + 1e-9
