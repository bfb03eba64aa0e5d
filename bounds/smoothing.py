"""Mixing a prediction with the uniform one, which makes its losses bounded.

q = (1 - alpha) p + alpha / V over V symbols. Section 3.1 of arXiv 2312.17173.
"""

import math

import numpy as np

# Swept by the published code: an index into it costs 3 bits.
ALPHAS = (1e-4, 1e-3, 5e-3, 0.01, 0.05, 0.1, 0.25, 0.5)


def smoothed_losses(
  probability_N: np.ndarray, alpha: np.ndarray | float, vocabulary: int
) -> np.ndarray:
  """Bits of symbols to which the predictor gave these probabilities."""
  probability_N = np.asarray(probability_N, np.float64)
  alpha = _check(alpha, vocabulary)
  return -np.log2((1 - alpha) * probability_N + alpha / vocabulary)


def ceilings(alpha: np.ndarray | float, vocabulary: int) -> np.ndarray:
  """The largest loss, in bits: log2(V / alpha)."""
  return np.log2(vocabulary / _check(alpha, vocabulary))


def interval(alpha: float, vocabulary: int) -> tuple[float, float]:
  """Least and largest loss, in bits; their distance is log2(1+(1-a)V/a)."""
  alpha = float(_check(alpha, vocabulary))
  low = -math.log2(1 - alpha + alpha / vocabulary)
  return low, math.log2(vocabulary / alpha)


def adaptive_alphas(
  entropy_N: np.ndarray, base: float, slope: float
) -> np.ndarray:
  """alpha_i = min(base 2**(-slope H_i), 0.9) for predictive entropy H_i, bits.

  Predictable, for H_i is known before symbol i. A bound that needs a constant
  interval must take the smallest alpha possible: base 2**(-slope log2 V).
  """
  return np.minimum(base * np.exp2(-slope * np.asarray(entropy_N)), 0.9)


def _check(alpha: np.ndarray | float, vocabulary: int) -> np.ndarray:
  alpha = np.asarray(alpha, np.float64)
  if not ((alpha > 0) & (alpha <= 1)).all():
    raise ValueError(
      f'alpha from {alpha.min()} to {alpha.max()} must lie in (0, 1]; the'
      f' published choices are {ALPHAS}'
    )
  if vocabulary < 2:
    raise ValueError(f'vocabulary={vocabulary} must be at least 2')
  return alpha
