"""Whether the parts of a config fit, and what its data has to learn first."""

import dataclasses
from typing import Any

from configs import base
from models import event_lm
from models import unlimited
from training import processes


def check(config: base.Config) -> None:
  """ValueError if a row or an id is more than the model accepts.

  Of tables the model takes the number of ids from the data.
  """
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
  unlimited.check(config.model)
  if isinstance(config.model, event_lm.EventLM):
    return
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

  The model of a table takes its columns from the data, and so does the one
  that its learning rate was chosen for.

  stored: JSON of the run that is resumed, which keeps what it has learned.
  """
  data = base.from_json(stored).data if stored else config.data
  processes.first('prepare the data', data.trained)
  data = data.trained()
  if not isinstance(config.model, event_lm.EventLM):
    return dataclasses.replace(config, data=data)
  columns = data.tokenizer.columns
  return _with_columns(
    dataclasses.replace(config, data=data),
    tuple(column.size for column in columns),
    tuple(i for i, column in enumerate(columns) if column.is_binned),
  )


def as_given(config: base.Config) -> base.Config:
  """The config without what was learned from data, no choice of the user."""
  config = dataclasses.replace(config, data=config.data.untrained())
  if isinstance(config.model, event_lm.EventLM):
    config = _with_columns(config, (), ())
  return config


def _with_columns(
  config: base.Config, columns: tuple[int, ...], numbers: tuple[int, ...]
) -> base.Config:
  """The config with these columns in its model and in optimizer.base."""
  model = config.model.clone(columns=columns, numbers=numbers)
  optimizer = config.optimizer
  if isinstance(optimizer.base, event_lm.EventLM):
    optimizer = dataclasses.replace(
      optimizer, base=optimizer.base.clone(columns=columns, numbers=numbers)
    )
  return dataclasses.replace(config, model=model, optimizer=optimizer)
