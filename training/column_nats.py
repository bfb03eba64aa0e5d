"""The objective of models that give the log-probability of every target."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from training import objectives

# What the objective itself reads; the rest of a batch is for the model.
_OWN = ('ids', 'targets', 'documents', 'mask', 'label')


@dataclasses.dataclass(frozen=True)
class ColumnNats:
  """-log p in nats of every cell of a table, summed over unmasked cells.

  label_weight: how often a cell of the label column counts, others once. The
    metric `nats` counts all once, `label_nats` is the labels' part of it.
  """

  label_weight: float = 1.0

  def __post_init__(self) -> None:
    if self.label_weight < 0:
      raise ValueError(
        f'objective.label_weight={self.label_weight} must not be negative; 1'
        ' counts labels as other columns, 0 leaves them out.'
      )

  def __call__(
    self, apply: objectives.Apply, params: Any, batch: objectives.Batch
  ) -> objectives.Sums:
    stored = {name: x for name, x in batch.items() if name not in _OWN}
    found = apply(
      params,
      batch['ids'],
      batch['documents'],
      target=batch['targets'],
      **stored,
    )
    log_p_BT, counts = found if isinstance(found, tuple) else (found, {})
    mask_BT = batch['mask']
    # Cells that do not count may be impossible, and 0 times infinity is none.
    nats_BT = jnp.where(mask_BT > 0, -log_p_BT, 0.0)
    labels_BT = nats_BT * batch['label']
    nats, label_nats = jnp.sum(nats_BT), jnp.sum(labels_BT)
    loss = nats + (self.label_weight - 1.0) * label_nats
    metrics = {'nats': nats, 'label_nats': label_nats}
    return objectives.Sums(loss, jnp.sum(mask_BT), metrics | counts)
