"""Corpora are complete, split by group, and prepared exactly once."""

import dataclasses
import hashlib
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from data import builder
from data import sources
from data import text

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Listed:
  """Documents given in the test as (name, group, text in Latin 1)."""

  items: tuple[tuple[str, str, str], ...]

  def documents(self):
    for name, group, content in self.items:
      yield sources.Document(name, group, content.encode('latin-1'))

  def fingerprint(self):
    return hashlib.sha256(repr(self.items).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Families:
  """Groups of seven files each, some large, some empty, of any bytes."""

  count: int = 60

  def documents(self):
    rng = np.random.default_rng(0)
    for group in range(self.count):
      for index in range(7):
        content = rng.bytes(int(rng.integers(0, 300)))
        yield sources.Document(f'{group}/{index}', f'group {group}', content)
    yield sources.Document('empty', 'empty', b'')

  def fingerprint(self):
    return str(self.count)


def groups_of(corpus):
  return {name.split('/')[0] for name in corpus.names}


def test_no_document_is_lost_or_changed(tmp_path):
  corpus = text.Text(Families(), str(tmp_path))
  read = {}
  for split in text.SPLITS:
    part = corpus.open(split)
    read |= {n: bytes(t) for n, t in zip(part.names, part, strict=True)}
    count = part.metadata['splits'][split]
    assert count == {'documents': len(part), 'bytes': len(part.bytes)}
  assert read == {d.name: d.text for d in Families().documents()}
  assert any(not t for t in read.values())


def test_groups_are_whole_and_fractions_are_near(tmp_path):
  corpus = text.Text(
    Families(), str(tmp_path), validation_fraction=0.1, test_fraction=0.2
  )
  parts = {split: corpus.open(split) for split in text.SPLITS}
  groups = [groups_of(part) for part in parts.values()]
  assert sum(map(len, groups)) == len(set.union(*groups)) == 61
  sizes = np.array([len(part.bytes) for part in parts.values()])
  np.testing.assert_allclose(sizes / sizes.sum(), [0.7, 0.1, 0.2], atol=0.03)


def test_order_of_documents_does_not_move_groups(tmp_path):
  items = [
    (d.name, d.group, d.text.decode('latin-1')) for d in Families().documents()
  ]
  forward = text.Text(Listed(tuple(items)), str(tmp_path))
  backward = text.Text(Listed(tuple(items[::-1])), str(tmp_path))
  for split in text.SPLITS:
    first, second = forward.open(split), backward.open(split)
    assert first.names == second.names[::-1]
    assert first.path != second.path


@pytest.mark.parametrize('count', [3, 4, 10])
def test_few_groups_fill_every_split(tmp_path, count):
  items = tuple((f'{i}', f'{i}', 'text') for i in range(count))
  corpus = text.Text(Listed(items), str(tmp_path))
  lengths = [len(corpus.open(split)) for split in text.SPLITS]
  assert min(lengths) >= 1
  assert sum(lengths) == count


def test_standard_library_has_diverse_held_out_text(tmp_path):
  corpus = text.Text(directory=str(tmp_path))
  held_out = {s: corpus.open(s) for s in ('validation', 'test')}
  families = {
    s: {n.split('/')[0] for n in part.names} for s, part in held_out.items()
  }
  assert not families['validation'] & families['test']
  for part in held_out.values():
    assert len(part.bytes) > 300_000
  assert len(families['test']) >= 10
  assert len(corpus.open('train').bytes) > 8 * len(held_out['test'].bytes)
  version = '.'.join(map(str, sys.version_info[:3]))
  assert held_out['test'].metadata['python_version'].startswith(version)
  sides = {
    split
    for split in text.SPLITS
    for name in corpus.open(split).names
    if name.startswith('encodings/')
  }
  assert len(sides) == 1


def test_content_hash_is_of_names_and_bytes(tmp_path):
  hashes = {
    text.Text(Listed((item,)), str(tmp_path))
    .open('train')
    .metadata['content_sha256']
    for item in [('ab', 'g', 'c'), ('a', 'g', 'bc'), ('ab', 'g', 'd')]
  }
  assert len(hashes) == 3
  digest = hashlib.sha256(b'2 1 abc').hexdigest()
  assert digest in hashes


def test_changed_files_are_noticed(tmp_path):
  for name in 'abc':
    (tmp_path / f'{name}.txt').write_text(name)
  source = sources.TextFiles(f'{tmp_path}/*.txt')
  corpus = text.Text(source, str(tmp_path / 'cache'))
  before = corpus.prepare()
  assert corpus.prepare() == before
  (tmp_path / 'a.txt').write_text('longer')
  assert corpus.prepare() != before
  read = b''.join(bytes(corpus.open(split).bytes) for split in text.SPLITS)
  assert sorted(read) == sorted(b'longerbc')


def test_second_prepare_writes_nothing(tmp_path, monkeypatch):
  corpus = text.Text(Families(), str(tmp_path))
  folder = corpus.prepare()
  monkeypatch.setattr(builder, 'write', None)
  assert corpus.prepare() == folder


def test_leftovers_of_a_killed_preparation_are_replaced(tmp_path):
  corpus = text.Text(Families(), str(tmp_path / 'one'))
  name = corpus.prepare().name
  corpus = dataclasses.replace(corpus, directory=str(tmp_path / 'two'))
  for leftover in (f'{name}.incomplete', name):
    (tmp_path / 'two' / leftover / 'train').mkdir(parents=True)
    (tmp_path / 'two' / leftover / 'train' / 'bytes.bin').write_bytes(b'half')
  assert len(corpus.open('train')) > 100
  left = {path.name for path in (tmp_path / 'two').iterdir()}
  assert left == {name, f'{name}.lock'}


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError(28, 'No space left on device')

  corpus = text.Text(Families(), str(tmp_path))
  monkeypatch.setattr(builder, 'read', fail)
  with pytest.raises(OSError, match='No space'):
    corpus.prepare()
  assert [path.suffix for path in tmp_path.iterdir()] == ['.lock']
  monkeypatch.undo()
  assert len(corpus.open('train'))


def test_threads_that_prepare_together_prepare_once(tmp_path, monkeypatch):
  written, folders = [], []
  write = builder.write

  def count(config, folder):
    written.append(folder)
    return write(config, folder)

  monkeypatch.setattr(builder, 'write', count)
  corpus = text.Text(Families(), str(tmp_path))
  threads = [
    threading.Thread(target=lambda: folders.append(corpus.prepare()))
    for _ in range(3)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(written) == 1
  assert len(folders) == 3
  assert len(set(folders)) == 1


def test_processes_prepare_together_in_silence_without_tensorflow(tmp_path):
  here, corpora = tmp_path / 'here', tmp_path / 'corpora'
  here.mkdir()
  script = f"""
import pathlib, sys, time
from data import pipeline, sources, text
here = pathlib.Path({str(here)!r})
(here / sys.argv[1]).touch()
until = time.monotonic() + 120
while len(list(here.iterdir())) < 2 and time.monotonic() < until:
  time.sleep(0.01)
files = sources.TextFiles({str(ROOT / 'data' / '*.py')!r})
corpus = text.Text(files, directory={str(corpora)!r}).open('test')
dataset = pipeline.batches(corpus, row_length=64, batch_size=2, seed=0)
batch = next(pipeline.iterate(dataset, 3))
assert 'tensorflow' not in sys.modules
print(corpus.path)
"""
  runs = [
    subprocess.Popen(
      [sys.executable, '-c', script, str(number)],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(2)
  ]
  results = [run.communicate() for run in runs]
  assert [run.returncode for run in runs] == [0, 0], results
  assert results[0] == results[1]
  (folder,) = (path for path in corpora.iterdir() if path.is_dir())
  assert results[0] == (f'{folder}/test\n', '')


def test_source_that_changes_while_read_is_refused(tmp_path):
  class Growing(Families):
    passes = 0

    def documents(self):
      yield from super().documents()
      Growing.passes += 1
      if Growing.passes >= 3:  # After the survey and the count.
        yield sources.Document('late', 'group 0', b'late')

  with pytest.raises(ValueError, match='changed while it was read'):
    text.Text(Growing(), str(tmp_path)).prepare()
  assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_bad_input_is_named(tmp_path):
  lonely = text.Text(Listed((('a', 'a', 'text'),)), str(tmp_path))
  assert len(lonely.open('train')) == 1
  with pytest.raises(ValueError, match=r"'test'.*at least 3 groups"):
    lonely.open('test')
  with pytest.raises(ValueError, match=r"'dev' is unknown.*'validation'"):
    lonely.open('dev')
  (tmp_path / 'empty.txt').write_bytes(b'')
  empty = sources.TextFiles(f'{tmp_path}/empty*')
  with pytest.raises(ValueError, match=r'empty\*.*1 documents, 0 bytes'):
    text.Text(empty, str(tmp_path)).prepare()
  for fractions in ((-0.1, 0.1), (0.5, 0.5)):
    with pytest.raises(ValueError, match=r'data\.test_fraction='):
      text.Text(Families(), str(tmp_path), *fractions)
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=r'be written.*set data\.directory'):
    text.Text(Families(), str(tmp_path / 'file' / 'below')).prepare()


def test_damaged_corpus_is_refused(tmp_path):
  corpus = text.Text(Families(), str(tmp_path))
  path = corpus.open('train').path / 'bytes.bin'
  path.write_bytes(path.read_bytes()[:-10])
  with pytest.raises(ValueError, match='damaged'):
    corpus.open('train')
