"""Rows against the id stream written out in full."""

import json
import pathlib
import tempfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from data import codec
from data import packing
from data import text

DOCUMENTS = [b'ab', b'', b'\xff\x00\xfe', b'', b'', b'hello world', b'x']


def write_corpus(folder, documents):
  """The files of a Corpus, written independently of data.text."""
  folder = pathlib.Path(folder)
  (folder / 'bytes.bin').write_bytes(b''.join(documents))
  np.save(folder / 'offsets.npy', np.cumsum([0, *map(len, documents)]))
  (folder / 'names.json').write_text(json.dumps(['x'] * len(documents)))
  return text.Corpus(folder)


def expected_rows(documents, row_length):
  """Row after row by plain loops: lists of (id, target, document, mask)."""
  stream = []
  for number, document in enumerate(documents):
    stream.append((codec.BOS, number))
    stream += [(byte + 4, number) for byte in document]
    stream.append((codec.EOS, number))
  rows = []
  for start in range(0, len(stream) - 1, row_length):
    row, seen = [], []
    for position in range(start, start + row_length):
      if position >= len(stream):
        row.append((0, 0, 0, 0.0))
        continue
      token, number = stream[position]
      if number not in seen:
        seen.append(number)
      target, owner = 0, None
      if position + 1 < len(stream):
        target, owner = stream[position + 1]
      mask = float(owner == number)
      row.append((token, target, len(seen), mask))
    rows.append(row)
  return rows


def assert_rows_are_expected(documents, row_length):
  with tempfile.TemporaryDirectory() as folder:
    rows = packing.Rows(write_corpus(folder, documents), row_length)
    expected = expected_rows(documents, row_length)
    assert len(rows) == len(expected)
    for index, row in enumerate(expected):
      columns = zip(*row, strict=True)
      keys = ('ids', 'targets', 'documents', 'mask')
      for key, column in zip(keys, columns, strict=True):
        np.testing.assert_array_equal(rows[index][key], column, err_msg=key)


@pytest.mark.parametrize('row_length', [1, 2, 3, 5, 8, 31, 100])
def test_rows_equal_the_stream_written_out(row_length):
  assert_rows_are_expected(DOCUMENTS, row_length)


@hypothesis.given(
  documents=strategies.lists(strategies.binary(max_size=9), min_size=1),
  row_length=strategies.integers(1, 20),
)
def test_any_documents_in_any_rows(documents, row_length):
  assert_rows_are_expected(documents, row_length)


@hypothesis.given(
  documents=strategies.lists(strategies.binary(max_size=30), min_size=1),
  row_length=strategies.integers(1, 40),
)
def test_no_byte_is_lost_and_each_is_scored_once(documents, row_length):
  with tempfile.TemporaryDirectory() as folder:
    rows = packing.Rows(write_corpus(folder, documents), row_length)
    rows = [rows[i] for i in range(len(rows))]
  targets = np.concatenate([row['targets'] for row in rows])
  mask = np.concatenate([row['mask'] for row in rows])
  scored = targets[mask == 1]
  pieces = np.split(scored, np.flatnonzero(scored == codec.EOS) + 1)
  assert not len(pieces.pop())
  assert [codec.decode(piece) for piece in pieces] == documents
  assert not np.any(scored == codec.BOS)
  # One EOS per document next to its bytes, and nothing else.
  assert len(scored) == sum(map(len, documents)) + len(documents)
  ids = np.concatenate([row['ids'] for row in rows])
  assert codec.decode(ids) == b''.join(documents)


def test_types_and_shapes(tmp_path):
  row = packing.Rows(write_corpus(tmp_path, DOCUMENTS), 8)[0]
  assert {k: (v.dtype.name, v.shape) for k, v in row.items()} == {
    'ids': ('int32', (8,)),
    'targets': ('int32', (8,)),
    'documents': ('int32', (8,)),
    'mask': ('float32', (8,)),
  }


def test_bad_arguments_are_named(tmp_path):
  corpus = write_corpus(tmp_path, DOCUMENTS)
  with pytest.raises(ValueError, match='row_length=0'):
    packing.Rows(corpus, 0)
  rows = packing.Rows(corpus, 8)
  for index in (-1, len(rows)):
    with pytest.raises(IndexError, match=f'row {index}'):
      rows[index]
