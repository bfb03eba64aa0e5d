"""A TFDS dataset with the features of CIFAR-10, and a writer of PNG files."""

import struct
import zlib

import numpy as np
import tensorflow_datasets as tfds

SHAPE = (32, 32, 3)
TRAIN, TEST = 40, 10


def write_png(pixels_HWC, filters):
  """A PNG file whose row y is filtered by filters[y], from the definitions."""
  height, width, channels = pixels_HWC.shape
  rows = b''
  # Zeros stand to the left of and above the image.
  padded = np.pad(pixels_HWC.astype(int), ((1, 0), (1, 0), (0, 0)))
  for y, kind in enumerate(filters):
    left, above, corner = padded[y + 1, :-1], padded[y, 1:], padded[y, :-1]
    guess = left + above - corner
    # The first of those nearest to the guess.
    near = np.stack([left, above, corner])
    index = np.abs(near - guess).argmin(axis=0)
    paeth = np.take_along_axis(near, index[None], axis=0)[0]
    known = (0 * left, left, above, (left + above) // 2, paeth)[kind]
    rows += bytes([kind])
    rows += ((padded[y + 1, 1:] - known) % 256).astype(np.uint8).tobytes()
  colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
  header = struct.pack('>IIBBBBB', width, height, 8, colour, 0, 0, 0)
  return b'\x89PNG\r\n\x1a\n' + b''.join(
    chunk(kind, content)
    for kind, content in (
      (b'IHDR', header),
      (b'IDAT', zlib.compress(rows)),
      (b'IEND', b''),
    )
  )


def chunk(kind, content):
  checksum = struct.pack('>I', zlib.crc32(kind + content))
  return struct.pack('>I', len(content)) + kind + content + checksum


def draw(number):
  """The pixels and the class of an image, whose class decides on its colour."""
  rng = np.random.default_rng(number)
  label = number % 10
  colour = np.random.default_rng(label).integers(40, 216, 3)
  return (colour + rng.integers(-30, 31, SHAPE)).astype(np.uint8), label


class SmallCifar(tfds.core.GeneratorBasedBuilder):
  """Features and splits of cifar10; images with classes to be learned."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {
      'id': tfds.features.Text(),
      'image': tfds.features.Image(shape=SHAPE),
      'label': tfds.features.ClassLabel(num_classes=10),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {
      'train': self._generate_examples(0, TRAIN),
      'test': self._generate_examples(TRAIN, TEST),
    }

  def _generate_examples(self, first, count):
    for number in range(first, first + count):
      pixels, label = draw(number)
      filters = (number + np.arange(SHAPE[0])) % 5
      # Given as bytes, since encoding takes TensorFlow.
      image = write_png(pixels, filters)
      yield number, {'id': str(number), 'image': image, 'label': label}


def prepare(folder):
  """Writes the dataset below a folder, for data.images.Images.data_dir."""
  tfds.disable_progress_bar()
  SmallCifar(data_dir=folder, file_format='array_record').download_and_prepare()
  return str(folder)
