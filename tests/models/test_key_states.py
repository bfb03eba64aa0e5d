"""Keys of whole rows and of decoding, of every model that has them."""

import jax
import numpy as np
import pytest

from models import key_states
from models import lm
from tests.models import small_lm
from tests.models import test_byte_latent as latent
from tests.models import test_patched as patches


@pytest.mark.slow
def test_scanned_layers_have_the_keys_of_the_last():
  model = lm.ByteLM(**small_lm.SIZES)
  params, ids = small_lm.draw(model), small_lm.ids(2, 9)
  read = jax.jit(key_states.step(model))
  (logits, keys), _ = read(params, ids, np.ones_like(ids))
  stacked = small_lm.stack(params, model.layers)
  scanned = jax.jit(key_states.step(model.clone(scan_layers=True)))
  (_, others), _ = scanned(stacked, ids, np.ones_like(ids))
  assert keys.shape == (2, 9, key_states.width(model))
  np.testing.assert_allclose(keys, others, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    logits, small_lm.forward(model, params, ids), rtol=1e-4, atol=1e-5
  )


@pytest.mark.slow
def test_a_patched_model_decodes_with_the_keys_of_whole_rows():
  params, threshold = patches.drawn(patches.NGRAMS)
  model = patches.with_entropy(patches.NGRAMS, threshold)
  ids = latent.text_ids(0)[:2]
  whole = jax.jit(key_states.step(key_states.for_rows(model)))
  (logits, keys), _ = whole(params, ids, np.ones_like(ids))
  assert keys.shape == (*ids.shape, key_states.width(model))
  decode = jax.jit(key_states.step(model))
  cache = model.init_cache(2, ids.shape[1])
  parts = []
  for first, stop in ((0, 5), (5, 6), (6, 9), (9, 12)):
    part = ids[:, first:stop]
    (more, found), cache = decode(params, part, np.ones_like(part), cache)
    np.testing.assert_allclose(
      more, logits[:, first:stop], rtol=1e-3, atol=1e-3
    )
    parts.append(found)
  np.testing.assert_allclose(
    np.concatenate(parts, axis=1), keys[:, :12], rtol=1e-3, atol=1e-3
  )
