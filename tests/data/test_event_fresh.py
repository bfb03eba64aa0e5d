"""Rows of users that never come twice."""

import numpy as np
import pytest

from data import event_batches
from data import event_fresh
from data import event_source
from data import pipeline
from tests.data import event_tables


def test_every_row_is_a_new_user(tmp_path):
  stream = event_source.CardStream(
    users=5, events=3, bins=4, directory=str(tmp_path)
  )
  corpus = stream.open('train')
  columns = len(corpus.tokenizer.columns)
  how = event_fresh.FreshRows()
  batches = pipeline.batches(
    corpus, row_length=3 * columns, batch_size=256, seed=0, rows=how
  )
  # Out of order and far on, as after a stop.
  seen = {i: batches[i] for i in (3, 0, 1, 2)}
  plain = event_batches.EventRows()
  for block in (0, 1):
    expected = plain(stream.fresh(block * 512, 512), 3 * columns)
    for name in ('ids', 'targets', 'value'):
      rows = np.stack([expected[i][name] for i in range(512)])
      both = [seen[2 * block + half][name] for half in (0, 1)]
      np.testing.assert_array_equal(np.concatenate(both), rows)
  users = np.concatenate([seen[i]['value'] for i in range(4)])
  amounts = np.nan_to_num(users.reshape(-1, 3 * columns))
  assert len(np.unique(amounts, axis=0)) == 4 * 256


def test_files_have_an_end():
  with pytest.raises(ValueError, match=r'needs data=event_source\.CardStream'):
    event_fresh.FreshRows()(event_tables.draw((3,)), 9)
