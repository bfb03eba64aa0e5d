"""The last column of an event, judged by how surprising the others were.

Whether an event is fraudulent shows in columns that are unlikely for its
entity, and in such columns of the events before. A model of all columns knows
how likely each was: here these probabilities are inputs. They are what the
exact filter of a hidden regime divides by, and what a model of the label alone
has to learn from few positive examples.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import attention
from models import blocks
from models import linear
from models import masks
from models import stacks

_MOST_NATS = 20.0


class Judge(nn.Module):
  """Logits of the last column from the probabilities of all others.

  stack: transformer over events, whose linear and dtype are set.
  hidden: of the feed-forward layer before it.
  alone: whether nothing else learns from the last column: these are its only
    logits, and no gradient flows into what they are read from. Against
    overfitting where the column has few examples of one of its values.
  """

  stack: stacks.Stack
  hidden: int = 128
  alone: bool = False
  norm_epsilon: float = 1e-5
  linear: Any = linear.Dense()
  dtype: str = 'float32'

  def init_cache(self, batch_size: int, events: int) -> Any:
    """Empty caches for up to so many events per row."""
    stack = self.stack.copy(parent=None, dtype=self.dtype)
    return stack.init_cache(batch_size, events)

  @nn.compact
  def __call__(
    self,
    log_p_BEJ: jax.Array,
    seen_BEJ: jax.Array,
    read_BED: jax.Array,
    x_BEF: jax.Array,
    tokens: masks.Tokens,
    caches: Any,
    *,
    features: int,
  ) -> tuple[jax.Array, Any]:
    """Logits [B, E, features] of the last column, and the extended caches.

    log_p_BEJ: of the other columns' cells, no gradient flows through them.
    seen_BEJ: which of them are read before the last column. read_BED: sum of
    the embeddings of those, and of what the event before had left; x_BEF: what
    the model itself knows before the last column.
    """
    nats_BEJ = jnp.clip(-jax.lax.stop_gradient(log_p_BEJ), 0.0, _MOST_NATS)
    nats_BEJ = jnp.where(seen_BEJ, nats_BEJ, 0.0)
    surprise_BEJ = jnp.concatenate(
      [nats_BEJ / 4, jnp.where(seen_BEJ, jnp.exp(-nats_BEJ), 0.0)], axis=-1
    ).astype(self.dtype)
    feed = linear.of_role(self.linear, 'feed_forward')
    if self.alone:
      read_BED, x_BEF = jax.lax.stop_gradient((read_BED, x_BEF))

    def read(name: str, x: jax.Array) -> jax.Array:
      layer = feed.copy(
        name=name, features=self.stack.width, dtype=self.dtype
      )
      return layer(x)

    def norm(name: str, x: jax.Array) -> jax.Array:
      return attention.RMSNorm(self.norm_epsilon, name=name)(x)

    x_BED = (
      read('surprise', surprise_BEJ)
      + read('event', norm('event_norm', read_BED))
      + read('known', x_BEF)
    )
    layer = blocks.FeedForward(
      hidden=self.hidden, dtype=self.dtype, linear=feed, name='mix'
    )
    x_BED += layer(norm('mix_norm', x_BED))
    stack = self.stack.copy(
      name='history', linear=self.linear, dtype=self.dtype
    )
    x_BED, caches = stack(x_BED, tokens, caches)
    head = linear.of_role(self.linear, 'head').copy(
      name='head', features=features, dtype=self.dtype
    )
    logits_BEV = head(norm('final_norm', x_BED))
    return logits_BEV.astype(jnp.float32), caches
