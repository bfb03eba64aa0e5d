"""Where documents come from: one frozen dataclass per kind of source.

`documents()` yields every document in a fixed order. `fingerprint()` changes
when they do, and is cheap enough to compute each time a corpus is opened.
"""

import contextlib
import dataclasses
import glob
import hashlib
import os
import pathlib
import sysconfig
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from data import json_text
from data import tfds_files

_INSTALLED = ('site-packages', 'dist-packages', '__pycache__')
_TESTS = ('test', 'tests', 'idle_test')


class Document(NamedTuple):
  """One text; documents of equal group end up on one side of a split.

  split: 'validation' or 'test' where the source says so, else ''.
  """

  name: str
  group: str
  text: bytes
  split: str = ''


class Source(Protocol):
  """What a corpus is made from."""

  def documents(self) -> Iterator[Document]: ...

  def fingerprint(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class StandardLibrary:
  """The .py files of the running Python's standard library, without tests.

  A group is a top-level module or package with its private relatives:
  `_pyio` goes with `io`, `pydoc_data` with `pydoc`.
  """

  def documents(self) -> Iterator[Document]:
    """One document per file, in the order of their paths."""
    root = pathlib.Path(sysconfig.get_path('stdlib'))
    for path in _library_files(root):
      name = path.relative_to(root).as_posix()
      yield Document(name, _family(name), _read(path))

  def fingerprint(self) -> str:
    """A hash of the text itself, the same on every machine."""
    digest = hashlib.sha256()
    for document in self.documents():
      add_to_digest(digest, document)
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class TextFiles:
  """One document per file of any encoding.

  pattern: a glob, `**` for any depth, as in 'notes/**/*.txt'. A group is a
    path relative to the part of the pattern before its first wildcard.
  """

  pattern: str

  def documents(self) -> Iterator[Document]:
    """One document per file, in the order of their paths."""
    root = _root(self.pattern)
    for path in _matching(self):
      name = os.path.relpath(path, root)
      yield Document(name, name, _read(path))

  def fingerprint(self) -> str:
    """A hash of the files' names, sizes and times of change."""
    return stat_fingerprint(_matching(self))


@dataclasses.dataclass(frozen=True)
class JsonLines:
  """One document per line of JSON; equal texts form one group.

  field: the key that holds the text, a string.
  """

  pattern: str
  field: str = 'text'

  def documents(self) -> Iterator[Document]:
    """One document per line that is not blank; ValueError names a bad one."""
    for path in _matching(self):
      with _naming(path), path.open('rb') as lines:
        for number, line in enumerate(lines, 1):
          if line.strip():
            place = f'{path}:{number}'
            text = _json_text(line, self.field, place)
            yield Document(place, _content(text), text)

  def fingerprint(self) -> str:
    """A hash of the files' names, sizes and times of change."""
    return stat_fingerprint(_matching(self))


@dataclasses.dataclass(frozen=True)
class ParquetColumn:
  """One document per row of Parquet files; equal texts form one group.

  column: the column that holds the text, of strings or bytes, without nulls.
  """

  pattern: str
  column: str = 'text'

  def documents(self) -> Iterator[Document]:
    """One document per row, read in pieces."""
    for path in _matching(self):
      for row, value in enumerate(self._values(path)):
        place = f'{path}:{row}'
        text = _as_bytes(value, place, f'column {self.column!r}')
        yield Document(place, _content(text), text)

  def fingerprint(self) -> str:
    """A hash of the files' names, sizes and times of change."""
    return stat_fingerprint(_matching(self))

  def _values(self, path: pathlib.Path) -> Iterator[Any]:
    # Imported here, because other sources do not need it.
    from data import parquet_files

    names = parquet_files.names(path)
    if self.column not in names:
      raise ValueError(
        f'{path} has no column {self.column!r}; it has {str(names)[:200]}, set'
        ' data.source.column to one of them.'
      )
    for (values,) in parquet_files.pieces(path, [self.column], 1024):
      yield from values.to_pylist()


@dataclasses.dataclass(frozen=True)
class TfdsText:
  """A TFDS dataset prepared as array_record, read without TensorFlow.

  Its validation and test splits are kept; the sides it lacks are taken from
  its other splits. Equal texts form one group.

  name: as in TFDS, 'dataset', 'dataset/config' or 'dataset/config:1.0.0'.
  feature: the text feature.
  data_dir: the folder that holds the dataset's folder; '' is TFDS's own.
  """

  name: str
  feature: str = 'text'
  data_dir: str = ''

  def documents(self) -> Iterator[Document]:
    """One document per example of every split."""
    builder = self._builder()
    features = getattr(builder.info.features, 'keys', list)()
    if self.feature not in features:
      raise ValueError(
        f'TFDS dataset {self.name!r} has no feature {self.feature!r}; it has'
        f' {sorted(features)}, set data.source.feature to one of'
        ' them.'
      )
    for split in sorted(builder.info.splits):
      kept = split if split in ('validation', 'test') else ''
      for index, example in enumerate(tfds_files.examples(builder, split)):
        place, value = f'{split}/{index}', example[self.feature]
        text = _as_bytes(value, place, f'feature {self.feature!r}')
        yield Document(place, _content(text), text, kept)

  def fingerprint(self) -> str:
    """A hash of the prepared files' names, sizes and times of change."""
    return stat_fingerprint(tfds_files.files(self._builder()))

  def _builder(self) -> Any:
    return tfds_files.opened(self.name, self.data_dir, 'data.source')


def add_to_digest(digest: Any, document: Document) -> None:
  """Feeds name and text to a hash; lengths keep the borders unambiguous."""
  name = document.name.encode('utf-8', 'surrogateescape')
  digest.update(b'%d %d ' % (len(name), len(document.text)))
  digest.update(name)
  digest.update(document.text)


def _library_files(root: pathlib.Path) -> list[pathlib.Path]:
  files = []
  for folder, folders, names in os.walk(root):
    folders[:] = [f for f in folders if f not in _INSTALLED + _TESTS]
    files += [pathlib.Path(folder, n) for n in names if n.endswith('.py')]
  if not files:
    raise ValueError(
      f'StandardLibrary() finds no .py file in {root}: this Python comes'
      ' without its sources; choose data.TextFiles(pattern=...) instead.'
    )
  return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _family(name: str) -> str:
  """'_pyio.py' -> 'io', 'pydoc_data/topics.py' -> 'pydoc'."""
  top = name.split('/')[0].removesuffix('.py')
  return top.removeprefix('_py').strip('_').split('_')[0] or top


def _root(pattern: str) -> str:
  """The folder named by a pattern before its first wildcard."""
  root = os.path.dirname(os.path.expanduser(pattern))
  while glob.has_magic(root):
    root = os.path.dirname(root)
  return root or '.'


def _matching(source: Any) -> list[pathlib.Path]:
  """The files that match source.pattern, sorted; ValueError if none does."""
  found = glob.glob(os.path.expanduser(source.pattern), recursive=True)
  files = sorted(path for path in found if os.path.isfile(path))
  if not files:
    what = 'only folders' if found else 'no file'
    raise ValueError(
      f'data.source.pattern={source.pattern!r} matches {what} from'
      f" {os.getcwd()}; give a glob of files such as 'folder/**/*.txt'."
    )
  return [pathlib.Path(path) for path in files]


def stat_fingerprint(paths: list[pathlib.Path]) -> str:
  """A hash of files' names, sizes and times of change."""
  digest = hashlib.sha256()
  for path in paths:
    stat = path.stat()
    line = f'{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}\n'
    digest.update(line.encode('utf-8', 'surrogateescape'))
  return digest.hexdigest()


def _read(path: pathlib.Path) -> bytes:
  with _naming(path):
    return path.read_bytes()


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
  """Lets an error of reading name its file, as one of opening does."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or str(path)
    raise


def _content(text: bytes) -> str:
  return hashlib.sha256(text).hexdigest()


def _json_text(line: bytes, field: str, place: str) -> bytes:
  way_out = 'repair or remove the line'
  record = json_text.parse(line, place, way_out)
  if not isinstance(record, dict):
    raise ValueError(
      f'{place} holds a JSON {type(record).__name__}, not an object with the'
      f' field {field!r}; {way_out}.'
    )
  if field not in record:
    raise ValueError(
      f'{place} has no field {field!r}; it has {str(sorted(record))[:200]}, set'
      ' data.source.field to one of them or repair the line.'
    )
  return _as_bytes(record[field], place, f'field {field!r}')


def _as_bytes(value: Any, place: str, what: str) -> bytes:
  if isinstance(value, bytes):
    return value
  if not isinstance(value, str):
    raise ValueError(
      f'{place}: {what} holds {type(value).__name__}, not text; repair or'
      ' remove that record, or name another one that holds text.'
    )
  try:
    return value.encode('utf-8')
  except UnicodeEncodeError as error:
    raise ValueError(
      f'{place}: {what} has no UTF-8 form ({error.reason}); repair or remove'
      ' that record.'
    ) from error
