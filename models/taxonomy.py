"""How the cost and rank of einsum layers grow with their width.

The taxonomy of Searching for Efficient Linear Layers over a Continuous Space
of Structured Matrices (arXiv 2410.02117, section 3).
"""

from typing import NamedTuple


class Taxonomy(NamedTuple):
  """Exponents of a square layer in its width d.

  sharing: multiply-adds per parameter, d^sharing (omega).
  rank: d^rank (psi).
  compute: multiply-adds per token, d^(1 + compute) (nu).
  """

  sharing: float
  rank: float
  compute: float


def taxonomy(theta: tuple[float, ...]) -> Taxonomy:
  """Exponents of the einsum `theta` in its cheaper order of core_chain."""
  alpha, beta, gamma, delta, epsilon, phi, rho = theta
  cheaper = max(min(alpha, epsilon), min(beta, delta))
  return Taxonomy(
    sharing=min(alpha + delta, beta + epsilon) - cheaper,
    rank=min(1.0, gamma + phi + rho + min(alpha, delta) + min(beta, epsilon)),
    compute=1 + rho - cheaper,
  )
