"""Every source yields all its documents, or names what is wrong."""

import os
import pathlib
import sysconfig
import types

import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from data import sources
from data import text


def test_standard_library_is_library_code_only():
  documents = list(sources.StandardLibrary().documents())
  names = [document.name for document in documents]
  assert names == sorted(set(names))
  for folder in ('site-packages', 'test', 'tests', 'idle_test', '__pycache__'):
    assert not [n for n in names if folder in n.split('/')[:-1]]
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  by_name = {document.name: document for document in documents}
  for name in ('os.py', 'json/decoder.py', 'encodings/utf_8.py'):
    assert by_name[name].text == (root / name).read_bytes()


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    ('encodings/cp1252.py', 'encodings/latin_1.py'),
    ('_pyio.py', 'io.py'),
    ('_collections_abc.py', 'collections/__init__.py'),
    ('pydoc.py', 'pydoc_data/topics.py'),
  ],
)
def test_relatives_share_a_group(one, other):
  groups = {d.name: d.group for d in sources.StandardLibrary().documents()}
  assert groups[one] == groups[other]
  assert len(set(groups.values())) > 100


def test_text_files_are_found_at_any_depth(tmp_path):
  (tmp_path / 'a' / 'b').mkdir(parents=True)
  (tmp_path / 'a' / 'b' / 'deep.txt').write_bytes(b'\xff deep')
  (tmp_path / 'a' / 'top.txt').write_bytes(b'')
  (tmp_path / 'a' / 'other.md').write_bytes(b'no')
  source = sources.TextFiles(f'{tmp_path}/**/*.txt')
  assert [(d.name, d.group, d.text) for d in source.documents()] == [
    ('a/b/deep.txt', 'a/b/deep.txt', b'\xff deep'),
    ('a/top.txt', 'a/top.txt', b''),
  ]


def test_fingerprint_follows_the_files(tmp_path):
  source = sources.TextFiles(f'{tmp_path}/*.txt')
  path = tmp_path / 'a.txt'
  path.write_text('one')
  first = source.fingerprint()
  assert first == source.fingerprint()
  path.write_text('three')
  second = source.fingerprint()
  (tmp_path / 'b.txt').write_text('')
  assert len({first, second, source.fingerprint()}) == 3


def test_json_lines(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"body": "caf\\u00e9"}\n\n{"body": ""}\n{"body": "b\\n"}')
  documents = list(sources.JsonLines(str(path), 'body').documents())
  assert [d.text for d in documents] == ['café'.encode(), b'', b'b\n']
  assert [d.name for d in documents] == [f'{path}:{n}' for n in (1, 3, 4)]


@pytest.mark.parametrize(
  ('line', 'says'),
  [
    (b'{"text": "cut', 'is no JSON'),
    (b'{"text": "\xff\xfe"}', 'is no JSON'),
    (b'["text"]', 'a JSON list'),
    (b'{"body": "b", "id": 1}', r"no field 'text'; it has \['body', 'id'\]"),
    (b'{"text": 3}', "field 'text' holds int"),
    (b'{"text": "\\ud800"}', 'no UTF-8 form'),
  ],
)
def test_bad_json_line_is_named(tmp_path, line, says):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "good"}\n')
  corpus = text.Text(sources.JsonLines(str(path)), str(tmp_path / 'cache'))
  with pytest.raises(ValueError, match=rf'a\.jsonl:3\b.*{says}') as caught:
    corpus.prepare()
  assert '\n' not in str(caught.value)
  assert [p.suffix for p in (tmp_path / 'cache').iterdir()] == ['.lock']


def test_parquet_column_over_row_groups(tmp_path):
  texts = [f'text {i}' * (i % 5) for i in range(3000)]
  table = pyarrow.table({'id': range(3000), 'body': texts})
  path = tmp_path / 'a.parquet'
  pyarrow.parquet.write_table(table, path, row_group_size=700)
  source = sources.ParquetColumn(str(path), 'body')
  assert [d.text.decode() for d in source.documents()] == texts
  with pytest.raises(ValueError, match=r"\['id', 'body'\]"):
    list(sources.ParquetColumn(str(path)).documents())
  with pytest.raises(ValueError, match="parquet:0: column 'id' holds int"):
    list(sources.ParquetColumn(str(path), 'id').documents())
  path.write_bytes(b'nothing of the kind')
  with pytest.raises(ValueError, match='no Parquet file'):
    list(source.documents())


def flip(path, place):
  data = bytearray(path.read_bytes())
  data[place] ^= 255
  path.write_bytes(data)


