"""How structured layers run: by tokens, sizes and backend.

Measured on two cores of an x86 CPU at widths of 64 to 1024. Tiles of tokens,
one after the other, were slower there than all at once, also where what is
between two cores is larger than the caches.
"""

import jax

# Tokens below which a batch of small products is faster tokens first.
_FEW = 32
# Weights per layer that a dense one may have more and still be faster for one
# token. On accelerators the time that three more kernels take to start, by
# bandwidth; this number is no measurement.
_MERGED = 1_000_000


def tokens_last(tokens: int) -> bool:
  """Whether products with blocks take tokens last: core_chain.steps.

  On a CPU two times faster for 8 tokens at width 1024 if first, and 1.4 to 1.9
  times for 64 if last; accelerators take the form of fewer copies.
  """
  return jax.default_backend() != 'cpu' or tokens >= _FEW


def decodes_faster_dense(saved: float) -> bool:
  """Whether one token is read faster by a dense layer.

  saved: weights that the structured layer has less, on average. On a CPU,
  where time goes with the weights that are read, it is not slower from width
  64 on.
  """
  return saved <= (0 if jax.default_backend() == 'cpu' else _MERGED)
