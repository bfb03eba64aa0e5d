"""XTC, Exclude Top Choices: now and then drops all probable tokens but one.

As in llama.cpp (p-e-w 2024).
"""

import dataclasses

import jax
import jax.numpy as jnp

from samplers import entropy
from samplers import knobs


@knobs.register
@dataclasses.dataclass(frozen=True)
class Xtc:
  """With a probability, keeps of the tokens with p >= threshold the least.

  Nothing goes where fewer than two tokens reach the threshold, so that one
  above 0.5 turns the rule off, as does probability 0.

  probability: of excluding in a step, from a stream of the row's own.
  threshold: what a token must reach to be a top choice.
  exempt: ids that always stay, as those of a newline or the end.
  """

  probability: knobs.Number = 0.0
  threshold: knobs.Number = 0.1
  exempt: knobs.Ids = ()

  truncates = True

  def __post_init__(self) -> None:
    for field in ('probability', 'threshold'):
      knobs.settle(
        self,
        field,
        float,
        f'xtc {field}',
        'must lie in [0, 1]; probability=0 turns it off',
        lambda p: (p >= 0) & (p <= 1),
      )
    knobs.settle_ids(self, 'exempt', 'xtc exempt')

  def toss(self, keys_B: jax.Array) -> jax.Array:
    """[B], True where this step excludes."""
    uniform_B = jax.vmap(jax.random.uniform)(keys_B)
    return uniform_B < knobs.column(self.probability)[:, 0]

  def __call__(self, logits_BV: jax.Array, excludes_B: jax.Array) -> jax.Array:
    logits_BV = logits_BV.astype(jnp.float32)
    # A draw of it may start from -inf, which no threshold reaches but 0.
    is_top_BV = entropy.law(logits_BV).p_BV >= knobs.column(self.threshold)
    is_top_BV &= logits_BV > -jnp.inf
    least_B1 = jnp.min(
      jnp.where(is_top_BV, logits_BV, jnp.inf), axis=1, keepdims=True
    )
    exempt_BV = knobs.is_listed(self.exempt, *logits_BV.shape)
    goes_BV = is_top_BV & (logits_BV > least_B1) & ~exempt_BV
    return jnp.where(excludes_B[:, None] & goes_BV, -jnp.inf, logits_BV)
