"""Images of TFDS: every pixel and class, variations, and what is refused."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from data import images
from data import pipeline
from data import png
from tests.data import small_images


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_png_files_of_all_filters_are_their_pixels(channels):
  rng = np.random.default_rng(channels)
  shape = (11, 7, channels)
  pixels = rng.integers(0, 256, (6, *shape)).astype(np.uint8)
  files = [
    small_images.write_png(image, (np.arange(11) + first) % 5)
    for first, image in enumerate(pixels)
  ]
  np.testing.assert_array_equal(png.decode(files, shape, 'f'), pixels)


GOOD = small_images.write_png(np.full((3, 2, 1), 7, np.uint8), (0, 1, 2))


@pytest.mark.parametrize(
  ('file', 'words'),
  [
    (b'GIF89a', 'f1 is no whole PNG file'),
    (GOOD[:-6], 'f1 .*a chunk is longer|f1 .*no end'),
    (GOOD[:45] + bytes([GOOD[45] ^ 1]) + GOOD[46:], "f1 .*checksum .*'IDAT'"),
    (
      small_images.write_png(np.zeros((2, 3, 1), np.uint8), (0, 0)),
      r'f1 has width, .*\(3, 2, 8, 0, 0, 0, 0\), not \(2, 3, 8, ',
    ),
    (
      GOOD[:33]
      + small_images.chunk(b'IDAT', b'nonsense')
      + small_images.chunk(b'IEND', b''),
      'f1 is no whole PNG file',
    ),
  ],
  ids=['other', 'cut', 'flipped', 'turned', 'packed'],
)
def test_bad_png_files_are_named(file, words):
  with pytest.raises(ValueError, match=words):
    png.decode([GOOD, file], (3, 2, 1), 'f')


@hypothesis.given(st.binary(max_size=60), st.integers(0, len(GOOD)))
def test_any_bytes_are_pixels_or_refused(noise, place):
  for file in (noise, GOOD[:place] + noise + GOOD[place:]):
    try:
      assert png.decode([file], (3, 2, 1), 'f').shape == (1, 3, 2, 1)
    except ValueError as error:
      assert str(error).startswith('f0 ')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('images')
  return images.Images(
    'small_cifar',
    small_images.prepare(folder / 'tfds'),
    held_out=7,
    directory=str(folder / 'prepared'),
  )


def test_every_image_is_in_one_split_with_its_class(data):
  drawn = {}
  for number in range(small_images.TRAIN + small_images.TEST):
    pixels, label = small_images.draw(number)
    drawn[pixels.tobytes()] = number, label
  sizes, seen = {'train': 33, 'validation': 7, 'test': 10}, set()
  for split, size in sizes.items():
    corpus = data.open(split)
    assert corpus.pixels_NHWC.shape == (size, 32, 32, 3)
    assert corpus.metadata['splits'][split] == {'images': size}
    assert corpus.metadata['classes'] == 10
    for pixels, label in zip(corpus.pixels_NHWC, corpus.labels_N, strict=True):
      number, wanted = drawn[pixels.tobytes()]
      assert label == wanted and number not in seen
      assert (split == 'test') == (number >= small_images.TRAIN)
      seen.add(number)
  assert len(seen) == len(drawn)


def test_whole_images_are_mirrored_at_most(data):
  corpus = data.open('train')
  rows = images.ImageRows(least=1.0, mix=0.0)(corpus, 3072)
  seen = set()
  for i in range(20):
    row = rows.vary(rows[i], np.random.default_rng(i))
    found = row['ids'].reshape(small_images.SHAPE) - 4
    image = corpus.pixels_NHWC[i].astype(np.int32)
    is_mirrored = not np.array_equal(found, image)
    found = found[:, ::-1] if is_mirrored else found
    np.testing.assert_array_equal(found, image)
    assert row['targets'] == row['other'] == corpus.labels_N[i]
    seen.add(is_mirrored)
  assert seen == {False, True}


def test_a_crop_is_bilinear():
  # The middle half of four pixels: read at 0.75, 1.25, 1.75 and 2.25.
  weights = images._enlarging(4, 0.25, 0.5)
  np.testing.assert_allclose(
    weights @ np.array([0, 10, 20, 90.0]), [7.5, 12.5, 17.5, 37.5]
  )
  assert images._enlarging(4, 0.0, 1.0).tolist() == np.eye(4).tolist()


def test_mixed_images_are_weighted_sums_of_two(data):
  corpus = data.open('train')
  rows = images.ImageRows(least=1.0, mix=0.8)(corpus, 3072)
  both = [x.astype(np.float64) for x in corpus.pixels_NHWC]
  both += [x[:, ::-1] for x in both]
  for i in range(5):
    row = rows.vary(rows[i], np.random.default_rng(i))
    found = row['ids'].reshape(small_images.SHAPE) - 4.0
    share, other = float(row['share'][0]), int(row['other'][0])
    errors = [
      np.abs(share * both[j] + (1 - share) * both[k] - found).max()
      for j in (i, i + 33)
      for k in range(66)
      if corpus.labels_N[k % 33] == other
    ]
    assert min(errors) <= 0.501  # Of rounding.


def test_batches_are_pure_functions_of_their_number(data):
  def batches(start):
    dataset = pipeline.batches(
      data.open('train'), row_length=3072, batch_size=8, seed=3,
      rows=images.ImageRows(),
    )  # fmt: skip
    return pipeline.iterate(dataset, start)

  first = [next(it) for it in [batches(0)] for _ in range(6)]
  again = next(batches(5))
  for name, x in again.items():
    np.testing.assert_array_equal(x, first[5][name])
  assert not np.array_equal(first[0]['ids'], first[5]['ids'])
  assert again['ids'].min() >= 4 and again['ids'].max() <= 259
  assert again['share'].shape == again['targets'].shape == (8, 1)


def test_what_does_not_fit_is_named(data, tmp_path):
  with pytest.raises(ValueError, match=r'row_length=64 must .*set it to 3072'):
    images.ImageRows()(data.open('train'), 64)
  with pytest.raises(ValueError, match=r'rows\.least=0 must be in \(0, 1\]'):
    images.ImageRows(least=0)
  with pytest.raises(ValueError, match=r'data\.held_out=0 must be at least 1'):
    images.Images(held_out=0)
  place = str(tmp_path)
  for fields, words in (
    ({'held_out': 40}, r'data\.held_out=40 leaves nothing of the 40 images'),
    ({'image': 'picture'}, r"features \['id', 'image', 'label'\] .*picture"),
    ({'label': 'id'}, 'and None classes; give one of images of one size'),
    ({'name': 'cifar10'}, 'run `tfds build cifar10 --file_format=array_record'),
  ):
    fields = {'name': data.name, 'data_dir': data.data_dir} | fields
    with pytest.raises(ValueError, match=words):
      images.Images(**fields, directory=place).prepare()
