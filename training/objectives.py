"""What training minimises: sums over a batch, so that batches can be split."""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

Batch = dict[str, jax.Array]

# What every batch holds; the rest is for the model.
_ROW = ('ids', 'targets', 'documents', 'mask')


class Apply(Protocol):
  """A model's forward pass: (params, ids, documents, **stored) -> logits."""

  def __call__(
    self,
    params: Any,
    ids_BT: jax.Array,
    documents_BT: jax.Array,
    **stored: jax.Array,
  ) -> jax.Array: ...


class Sums(NamedTuple):
  """Totals of one batch: `loss` and the entries of `metrics` over `count`."""

  loss: jax.Array
  count: jax.Array
  metrics: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class NextToken:
  """Cross-entropy in nats of the next token, summed over unmasked targets.

  z_loss: weight of (log Z)^2, which keeps logits from drifting
    (PaLM, arXiv 2204.02311, section 5); 0 switches it off.
  """

  z_loss: float = 0.0

  def __call__(self, apply: Apply, params: Any, batch: Batch) -> Sums:
    stored = {name: x for name, x in batch.items() if name not in _ROW}
    logits_BTV = apply(params, batch['ids'], batch['documents'], **stored)
    logits_BTV = logits_BTV.astype(jnp.float32)
    nats_BT = optax.losses.softmax_cross_entropy_with_integer_labels(
      logits_BTV, batch['targets']
    )
    mask_BT = batch['mask']
    nats = jnp.sum(nats_BT * mask_BT)
    loss = nats
    if self.z_loss:
      log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
      loss += self.z_loss * jnp.sum(jnp.square(log_z_BT) * mask_BT)
    return Sums(loss, jnp.sum(mask_BT), {'nats': nats})
