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
  """A model's forward pass: (params, ids, documents, **stored) -> logits.

  Or logits and counts of the batch by name, which are reported per target.
  """

  def __call__(
    self,
    params: Any,
    ids_BT: jax.Array,
    documents_BT: jax.Array,
    **stored: jax.Array,
  ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]: ...


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
  balance: weight of the count `balance` over the count `balanced`, the mean
    routing loss of models.mixture; 0.01 in arXiv 2410.02117.
  """

  z_loss: float = 0.0
  balance: float = 0.0

  def __call__(self, apply: Apply, params: Any, batch: Batch) -> Sums:
    stored = {name: x for name, x in batch.items() if name not in _ROW}
    found = apply(params, batch['ids'], batch['documents'], **stored)
    logits_BTV, counts = found if isinstance(found, tuple) else (found, {})
    logits_BTV = logits_BTV.astype(jnp.float32)
    counts = {name: x.astype(jnp.float32) for name, x in counts.items()}
    nats_BT = optax.losses.softmax_cross_entropy_with_integer_labels(
      logits_BTV, batch['targets']
    )
    mask_BT = batch['mask']
    nats = jnp.sum(nats_BT * mask_BT)
    loss = nats
    if self.z_loss:
      log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
      loss += self.z_loss * jnp.sum(jnp.square(log_z_BT) * mask_BT)
    count = jnp.sum(mask_BT)
    if self.balance:
      if 'balance' not in counts:
        raise ValueError(
          f'objective.balance={self.balance} needs a model of models.mixture,'
          ' which counts its routing loss; set objective.balance=0.'
        )
      counts['balance'] *= count / counts.pop('balanced')
      loss += self.balance * counts['balance']
    return Sums(loss, count, {'nats': nats} | counts)
