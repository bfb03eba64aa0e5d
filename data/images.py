"""Labelled images of a TFDS dataset, as rows of bytes with a class each."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from data import codec as codec_lib
from data import folders
from data import json_text
from data import png
from data import sources
from data import text
from data import tfds_files

_LAYOUT = 1
# Images that are unpacked at a time.
_AT_ONCE = 4096
# Of a crop: how much wider than high, at most, and the other way round.
_LONGEST = 4 / 3


class Size(NamedTuple):
  """Of an image: rows, pixels of a row, and bytes of a pixel."""

  height: int
  width: int
  channels: int


@dataclasses.dataclass(frozen=True)
class ImageCorpus:
  """One split on disk: images back to back, and their classes."""

  path: pathlib.Path

  bytes_per_id = 1.0

  @functools.cached_property
  def metadata(self) -> dict[str, Any]:
    """Shape, classes, images by split, content hash, and this one's `split`."""
    folder = self.path.parent
    way_out = f'remove {folder} to have it prepared again'
    stored = json_text.load(folder / 'metadata.json', dict, way_out)
    return stored | {'split': self.path.name}

  @functools.cached_property
  def size(self) -> Size:
    return Size(*self.metadata['shape'])

  @functools.cached_property
  def pixels_NHWC(self) -> np.ndarray:
    """uint8, mapped, not loaded."""
    pixels = text.mapped(self.path / 'pixels.bin', np.uint8)
    return pixels.reshape(-1, *self.size)

  @functools.cached_property
  def labels_N(self) -> np.ndarray:
    """int32."""
    return text.mapped(self.path / 'labels.bin', np.int32)

  def __len__(self) -> int:
    return len(self.labels_N)


