"""Numbers beside a corpus: computed once, in order, with enough context."""

import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import packing
from data import sources
from data import text
from tests import several
from tests import tiny_runs
from training import annotations


@pytest.fixture
def rows(tmp_path):
  folder = tiny_runs.write_texts(tmp_path / 'texts')
  corpus = text.Text(
    sources.TextFiles(f'{folder}/*.txt'), directory=str(tmp_path / 'prepared')
  )
  corpus.prepare()
  return packing.Rows(corpus.open('train'), 64)


def before(params, ids_BT, documents_BT):
  """Scaled count of the up to four ids before of the same document."""
  total = 0
  for back in range(1, 5):
    there = jnp.pad(documents_BT, [(0, 0), (back, 0)])[:, :-back]
    total += (there == documents_BT) & (documents_BT > 0)
  return params * total.astype(jnp.float32)


def annotate(rows, params=0.5, measure=before, **changes):
  options = {'name': 'count', 'label': 'a', 'context': 4} | changes
  return annotations.annotate(
    measure, np.float32(params), rows, rows.corpus.path, **options
  )


def test_every_id_is_measured_with_its_context(rows):
  found = annotate(rows)
  _, documents = rows.cut(0, rows.stream_length)
  starts = np.flatnonzero(np.diff(documents, prepend=0))
  age = np.arange(len(documents)) - starts[documents - 1]
  assert found.dtype == np.float16
  np.testing.assert_array_equal(found, 0.5 * np.minimum(age, 4))
  stored = packing.Rows(rows.corpus, 64, {'count': found})
  np.testing.assert_array_equal(stored[1]['count'], found[64:128])
  last = stored[len(stored) - 1]
  np.testing.assert_array_equal(last['count'][last['documents'] == 0], 0)


def test_processes_share_the_rows(rows, monkeypatch):
  alone = np.array(annotate(rows))
  for path in rows.corpus.path.glob('count_*'):
    shutil.rmtree(path)
  read, window = {0: set(), 1: set()}, annotations._window

  def watched(stream, start, context):
    read[jax.process_index()].add(start)
    return window(stream, start, context)

  monkeypatch.setattr(annotations, '_window', watched)
  for found in several.Job(2).run(lambda: annotate(rows)):
    np.testing.assert_array_equal(found, alone)
  starts = set(range(0, rows.stream_length, rows.row_length))
  assert read[0] | read[1] == starts
  # But for the last row, which fills up the last batch.
  assert read[0] & read[1] <= {max(starts)}
  assert len(read[1]) >= 8


def test_a_process_that_does_not_see_the_file_says_so(rows, monkeypatch):
  monkeypatch.setattr(annotations, '_write', lambda kept, numbers_N: None)
  for error in several.Job(2).run(lambda: annotate(rows)):
    assert isinstance(error, OSError)
    assert 'data.directory' in str(error)


def test_computed_once_for_each_model(rows):
  calls = []

  def counted(*arguments):
    calls.append(1)
    return before(*arguments)

  annotate(rows, measure=counted)
  annotate(rows, measure=counted)
  assert len(calls) == 1
  for changes in ({'params': 2.0}, {'label': 'b'}, {'context': 3}):
    annotate(rows, **changes)
  assert len(list(rows.corpus.path.glob('count_*'))) == 4


def test_damaged_numbers_are_made_anew(rows, caplog):
  whole = np.array(annotate(rows))
  (kept,) = rows.corpus.path.glob('count_*')
  size = (kept / 'numbers.npy').stat().st_size

  def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

  def cut(path):
    os.truncate(path, size - 2)

  for damage, name, words in (
    (flip, 'numbers.npy', 'numbers.npy has changed since it was written'),
    (cut, 'numbers.npy', f'numbers.npy has {size - 2} bytes instead of {size}'),
    (pathlib.Path.unlink, 'numbers.npy', 'numbers.npy is missing'),
    (flip, 'manifest.json', 'manifest.json is incomplete or has changed'),
    (pathlib.Path.unlink, 'manifest.json', 'manifest.json is missing'),
  ):
    damage(kept / name)
    caplog.clear()
    np.testing.assert_array_equal(annotate(rows), whole)
    assert caplog.messages == [f'{kept} is damaged ({words}); it is made anew']
  caplog.clear()
  annotate(rows)
  assert not caplog.messages
  assert [path.name for path in rows.corpus.path.glob('count_*')] == [kept.name]


def test_numbers_of_another_stream_are_refused(rows):
  with pytest.raises(ValueError, match='delete it, so that it is made anew'):
    packing.Rows(rows.corpus, 64, {'count': annotate(rows)[:-1]})
