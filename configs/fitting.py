"""Whether the parts of a config fit, and what its data has to learn first."""

import dataclasses
from typing import Any

import jax
from jax.experimental import multihost_utils

from configs import base


def check(config: base.Config) -> None:
  """ValueError if a row or an id is more than the model accepts."""
  rows = {'row_length': config.row_length}
  for number, evaluator in enumerate(config.evals):
    rows[f'evals.{number}.window'] = getattr(evaluator, 'window', 1)
  longest = config.model.max_length
  for name, length in rows.items():
    if longest is not None and length > longest:
      raise ValueError(
        f'{name}={length} exceeds model.max_length={longest}; lower the first'
        ' or raise the second.'
      )
  ids = config.data.codec.vocabulary_size
  readers = {'model': config.model}
  recall = getattr(config.model, 'recall', None)
  if recall is not None and recall.sizes:
    readers['model.recall'] = recall
  for name, reader in readers.items():
    known = getattr(reader, 'vocabulary_size', ids)
    if known < ids:
      raise ValueError(
        f'{name}.vocabulary_size={known} is below'
        f' data.codec.vocabulary_size={ids}, the ids that it is to read; raise'
        ' it to that.'
      )


def with_codec(
  config: base.Config, stored: dict[str, Any] | None
) -> base.Config:
  """Prepares the data, process 0 first; the config with its codec trained.

  stored: JSON of the run that is resumed, which keeps what it has learned.
  """
  data = base.from_json(stored).data if stored else config.data
  if jax.process_index() == 0:
    data.trained()
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('data prepared')
  return dataclasses.replace(config, data=data.trained())