@dataclasses.dataclass(frozen=True)
class Images:
  """Images and classes of a dataset that was prepared as array_record.

  name, data_dir: as data.sources.TfdsText; it has the splits train and test.
  image, label: names of the features.
  held_out: images at the end of the train split, which TFDS has shuffled, that
    are the validation split instead.
  directory: where prepared images are kept, 3 kB each of CIFAR.

  Bytes of pixels are ids of data.codec.Bytes.
  """

  name: str = 'cifar10'
  data_dir: str = ''
  image: str = 'image'
  label: str = 'label'
  held_out: int = 5_000
  directory: str = '~/.cache/patchwork'

  codec = codec_lib.Bytes()

  def __post_init__(self) -> None:
    if self.held_out < 1:
      raise ValueError(
        f'data.held_out={self.held_out} must be at least 1: the images that'
        ' the validation split is made of.'
      )

  def prepare(self) -> pathlib.Path:
    """Unpacks the images unless they are there; returns their folder."""
    return folders.make_once(self._folder(), self._build)

  def trained(self) -> 'Images':
    """Itself, prepared; there is nothing to learn."""
    self.prepare()
    return self

  def untrained(self) -> 'Images':
    """Itself."""
    return self

  def open(self, split: str) -> ImageCorpus:
    """One split, prepared first where needed."""
    if split not in text.SPLITS:
      raise ValueError(
        f'split {split!r} is unknown; choose one of {text.SPLITS}.'
      )
    return ImageCorpus(self.prepare() / split)

  def _opened(self) -> Any:
    return tfds_files.opened(self.name, self.data_dir, 'data')

  def _folder(self) -> pathlib.Path:
    fields = dataclasses.asdict(self)
    del fields['data_dir'], fields['directory']
    files = sources.stat_fingerprint(tfds_files.files(self._opened()))
    identity = json.dumps([_LAYOUT, fields, files]).encode()
    key = hashlib.sha256(identity).hexdigest()[:16]
    return pathlib.Path(self.directory).expanduser() / f'images-{key}'

  def _build(self, folder: pathlib.Path) -> None:
    logging.info('Preparing %s in %s', self, folder)
    builder = self._opened()
    size, classes = self._measured(builder)
    digest = hashlib.sha256()
    counts = {}
    for split in ('train', 'test'):
      (folder / split).mkdir()
      with (
        (folder / split / 'pixels.bin').open('wb') as pixels,
        (folder / split / 'labels.bin').open('wb') as labels,
      ):
        for images_NHWC, labels_N in self._unpacked(builder, split, size):
          for array, file in ((images_NHWC, pixels), (labels_N, labels)):
            digest.update(np.ascontiguousarray(array))
            array.tofile(file)
      counts[split] = {'images': builder.info.splits[split].num_examples}
    counts['validation'] = self._hold_out(folder, counts['train'], size)
    metadata = {
      'name': builder.info.full_name,
      'shape': size,
      'classes': classes,
      'splits': counts,
      'content_sha256': digest.hexdigest(),
    }
    (folder / 'metadata.json').write_text(json.dumps(metadata, indent=2))

  def _measured(self, builder: Any) -> tuple[Size, int]:
    """The size of all images and the number of classes."""
    features, splits = builder.info.features, builder.info.splits
    missing = {self.image, self.label} - set(features)
    if missing or not {'train', 'test'} <= set(splits):
      raise ValueError(
        f'TFDS dataset {self.name!r} has the features {sorted(features)} and'
        f' the splits {sorted(splits)}; it needs train and test, and'
        f' data.image={self.image!r} and data.label={self.label!r} among the'
        ' features.'
      )
    shape = features[self.image].shape
    classes = getattr(features[self.label], 'num_classes', None)
    if len(shape) != 3 or None in shape or not classes:
      raise ValueError(
        f'TFDS dataset {self.name!r} has images of shape {shape} and'
        f' {classes} classes; give one of images of one size, as cifar10.'
      )
    return Size(*shape), classes

  def _unpacked(
    self, builder: Any, split: str, size: Size
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pixels [N, H, W, C] and labels [N], some thousands at a time."""
    import tensorflow_datasets as tfds

    whole = {self.image: tfds.decode.SkipDecoding()}
    examples = tfds_files.examples(builder, split, whole)
    first, files, labels_N = 0, [], []
    for count, example in enumerate(examples, start=1):
      files.append(example[self.image])
      labels_N.append(example[self.label])
      if len(files) == _AT_ONCE or (
        count == builder.info.splits[split].num_examples
      ):
        where = f'{self.name} {split}/{first} + '
        yield png.decode(files, size, where), np.array(labels_N, np.int32)
        first, files, labels_N = count, [], []

  def _hold_out(
    self, folder: pathlib.Path, train: dict[str, int], size: Size
  ) -> dict[str, int]:
    """Moves the end of the train split to the validation split."""
    left = train['images'] - self.held_out
    if left < 1:
      raise ValueError(
        f'data.held_out={self.held_out} leaves nothing of the'
        f' {train["images"]} images to train on; lower it.'
      )
    (folder / 'validation').mkdir()
    pixels = size.height * size.width * size.channels
    for name, item in (('pixels.bin', pixels), ('labels.bin', 4)):
      with (folder / 'train' / name).open('r+b') as file:
        file.seek(left * item)
        (folder / 'validation' / name).write_bytes(file.read())
        file.truncate(left * item)
    train['images'] = left
    return {'images': self.held_out}


@dataclasses.dataclass(frozen=True)
class ImageRows:
  """How images are varied whenever they are read, for Config.rows.

  least: of an image, the part that a random crop has at least, which is
    enlarged again; 1 for all of it. Half of the crops are mirrored.
  mix: share of an image in its sum with another is drawn from Beta(mix, mix)
    (MixUp, arXiv 1710.09412); 0 for images alone.
  """

  least: float = 0.08
  mix: float = 0.8

  def __post_init__(self) -> None:
    if not 0 < self.least <= 1 or self.mix < 0:
      raise ValueError(
        f'rows.least={self.least} must be in (0, 1] and rows.mix={self.mix}'
        ' not negative.'
      )

  def __call__(
    self, corpus: ImageCorpus, row_length: int, stored: Any = None
  ) -> 'Rows':
    """The rows of a split, one image each."""
    if stored:
      raise ValueError('rows of images take nothing stored beside them.')
    return Rows(corpus, row_length, self)


class Rows:
  """Random access to images as rows of bytes.

  A row is a dictionary of arrays:
    ids: int32 [T], the bytes of the image as data.codec.Bytes has them.
    targets: int32 [1], its class. other: that of the image mixed into it.
    share: float32 [1], of the first of the two.
    documents, mask: ones [1].
  """

  def __init__(
    self, corpus: ImageCorpus, row_length: int, how: ImageRows
  ) -> None:
    size = corpus.size
    if row_length != size.height * size.width * size.channels:
      raise ValueError(
        f'row_length={row_length} must be the bytes of an image of'
        f' {tuple(size)}: set it to {size.height * size.width * size.channels}.'
      )
    self._corpus, self._how = corpus, how

  def __len__(self) -> int:
    return len(self._corpus)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """The image as it is."""
    image = self._corpus.pixels_NHWC[index].astype(np.int32)
    label_1 = self._corpus.labels_N[index : index + 1]
    return {
      'ids': image.reshape(-1) + codec_lib.OFFSET,
      'targets': label_1,
      'other': label_1,
      'share': np.ones(1, np.float32),
      'documents': np.ones(1, np.int32),
      'mask': np.ones(1, np.float32),
    }

  def vary(
    self, row: dict[str, np.ndarray], rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    """The row cropped, perhaps mirrored, and mixed with another."""
    image, changes = self._cropped(row, rng), {}
    if self._how.mix:
      share = rng.beta(self._how.mix, self._how.mix)
      other = self[int(rng.integers(len(self)))]
      image = share * image + (1 - share) * self._cropped(other, rng)
      changes = {
        'other': other['targets'],
        'share': np.full(1, share, np.float32),
      }
    ids = np.rint(image).astype(np.int32).reshape(-1) + codec_lib.OFFSET
    return row | changes | {'ids': ids}

  def _cropped(
    self, row: dict[str, np.ndarray], rng: np.random.Generator
  ) -> np.ndarray:
    """A part of the image at its size, bilinear; float32 of 0 to 255."""
    size = self._corpus.size
    image_HWC = (row['ids'] - codec_lib.OFFSET).reshape(size)
    part = rng.uniform(self._how.least, 1)
    aspect = _LONGEST ** rng.uniform(-1, 1) if part < 1 else 1.0
    height, width = (min((part * x) ** 0.5, 1.0) for x in (1 / aspect, aspect))
    down_HH = _enlarging(size.height, rng.uniform(0, 1 - height), height)
    across_WW = _enlarging(size.width, rng.uniform(0, 1 - width), width)
    if rng.random() < 0.5:
      across_WW = across_WW[::-1]
    lines = image_HWC.astype(np.float32).reshape(size.height, -1)
    return across_WW @ (down_HH @ lines).reshape(size)


def _enlarging(size: int, start: float, part: float) -> np.ndarray:
  """Weights [size, size] that make `size` pixels of a part of them."""
  place = (start + part * (np.arange(size) + 0.5) / size) * size - 0.5
  place = np.clip(place, 0, size - 1)
  apart = np.abs(place[:, None] - np.arange(size)[None])
  return np.maximum(1 - apart, 0).astype(np.float32)
