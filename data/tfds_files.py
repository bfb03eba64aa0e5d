"""TFDS datasets prepared as array_record, read without TensorFlow."""

import contextlib
import itertools
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from data import feature_files
from data import record_files


def opened(name: str, data_dir: str, field: str) -> Any:
  """The builder of a dataset; ValueError where none is prepared and whole.

  name: as in TFDS, 'dataset', 'dataset/config' or 'dataset/config:1.0.0'.
  data_dir: the folder that holds the dataset's folder; '' is TFDS's own.
  field: of the config that has both, as 'data.source'.
  """
  # Imported here, because who reads prepared data does not need it.
  import tensorflow_datasets as tfds

  data_dir = os.path.expanduser(data_dir) or None
  place = data_dir or tfds.core.constants.DATA_DIR
  way_out = (
    'preparing it here would need the network or TensorFlow, so run `tfds'
    f' build {name} --file_format=array_record` where both are, copy'
    f' the folder and set {field}.data_dir to its parent.'
  )
  dataset = re.split('[/:]', name)[0]
  if dataset in ('', '.', '..'):
    raise ValueError(f'{field}.name={name!r} names no dataset.')
  feature_files.check(pathlib.Path(place) / dataset)
  with _explained(pathlib.Path(place) / dataset):
    try:
      builder = tfds.core.read_only_builder.builder_from_files(
        name, data_dir=data_dir
      )
    except tfds.core.registered.DatasetNotFoundError:
      builder = None
    stored = builder and builder.info.file_format.value
  if builder is None:
    raise ValueError(
      f'TFDS dataset {name!r} is not prepared in {place}; {way_out}'
    )
  if stored != 'array_record':
    raise ValueError(
      f'TFDS dataset {name!r} in {place} is stored as {stored}, which'
      f' has no random access without TensorFlow; {way_out}'
    )
  with _explained(pathlib.Path(builder.data_dir)):
    files = [s.filepaths for s in builder.info.splits.values()]
  for paths in files:
    feature_files.check_inside(builder.data_dir, paths)
  return builder


def files(builder: Any) -> list[pathlib.Path]:
  """All files of a dataset, sorted."""
  folder = pathlib.Path(builder.data_dir)
  return sorted(path for path in folder.iterdir() if path.is_file())


def examples(
  builder: Any, split: str, decoders: Any = None
) -> Iterator[dict[str, Any]]:
  """The examples of a split in order; ValueError names a damaged shard.

  decoders: by feature, as TFDS has them.
  """
  folder = pathlib.Path(builder.data_dir)
  with _explained(folder):
    found = builder.as_data_source(split=split, decoders=decoders)
    info = builder.info.splits[split]
    if len(info.filepaths) != len(info.shard_lengths):
      raise RuntimeError(f'{split} has as many lengths as files')
  for path in map(pathlib.Path, info.filepaths):
    with _explained(path):
      record_files.check(path)
  shards = zip(info.filepaths, info.shard_lengths, strict=True)
  of_each = itertools.starmap(itertools.repeat, shards)
  for index, shard in enumerate(itertools.chain.from_iterable(of_each)):
    try:
      example = found[index]
    except Exception as error:  # array_record has no class for it.
      raise _damage(shard, error) from error
    # What array_record has of a file that was cut.
    if example is None or any(value is None for value in example.values()):
      raise _damage(shard, f'nothing stands where example {index} should')
    yield example


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
  """Says in one sentence what TFDS says of files that it cannot read."""
  try:
    yield
  except Exception as error:  # It has no class for it.
    raise _damage(path, error) from error


def _damage(path: pathlib.Path, error: Exception | str) -> ValueError:
  reason = ' '.join(str(error).split())[:200]
  return ValueError(
    f'{path} is damaged ({reason}); put a whole copy of it in its place.'
  )
