"""How structured layers and attention run: by tokens, sizes and backend.

Layers were measured on two cores of an x86 CPU at widths of 64 to 1024. Tiles
of tokens, one after the other, were slower there than all at once, also where
what is between two cores is larger than the caches: XLA fuses the slices of a
loop into permutations, which makes these slow.
"""

import jax

# Tokens below which a batch of small products is faster tokens first.
_FEW = 32
# Tokens from which the cores' traffic is nothing beside that of activations.
_MANY = 1024
# Tokens of a row from which attention is one kernel: below, logits are few.
_LONG = 256
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


def tiles_in_turn() -> bool:
  """Whether tiles of a mixture run one after the other, not as one batch.

  Then those without tokens cost nothing, and cores are read where they are
  instead of being copied for every tile. Accelerators need the batch, and so
  does a mesh, whose devices share it.
  """
  return jax.default_backend() == 'cpu' and _is_one_device()


def fuses(tokens: int) -> bool:
  """Whether two block cores are worth one kernel (models.fused_structured).

  It needs a GPU of its own, for the partitioner cannot cut it, and enough
  tokens to read the block-diagonal tiles for; no measurement.
  """
  is_gpu = jax.default_backend() == 'gpu'
  return is_gpu and tokens >= _MANY and _is_one_device()


def fuses_attention(length: int) -> bool:
  """Whether rows of a length are worth one kernel (models.fused_window).

  It is for GPUs; no measurement.
  """
  return jax.default_backend() == 'gpu' and length >= _LONG


def decodes_faster_dense(saved: float) -> bool:
  """Whether one token is read faster by a dense layer.

  saved: weights that the structured layer has less, on average. On a CPU,
  where time goes with the weights that are read, it is not slower from width
  64 on.
  """
  return saved <= (0 if jax.default_backend() == 'cpu' else _MERGED)


def _is_one_device() -> bool:
  return jax.sharding.get_abstract_mesh().size <= 1
