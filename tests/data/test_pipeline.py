"""Batches are pure functions of the step, whoever asks for them."""

import itertools

import numpy as np
import pytest

from data import packing
from data import pipeline
from data import sources
from data import text


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pipeline')
  rng = np.random.default_rng(0)
  for index in range(20):
    length = int(rng.integers(0, 200))
    (folder / f'{index}.txt').write_bytes(rng.bytes(length))
  source = sources.TextFiles(str(folder / '*.txt'))
  return text.Text(source, str(folder / 'cache')).open('train')


def make(corpus, **changes):
  options = {'row_length': 16, 'batch_size': 8, 'seed': 3, **changes}
  return pipeline.batches(corpus, **options)


def row_keys(batch):
  return [row.tobytes() for row in batch['ids']]


def test_batch_shapes(corpus):
  batch = make(corpus)[0]
  assert sorted(batch) == ['documents', 'ids', 'mask', 'targets']
  assert {v.shape for v in batch.values()} == {(8, 16)}


def test_each_epoch_visits_each_row_once_in_a_new_order(corpus):
  rows = packing.Rows(corpus, 16)
  expected = sorted(rows[i]['ids'].tobytes() for i in range(len(rows)))
  dataset = make(corpus, batch_size=1)
  epochs = [
    [row_keys(dataset[e * len(rows) + i])[0] for i in range(len(rows))]
    for e in range(2)
  ]
  assert sorted(epochs[0]) == sorted(epochs[1]) == expected
  assert epochs[0] != epochs[1]
  assert epochs[0] != [rows[i]['ids'].tobytes() for i in range(len(rows))]


def test_seed_decides_the_order(corpus):
  assert row_keys(make(corpus)[0]) == row_keys(make(corpus)[0])
  assert row_keys(make(corpus)[0]) != row_keys(make(corpus, seed=4)[0])


@pytest.mark.parametrize('process_count', [2, 4])
def test_processes_share_the_batch_of_one(corpus, process_count):
  whole = make(corpus)
  parts = [
    make(corpus, process_index=p, process_count=process_count)
    for p in range(process_count)
  ]
  for step in range(60):  # More than two epochs.
    shares = [row_keys(part[step]) for part in parts]
    assert all(len(share) == 8 // process_count for share in shares)
    together = sorted(itertools.chain.from_iterable(shares))
    assert together == sorted(row_keys(whole[step]))


def test_batches_of_one_row_are_iterated(corpus):
  dataset = make(corpus, batch_size=1)
  first = next(pipeline.iterate(dataset))
  np.testing.assert_array_equal(first['ids'], dataset[0]['ids'])


@pytest.mark.parametrize('start', [0, 1, 7, 40])
def test_resume_is_exact_also_in_the_middle_of_an_epoch(corpus, start):
  dataset = make(corpus)
  through = list(itertools.islice(pipeline.iterate(dataset), start + 5))
  resumed = itertools.islice(pipeline.iterate(dataset, start), 5)
  for step, batch in enumerate(resumed, start):
    for key in batch:
      np.testing.assert_array_equal(batch[key], through[step][key])
      np.testing.assert_array_equal(batch[key], dataset[step][key])


def test_corpus_shorter_than_a_row_and_a_batch(corpus):
  dataset = make(corpus, row_length=100_000)
  ids = dataset[2]['ids']
  assert ids.shape == (8, 100_000)
  assert np.all(ids == ids[0])


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'batch_size': 6, 'process_count': 4}, 'multiple of 4'),
    ({'batch_size': 0}, 'batch_size=0'),
    ({'process_index': 1}, 'process_index=1'),
    ({'seed': -1}, 'seed=-1'),
  ],
)
def test_bad_arguments_are_named(corpus, changes, says):
  with pytest.raises(ValueError, match=says):
    make(corpus, **changes)
