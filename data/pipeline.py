"""Batches of packed rows as pure functions of the step."""

from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np

from data import packing
from data import text

# Grain's own default keeps 500 batches.
_READING = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def batches(
  corpus: text.Corpus,
  *,
  row_length: int,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  stored: Mapping[str, np.ndarray] | None = None,
  rows: Any = None,
) -> grain.MapDataset:
  """Endless batches of rows, shuffled anew in every epoch.

  Element i is this process's share, batch_size / process_count rows, of the
  i-th batch of `batch_size` rows: the same rows for every process count, and
  nothing else to remember than i. Rows that do not fill a batch at the end of
  an epoch share it with the first of the next one.

  rows: makes the rows of (corpus, row_length, stored), by default packing.Rows.
    They may have `vary(row, rng)`, which is applied whenever a row is read, and
    `shuffled` = False.
  """
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f'batch_size={batch_size} does not divide over {process_count}'
      f' processes; use a multiple of {process_count}.'
    )
  if not 0 <= process_index < process_count:
    raise ValueError(
      f'process_index={process_index} must be in [0, {process_count}).'
    )
  if seed < 0:
    raise ValueError(f'seed={seed} must be >= 0.')
  rows = (rows or packing.Rows)(corpus, row_length, stored)
  dataset = grain.MapDataset.source(rows).seed(seed)
  if getattr(rows, 'shuffled', True):
    dataset = dataset.shuffle()
  dataset = dataset.repeat()
  if hasattr(rows, 'vary'):
    dataset = dataset.random_map(rows.vary)
  shard = dataset[process_index::process_count]
  # There is no remainder; without it, Grain overflows for batches of one.
  return shard.batch(batch_size // process_count, drop_remainder=True)


def iterate(dataset: grain.MapDataset, start: int = 0) -> Iterator[Any]:
  """Elements start, start + 1, ..., made ahead of time by two threads."""
  iterator = iter(dataset.to_iter_dataset(_READING))
  grain.experimental.set_next_index(iterator, start)
  return iterator
