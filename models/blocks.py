"""The pre-norm transformer block that every model here is built from."""

import functools

import flax.linen as nn
import jax

from models import attention as attention_lib
from models import layer_cache
from models import linear
from models import masks
from models import pinning
from models import positions


class FeedForward(nn.Module):
  """SwiGLU: W_down(silu(W_gate x) * W_up x) (arXiv 2002.05202).

  A prototype; the model sets its fields. residual_gain: of W_down's initial
  deviation.
  """

  hidden: int = 0
  dtype: str = 'float32'
  residual_gain: float = 0.0
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
  """x += attention(norm(x)); x += feed_forward(norm(x)).

  epsilon: of the norms.
  """

  attention: attention_lib.Attention
  feed_forward: nn.Module
  epsilon: float = 1e-5

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    tokens: masks.Tokens,
    turn: positions.Rotation | None,
    cache: layer_cache.Cache | None,
  ) -> tuple[jax.Array, layer_cache.Cache | None]:
    norm = functools.partial(attention_lib.RMSNorm, self.epsilon)
    x_BTD = pinning.pin_tokens(x_BTD)
    mixed, cache = self.attention(
      norm(name='attention_norm')(x_BTD), tokens, turn, cache
    )
    x_BTD = x_BTD + mixed
    hidden = norm(name='feed_forward_norm')(x_BTD)
    x_BTD = pinning.pin_tokens(x_BTD + self.feed_forward(hidden))
    self.sow('intermediates', 'output', x_BTD)
    return x_BTD, cache
