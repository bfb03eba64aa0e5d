"""The pre-norm transformer block that every model here is built from."""

import flax.linen as nn
import jax

from models import attention as attention_lib
from models import linear
from models import pinning
from models import positions


class FeedForward(nn.Module):
  """SwiGLU: W_down(silu(W_gate x) * W_up x) (arXiv 2002.05202)."""

  hidden: int
  dtype: str
  residual_gain: float
  linear: nn.Module = linear.Dense()

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    gate = self.linear.copy(
      name='gate', features=self.hidden, dtype=self.dtype
    )
    up = self.linear.copy(name='up', features=self.hidden, dtype=self.dtype)
    down = self.linear.copy(
      name='down',
      features=x_BTD.shape[-1],
      gain=self.residual_gain,
      dtype=self.dtype,
    )
    return down(nn.silu(gate(x_BTD)) * up(x_BTD))


class Block(nn.Module):
  """x += attention(norm(x)); x += feed_forward(norm(x))."""

  attention: attention_lib.Attention
  feed_forward: FeedForward

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    tokens: attention_lib.Tokens,
    turn: positions.Rotation,
    cache: attention_lib.LayerCache | None,
  ) -> tuple[jax.Array, attention_lib.LayerCache | None]:
    norm = attention_lib.RMSNorm
    mixed, cache = self.attention(
      norm(name='attention_norm')(x_BTD), tokens, turn, cache
    )
    x_BTD = x_BTD + mixed
    hidden = norm(name='feed_forward_norm')(x_BTD)
    x_BTD = pinning.pin_batch(x_BTD + self.feed_forward(hidden))
    self.sow('intermediates', 'output', x_BTD)
    return x_BTD, cache