@pytest.mark.parametrize('damage', ['page', 'header', 'short', 'end'])
def test_damaged_parquet_file_is_named(tmp_path, damage):
  texts = [f'some text of number {i} and {i * i}' for i in range(2000)]
  path = tmp_path / 'b.parquet'
  pyarrow.parquet.write_table(
    pyarrow.table({'text': texts}), path, write_page_checksum=True
  )
  pyarrow.parquet.write_table(
    pyarrow.table({'text': texts}), tmp_path / 'a.parquet'
  )
  size = path.stat().st_size
  if damage == 'short':
    os.truncate(path, size // 2)
  else:
    flip(path, {'page': size // 2, 'header': 6, 'end': size - 6}[damage])
  source = sources.ParquetColumn(str(tmp_path / '*.parquet'))
  with pytest.raises(ValueError, match=r'b\.parquet is ') as caught:
    list(source.documents())
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('cls', [sources.TextFiles, sources.JsonLines])
def test_file_that_cannot_be_read_is_named(tmp_path, cls):
  place = tmp_path / 'b.txt'
  (tmp_path / 'a.txt').write_text('{"text": "words"}')
  place.symlink_to('/proc/self/mem')  # Reading address 0 is an error.
  with pytest.raises(OSError, match='Input/output error') as caught:
    list(cls(f'{tmp_path}/*.txt').documents())
  assert caught.value.filename == str(place)


@pytest.mark.parametrize(
  'cls', [sources.TextFiles, sources.JsonLines, sources.ParquetColumn]
)
def test_pattern_without_files_is_named(tmp_path, cls):
  with pytest.raises(ValueError, match=r'missing\*.*no file'):
    list(cls(str(tmp_path / 'missing*')).documents())
  with pytest.raises(ValueError, match='only folders'):
    list(cls(str(tmp_path)).documents())


class PublicReviews(tfds.core.GeneratorBasedBuilder):
  """Stands for a public dataset: train and test, no validation."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {'review': tfds.features.Text()}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {
      'train': self._generate_examples('train', 60),
      'test': self._generate_examples('test', 5),
    }

  def _generate_examples(self, split, count):
    for index in range(count):
      yield index, {'review': f'{split} {index}'}


@pytest.fixture
def data_dir(tmp_path):
  tfds.disable_progress_bar()
  PublicReviews(
    data_dir=tmp_path / 'tfds', file_format='array_record'
  ).download_and_prepare()
  return str(tmp_path / 'tfds')


def test_public_dataset_keeps_its_own_splits(tmp_path, data_dir):
  source = sources.TfdsText('public_reviews', 'review', data_dir)
  corpus = text.Text(source, str(tmp_path / 'cache'))
  read = {
    split: sorted(bytes(t).decode() for t in corpus.open(split))
    for split in text.SPLITS
  }
  assert read['test'] == [f'test {i}' for i in range(5)]
  assert 1 <= len(read['validation']) <= 6
  expected = sorted(f'train {i}' for i in range(60))
  assert sorted(read['train'] + read['validation']) == expected


@pytest.mark.parametrize('damage', ['byte', 'short', 'gone'])
def test_damaged_shard_is_named(data_dir, damage):
  shard = next(pathlib.Path(data_dir).rglob('*-train.array_record*'))
  if damage == 'byte':
    flip(shard, shard.stat().st_size // 2)
  elif damage == 'short':
    os.truncate(shard, shard.stat().st_size // 2)
  else:
    shard.unlink()
  source = sources.TfdsText('public_reviews', 'review', data_dir)
  with pytest.raises(ValueError, match='is damaged') as caught:
    list(source.documents())
  assert str(shard) in str(caught.value)
  assert '\n' not in str(caught.value)


def test_shards_outside_of_their_dataset_are_not_read(data_dir):
  (info,) = pathlib.Path(data_dir).rglob('dataset_info.json')
  template = '"{DATASET}-{SPLIT}'
  text = info.read_text()
  assert template in text
  info.write_text(text.replace(template, '"../{DATASET}-{SPLIT}'))
  for shard in info.parent.glob('*.array_record*'):
    shard.rename(info.parent.parent / shard.name)
  source = sources.TfdsText('public_reviews', 'review', data_dir)
  with pytest.raises(ValueError, match='which is not in it'):
    list(source.documents())


def test_public_dataset_not_ready_says_the_way_out(tmp_path, data_dir):
  command = 'tfds build lm1b --file_format=array_record'
  with pytest.raises(ValueError, match=command) as caught:
    list(sources.TfdsText('lm1b', data_dir=data_dir).documents())
  assert '\n' not in str(caught.value)
  with pytest.raises(ValueError, match=r"'text'; it has \['review'\]"):
    list(sources.TfdsText('public_reviews', data_dir=data_dir).documents())
  for info in pathlib.Path(data_dir).rglob('dataset_info.json'):
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(ValueError, match='stored as tfrecord'):
    list(sources.TfdsText('public_reviews', 'review', data_dir).documents())


def test_tfds_dataset_of_no_named_features(monkeypatch):
  # As a damaged features.json may describe one.
  info = types.SimpleNamespace(features=tfds.features.Text())
  builder = types.SimpleNamespace(info=info)
  monkeypatch.setattr(sources.TfdsText, '_builder', lambda _: builder)
  with pytest.raises(ValueError, match=r"no feature 'text'; it has \[\]"):
    next(sources.TfdsText('toy').documents())
