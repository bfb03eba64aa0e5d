"""Our rules where transformers expects a logits processor, for comparisons.

Its generate() then draws by itself, and the order of rules is the chain's.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from samplers import chain
from samplers import history

# Texts are padded to multiples of it, so that few lengths are compiled.
_BLOCK = 64


class Processor:
  """(input_ids, scores) -> scores, for tensors of PyTorch or for arrays.

  What the first call brings is the prompt. Rules that leave something to
  chance use the keys of the seed, fold_in(key, number of the token).
  """

  def __init__(self, sampler: chain.Chain, seed: int = 0) -> None:
    self._sampler = sampler
    self._seed = seed
    self._prompt_length: int | None = None

  def __call__(self, input_ids: Any, scores: Any) -> Any:
    """Scores [B, V] of the same kind; ValueError where they are no law."""
    ids_BT = np.asarray(input_ids, np.int32)
    logits_BV = np.asarray(scores, np.float32)
    bad_B = ~np.isfinite(logits_BV.max(axis=1))
    if bad_B.any():
      raise ValueError(
        f'row {int(np.argmax(bad_B))}: the scores are NaN, reach inf or are all'
        ' -inf, which is no distribution; check what comes before'
      )
    batch_size, length = ids_BT.shape
    if self._prompt_length is None:
      self._prompt_length = length
    changed_BV = np.array(
      _transform(
        self._sampler,
        jax.random.split(jax.random.key(self._seed), batch_size),
        jnp.asarray(np.pad(ids_BT, ((0, 0), (0, -length % _BLOCK)))),
        jnp.asarray(logits_BV),
        self._prompt_length,
        length,
      )
    )
    if isinstance(scores, np.ndarray | jax.Array):
      return changed_BV
    # A tensor makes its own kind: PyTorch is not needed here.
    return scores.new_tensor(changed_BV)


def to_hf_processor(sampler: chain.Chain, seed: int = 0) -> Processor:
  """One item of the logits_processor of transformers' generate().

  It serves one generate(). ValueError names a rule that would have to know
  what its tokens were drawn from, which a processor is not told.
  """
  for rule in sampler.rules:
    if getattr(rule, 'needs_drawn_logits', False):
      raise ValueError(
        f'{type(rule).__name__} must know what its tokens were drawn from,'
        ' which a logits processor is not told; drop it'
      )
  return Processor(sampler, seed)


@jax.jit
def _transform(
  sampler: chain.Chain,
  keys_B: jax.Array,
  ids_BT: jax.Array,
  logits_BV: jax.Array,
  prompt_length: int | jax.Array,
  length: int | jax.Array,
) -> jax.Array:
  batch_size, room = ids_BT.shape
  lengths_B = jnp.full(batch_size, prompt_length)
  is_prompt_1T = jnp.arange(room)[None] < prompt_length
  prompt_BT = jnp.where(is_prompt_1T, ids_BT, 0)
  prompt = history.Prompt(prompt_BT, lengths_B, room, logits_BV.shape[1])

  def remember(place: jax.Array, memory: Any) -> Any:
    token_B = jax.lax.dynamic_index_in_dim(ids_BT, place, 1, keepdims=False)
    active_B = jnp.ones(batch_size, bool)
    return sampler.remember(memory, history.Drawn(token_B, active_B, logits_BV))

  memory = jax.lax.fori_loop(
    prompt_length, length, remember, sampler.init(prompt)
  )
  fold = functools.partial(jax.random.fold_in, data=length - prompt_length)
  return sampler.transform(jax.vmap(fold)(keys_B), logits_BV, memory)
