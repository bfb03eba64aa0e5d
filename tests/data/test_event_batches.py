"""Rows of events: nothing lost, nothing twice, and no label where it hides."""

import dataclasses

import numpy as np
import pytest

from data import event_batches
from data import event_codes
from data import pipeline
from tests.data import event_tables

COLUMNS = event_tables.COLUMNS
SIZES = (1, 7, 3, 12, 5, 5, 2)


def rows_of(corpus, events=5, **how):
  how = event_batches.EventRows(**how)
  return event_batches.Rows(corpus, events * COLUMNS + 1, how)


@pytest.mark.parametrize('context', [0, 2, 4])
def test_every_event_is_new_once_after_its_context(context):
  corpus = event_tables.draw(SIZES)
  rows = rows_of(corpus, context=context)
  seen = np.zeros(corpus.num_events, int)
  starts = np.repeat(corpus.offsets_N1[:-1], SIZES)
  for i in range(len(rows)):
    event_R, document_R, fresh_R = rows.places(i)
    seen[event_R[fresh_R]] += 1
    for place in np.flatnonzero(fresh_R):
      before = (document_R[:place] == document_R[place]).sum()
      event = event_R[place]
      assert before >= min(context, event - starts[event])
      same = event_R[place - before : place + 1]
      np.testing.assert_array_equal(same, np.arange(event - before, event + 1))
  assert (seen == 1).all()
  assert len(rows) <= 2 * -(-sum(SIZES) // (5 - context)) + 1


def test_a_row_holds_the_events_and_what_counts():
  corpus = event_tables.draw(SIZES, unlabelled=0.3)
  rows = rows_of(corpus, mask_all=0.0)
  first = np.array([0, 4, 10])
  for i in range(len(rows)):
    row = {name: x.reshape(-1, COLUMNS) for name, x in rows[i].items()}
    event_R, document_R, _ = rows.places(i)
    for place, event in enumerate(event_R):
      if not document_R[place]:
        assert not row['documents'][place].any()
        assert not row['mask'][place].any()
        continue
      ids = corpus.ids_EC[event] + first
      np.testing.assert_array_equal(row['ids'][place], ids)
      np.testing.assert_array_equal(row['targets'][place], ids)
      np.testing.assert_array_equal(
        row['value'][place], corpus.values_EC[event]
      )
      scored = corpus.scored_E[event]
      known = corpus.ids_EC[event, -1] != event_codes.NULL
      np.testing.assert_array_equal(
        row['mask'][place], [scored, scored, scored and known]
      )
    np.testing.assert_array_equal(row['label'], [[0, 0, 1]] * len(event_R))


def test_hidden_labels_are_targets_only():
  corpus = event_tables.draw(SIZES)
  other = corpus.ids_EC.copy()
  other[:, -1] = 7 - other[:, -1]
  both = [
    rows_of(corpus),
    rows_of(dataclasses.replace(corpus, ids_EC=other)),
  ]
  for i in range(len(both[0])):
    one, two = (rows[i] for rows in both)
    for name in one:
      same = np.array_equal(one[name], two[name], equal_nan=True)
      assert same == (name != 'targets')


def test_labels_are_hidden_and_columns_shuffled_as_often_as_asked():
  corpus = event_tables.draw((5,) * 40)
  how = {'mask_all': 0.25, 'mask_some': 0.5, 'shuffle': 0.8, 'keep_last': 0.4}
  rows = rows_of(corpus, **how)
  rng = np.random.default_rng(0)
  shares, last, places, in_order = [], [], [], []
  for _ in range(20):
    for i in range(len(rows)):
      row = rows.vary(rows[i], rng)
      ids, targets, rank = (
        row[name].reshape(-1, COLUMNS) for name in ('ids', 'targets', 'rank')
      )
      np.testing.assert_array_equal(ids[:, :-1], targets[:, :-1])
      hidden = ids[:, -1] == 10 + event_codes.MASK
      assert (hidden | (ids[:, -1] == targets[:, -1])).all()
      shares.append(hidden.mean())
      np.testing.assert_array_equal(np.sort(rank), [[0, 1, 2]] * 5)
      last.extend(rank[:, -1] == 2)
      in_order.append((rank == [[0, 1, 2]]).all())
      places.extend(rank[rank[:, -1] != 2, 0])
  shares = np.array(shares)
  assert abs(np.mean(last) - (0.2 + 0.8 * (0.4 + 0.6 / 3))) < 0.03
  # An event stays in order with probability 0.4 / 2 + 0.6 / 6.
  assert abs(np.mean(in_order) - (0.2 + 0.8 * 0.3**5)) < 0.05
  assert set(places) == {0, 1, 2}
  # Of five labels, none: 0.375 and a share of the half-hidden rows.
  none = 0.375 + 0.375 * np.mean((1 - np.linspace(0, 1, 1001)) ** 5)
  assert abs(np.mean(shares == 0) - none) < 0.05
  assert abs(np.mean(shares) - (0.25 + 0.375 / 2)) < 0.03


def test_batches_are_pure_functions_of_the_step():
  corpus = event_tables.draw(SIZES)

  def batches(seed):
    return pipeline.batches(
      corpus,
      row_length=5 * COLUMNS,
      batch_size=2,
      seed=seed,
      rows=event_batches.EventRows(shuffle=1.0, mask_all=0.3),
    )

  one, same, other = batches(0), batches(0), batches(1)
  _ = one[3]
  for step in (0, 9):
    for name, x in same[step].items():
      np.testing.assert_array_equal(x, one[step][name])
  assert not np.array_equal(one[0]['rank'], other[0]['rank'])
  # The same row is masked and ordered anew in another epoch.
  assert len({one[i]['rank'].tobytes() for i in range(12)}) == 12


def test_labels_of_entities_are_not_shown():
  corpus = event_tables.draw(SIZES, unlabelled=0.2)
  hidden, shown = event_batches.EventRows(), event_batches.EventRows(mask_all=0)
  assert len(shown(corpus, 5 * COLUMNS)) == len(hidden(corpus, 5 * COLUMNS))
  known = corpus.ids_EC[:, -1] != event_codes.NULL
  of_entity = np.repeat(3 + np.arange(len(SIZES)) % 2, SIZES)
  corpus.ids_EC[known, -1] = of_entity[known]
  with pytest.raises(
    ValueError,
    match=r"'fraud' is the same in all events of every entity.*events_entity",
  ):
    shown(corpus, 5 * COLUMNS)
  assert len(hidden(corpus, 5 * COLUMNS))
  # Where they are all alike they tell nothing, nor where one is enough.
  corpus.ids_EC[known, -1] = 3
  assert len(shown(corpus, 5 * COLUMNS))
  assert len(shown(event_tables.draw((1,) * 9), 5 * COLUMNS))


@pytest.mark.parametrize(
  ('events', 'how', 'message'),
  [
    (0, {}, r'row_length=1 is less than one event of 3'),
    (4, {'context': 4}, r'rows\.context=4 must leave room'),
    (4, {'context': -1}, r'rows\.context=-1 must not be negative'),
    (4, {'mask_some': 1.5}, r'rows\.mask_some=1\.5 is a probability'),
  ],
)
def test_what_cannot_be_is_named(events, how, message):
  with pytest.raises(ValueError, match=message):
    rows_of(event_tables.draw((3,)), events, **how)
