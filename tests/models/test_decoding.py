"""Cached decoding of the byte transformer against its forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import lm
from models import masks
from models import positions
from models import recall
from tests.models import small_lm

_WINDOW = (masks.Causal(window=5),)
_FAR = recall.RecallEmbedding(sizes=(1, 3), reach=100)  # More than a cache has.
_MODELS = {
  'every_layer_its_mask': lm.ByteLM(**small_lm.SIZES, **small_lm.EXTRAS),
  'scanned_tied_and_normed': lm.ByteLM(
    **(small_lm.SIZES | small_lm.EXTRAS | {'masks': _WINDOW, 'recall': _FAR}),
    tie_head=True,
    query_key_norm=True,
    scan_layers=True,
  ),
  'one_key_and_value': lm.ByteLM(
    **(small_lm.SIZES | {'key_value_heads': 1, 'layers': 1}),
    masks=(masks.Causal(window=1),),
  ),
  'lambda': lm.ByteLM(
    **(
      small_lm.SIZES
      | {'masks': (masks.Lambda(2, 5, top_k=2), masks.Lambda(3, 4))}
    )
  ),
  'lambda_scanned_alibi': lm.ByteLM(
    **small_lm.SIZES,
    masks=(masks.Lambda(n_global=3, n_local=6, sinks='cache'),),
    position=positions.Alibi(),
    scan_layers=True,
  ),
}
_LENGTH = 40


@pytest.fixture(params=_MODELS, scope='module')
def model(request):
  return _MODELS[request.param]


def _feed(model, params, ids_BT, counts):
  """Decodes counts[i][b] tokens of row b in call i; yields what it yields."""
  cache = jax.jit(lambda: model.init_cache(len(ids_BT), _LENGTH))()
  at = np.zeros(len(ids_BT), int)
  for count in np.asarray(counts):
    # A width is compiled once; what it does not need is padding.
    width = 1 if count.max() == 1 else 9
    real = np.arange(width)[None] < count[:, None]
    # Garbage where there is padding: it must not be seen.
    part = np.full((len(ids_BT), width), 7, np.int32)
    for row, (start, stop) in enumerate(zip(at, at + count, strict=True)):
      part[row, : stop - start] = ids_BT[row, start:stop]
    logits, cache = small_lm.step(
      model, params, part, real.astype(np.int32), cache
    )
    at += count
    yield np.asarray(logits), at, cache


def test_ragged_chunks_and_steps_equal_the_forward(model):
  params = small_lm.draw(model)
  ids_BT = np.asarray(small_lm.ids(3, _LENGTH))
  expected = np.asarray(small_lm.forward(model, params, ids_BT))
  prompt, chunk = [9, 3, 1], [4, 0, 9]
  singles = [[1, 1, 1]] * 6 + [[0, 1, 1], [1, 0, 1], [1, 1, 0]] * 3
  counts = np.array([prompt, *singles, chunk, *singles[:8]])
  assert (counts.sum(0) <= _LENGTH).all(), counts.sum(0)
  assert (counts.sum(0) > 4 * 5).all(), 'each ring wraps around'
  for call, (logits, at, cache) in enumerate(
    _feed(model, params, ids_BT, counts)
  ):
    np.testing.assert_array_equal(cache.length_B, at)
    for row, count in enumerate(counts[call]):
      np.testing.assert_allclose(
        logits[row, :count],
        expected[row, at[row] - count : at[row]],
        atol=2e-4,
        err_msg=f'call {call}, row {row}',
      )


def _by_row(cache, scanned):
  layers = cache.layers
  if scanned:
    layers = jax.tree.map(lambda x: x.swapaxes(0, 1), layers)
  return [np.asarray(x) for x in jax.tree.leaves(cache._replace(layers=layers))]


def test_padding_leaves_a_row_as_it_is(model):
  params = small_lm.draw(model)
  ids_BT = np.asarray(small_lm.ids(3, _LENGTH))
  *_, (_, _, before) = _feed(model, params, ids_BT, [[9, 3, 1], [1, 1, 1]])
  for width in (1, 9):
    documents_BT = np.zeros((3, width), np.int32)
    documents_BT[1, 0] = 1
    logits, after = small_lm.step(
      model, params, np.full((3, width), 9, np.int32), documents_BT, before
    )
    assert np.isfinite(np.asarray(logits)).all()
    rows = (_by_row(x, model.scan_layers) for x in (before, after))
    for old, new in zip(*rows, strict=True):
      np.testing.assert_array_equal(old[[0, 2]], new[[0, 2]])
    read = np.asarray(after.length_B) - np.asarray(before.length_B)
    np.testing.assert_array_equal(read, [0, 1, 0])


def test_a_windowed_cache_is_as_small_as_its_window():
  model = _MODELS['every_layer_its_mask']
  windowed, whole = model.init_cache(2, _LENGTH).layers
  assert windowed.key_BGSK.shape == (2, 2, 5, 8)
  assert whole.key_BGSK.shape == (2, 2, _LENGTH, 8)


def test_bfloat16_decoding_stays_close_to_its_forward():
  sizes = small_lm.SIZES | {'layers': 1}
  model = lm.ByteLM(**sizes, masks=_WINDOW, dtype='bfloat16')
  params = jax.tree.map(lambda x: np.asarray(x) * 0.5, small_lm.draw(model))
  ids_BT = np.asarray(small_lm.ids(3, _LENGTH))
  expected = np.asarray(small_lm.forward(model, params, ids_BT))
  assert expected.dtype == np.float32
  counts = [[9, 9, 9]] + [[1, 1, 1]] * 8
  for logits, at, cache in _feed(model, params, ids_BT, counts):
    assert cache.layers[0].key_BGSK.dtype == jnp.bfloat16
    np.testing.assert_allclose(
      logits[0, -1], expected[0, at[0] - 1], atol=0.02 * np.abs(expected).max()
    )
