"""The byte transformer against transformers' Llama and against itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from bench import shapes
from models import lm
from models import masks
from tests.models import small_lm


@pytest.mark.parametrize('tied', [False, True])
def test_agrees_with_transformers_llama(tied):
  config = transformers.LlamaConfig(
    vocab_size=260,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    rms_norm_eps=1e-5,
    tie_word_embeddings=tied,
    attn_implementation='eager',
  )
  model = lm.ByteLM(**small_lm.SIZES, tie_head=tied)
  params = small_lm.draw(model)
  llama = transformers.LlamaForCausalLM(config).eval()

  weights = shapes.llama_weights(params, 2)
  names = {name: torch.from_numpy(x) for name, x in weights.items()}
  missing = llama.load_state_dict(names, strict=False)
  assert set(missing.missing_keys) <= ({'lm_head.weight'} if tied else set())
  assert not missing.unexpected_keys

  ids = np.asarray(small_lm.ids(3, 17, high=260))
  with torch.no_grad():
    expected = llama(torch.tensor(ids).long()).logits.numpy()
  scale = np.abs(expected).max()
  found = small_lm.forward(model, params, ids)
  np.testing.assert_allclose(found, expected, atol=1e-4 * scale)
  cache = jax.jit(lambda: model.init_cache(3, 17))()
  pieces = []
  for part in (ids[:, :9], *(ids[:, i : i + 1] for i in range(9, 17))):
    logits, cache = small_lm.step(
      model, params, part, np.ones_like(part), cache
    )
    pieces.append(logits)
  np.testing.assert_allclose(
    np.concatenate(pieces, axis=1), expected, atol=1e-4 * scale
  )


def test_a_byte_changes_nothing_before_it():
  model = lm.ByteLM(**small_lm.SIZES, **small_lm.EXTRAS)
  params = small_lm.draw(model)
  # The shape of the test below, which needs documents.
  ids = np.asarray(small_lm.ids(3, 24))
  ones = np.ones_like(ids)
  before = np.asarray(small_lm.forward(model, params, ids, ones))
  for place in (0, 7, 23):
    changed = ids.copy()
    changed[0, place] = 200
    after = np.asarray(small_lm.forward(model, params, changed, ones))
    np.testing.assert_array_equal(before[0, :place], after[0, :place])
    assert np.abs(before[0, place] - after[0, place]).max() > 1e-3


def test_packed_documents_equal_separate_rows():
  model = lm.ByteLM(**small_lm.SIZES, **small_lm.EXTRAS)
  params = small_lm.draw(model)
  ids = np.asarray(small_lm.ids(3, 24))
  documents = np.array([[1] * 7 + [2] * 12 + [3] * 3 + [0] * 2] * 3, np.int32)
  packed = np.asarray(small_lm.forward(model, params, ids, documents))
  rows = ((0, 7), (7, 19), (19, 22))
  alone_ids, alone_documents = np.full((2, 3, 24), [[[9]], [[0]]], np.int32)
  for row, (start, stop) in enumerate(rows):
    alone_ids[row, : stop - start] = ids[0, start:stop]
    alone_documents[row, : stop - start] = 1
  alone = np.asarray(
    small_lm.forward(model, params, alone_ids, alone_documents)
  )
  for row, (start, stop) in enumerate(rows):
    np.testing.assert_allclose(
      packed[0, start:stop], alone[row, : stop - start], atol=2e-4
    )


def test_scanned_layers_equal_unrolled_ones():
  plain = lm.ByteLM(**small_lm.SIZES)
  params = small_lm.draw(plain)
  stacked = small_lm.stack(params, 2)
  ids = small_lm.ids(2, 12)
  expected = small_lm.forward(plain, params, ids)
  scanned = lm.ByteLM(**small_lm.SIZES, scan_layers=True, remat=True)
  np.testing.assert_allclose(
    small_lm.forward(scanned, stacked, ids), expected, atol=1e-4
  )


def test_rematerialised_gradients_are_the_same():
  ids = small_lm.ids(2, 12)
  plain, remat = (lm.ByteLM(**small_lm.SIZES, remat=r) for r in (False, True))
  params = small_lm.draw(plain)

  def gradient(model):
    def loss(params):
      return jnp.sum(jnp.sin(model.apply({'params': params}, ids)[0]))

    return jax.jit(jax.grad(loss))(params)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
    gradient(plain),
    gradient(remat),
  )


def test_embeddings_and_intermediates_can_be_reached():
  model = lm.ByteLM(**small_lm.SIZES)
  params = small_lm.draw(model)
  ids = np.asarray(small_lm.ids(2, 12))
  embeds = np.asarray(params['embed']['embedding'])[ids]

  @jax.jit
  def apply(params, ids, embeds):
    return model.apply(
      {'params': params}, ids, None, None, embeds, mutable=['intermediates']
    )

  (logits, _), seen = jax.device_get(apply(params, ids, embeds))
  np.testing.assert_allclose(
    logits, small_lm.forward(model, params, ids), atol=1e-4
  )
  (final,) = seen['intermediates']['final']
  np.testing.assert_allclose(
    final @ np.asarray(params['head']['kernel']), logits, atol=1e-3
  )
  assert seen['intermediates']['block_1']['output'][0].shape == (2, 12, 32)


@pytest.mark.parametrize(
  ('fields', 'word'),
  [
    ({'heads': 5}, 'divide'),
    ({'key_value_heads': 3}, 'divide'),
    (
      {'scan_layers': True, 'masks': (masks.Causal(), masks.Causal(window=3))},
      'scan_layers',
    ),
  ],
)
def test_sizes_that_do_not_fit_are_named(fields, word):
  model = lm.ByteLM(**(small_lm.SIZES | fields))
  with pytest.raises(ValueError, match=word):
    jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 4), np.int32))
