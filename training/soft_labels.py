"""The objective of classes that are shared and smoothed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from training import objectives


@dataclasses.dataclass(frozen=True)
class SoftLabels:
  """Cross-entropy in nats of a mixture of two classes, summed over rows.

  A batch has `targets` and perhaps `other`, and then `share` of the first of
  these two classes, as data.images.Rows. Reports the nats of `targets` alone,
  too, and `error`, how many of them are not the most likely class.

  smoothing: part of the probability that is spread over all classes.
  """

  smoothing: float = 0.3

  def __post_init__(self) -> None:
    if not 0 <= self.smoothing < 1:
      raise ValueError(
        f'objective.smoothing={self.smoothing} must be in [0, 1), as 0.3.'
      )

  def __call__(
    self, apply: objectives.Apply, params: Any, batch: objectives.Batch
  ) -> objectives.Sums:
    found = apply(params, batch['ids'], batch['documents'])
    logits_BTV, counts = found if isinstance(found, tuple) else (found, {})
    log_p_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32))

    def nats_of(classes_BT: jax.Array) -> jax.Array:
      found = jnp.take_along_axis(log_p_BTV, classes_BT[..., None], -1)
      return -found[..., 0]

    hard_BT = nats_BT = nats_of(batch['targets'])
    if 'other' in batch:
      share_BT = batch['share']
      hard_BT = share_BT * nats_BT + (1 - share_BT) * nats_of(batch['other'])
    even_BT = -jnp.mean(log_p_BTV, axis=-1)
    soft_BT = (1 - self.smoothing) * hard_BT + self.smoothing * even_BT
    wrong_BT = jnp.argmax(log_p_BTV, axis=-1) != batch['targets']
    mask_BT = batch['mask']
    sums = {
      name: jnp.sum(x_BT * mask_BT)
      for name, x_BT in (('nats', nats_BT), ('error', wrong_BT))
    }
    return objectives.Sums(
      jnp.sum(soft_BT * mask_BT), jnp.sum(mask_BT), sums | counts
    )
