"""Other masks for models as they are."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import byte_latent
from models import forward
from models import lm
from models import masks
from models import patched
from models import patching
from models import stacks
from models import unlimited
from tests.models import small_lm

MASK = masks.Lambda(n_global=2, n_local=7)


def test_only_layers_without_limit_change_and_parameters_fit():
  model = lm.ByteLM(**small_lm.SIZES, **small_lm.EXTRAS, max_length=20)
  found = unlimited.read_with(model, MASK)
  assert found.masks == (masks.Causal(window=5), MASK)
  assert found.max_length is None
  params = small_lm.draw(model)
  ids = np.asarray(small_lm.ids(2, 40))
  plain, limited = (
    np.asarray(jax.jit(forward.pure(m))(params, ids, np.ones_like(ids)))
    for m in (model, found)
  )
  np.testing.assert_allclose(limited[:, :7], plain[:, :7], atol=2e-4)
  assert np.abs(limited[:, 12:] - plain[:, 12:]).max() > 1e-2


def test_every_part_of_a_patched_model_is_changed():
  stack = stacks.Stack(width=16, layers=1, heads=2, hidden=16)
  model = patched.Patched(
    model=byte_latent.ByteLatent(
      encoder=stack.copy(masks=(masks.Causal(3),)), latent=stack, decoder=stack
    ),
    entropy=None,
  )
  inner = unlimited.read_with(model, MASK).model
  assert inner.encoder.masks == (masks.Causal(3),)
  assert inner.latent.masks == inner.decoder.masks == (MASK,)


def test_the_cache_of_patches_of_any_length_is_bounded():
  stack = stacks.Stack(width=16, layers=1, heads=2, hidden=16)
  whole = patching.Patching(patching.Space(), max_length=None)
  model = byte_latent.ByteLatent(
    encoder=stack, latent=stack, decoder=stack, patching=whole
  )
  found = unlimited.read_with(model, MASK)
  assert found.patching == dataclasses.replace(whole, max_length=7)
  assert unlimited.read_with(model, masks.Causal()).patching == whole
  short = model.clone(patching=patching.Patching(patching.Space(), 5))
  assert unlimited.read_with(short, MASK).patching.max_length == 5

  def sizes(model, length):
    return jax.tree.map(
      jnp.shape, jax.eval_shape(lambda: model.init_cache(1, length))
    )

  assert sizes(model, 640) != sizes(model, 6400)
  assert sizes(found, 640) == sizes(found, 6400)


def test_a_limit_of_a_part_is_checked_against_the_rows_of_the_whole():
  stack = stacks.Stack(width=16, layers=1, heads=2, hidden=16)
  model = byte_latent.ByteLatent(
    encoder=stack.copy(masks=(MASK,)), latent=stack, decoder=stack, max_length=7
  )
  unlimited.check(model)
  with pytest.raises(ValueError, match=r'n_local=7 exceeds the cache, .*=6'):
    unlimited.check(model.clone(max_length=6))


def test_a_limit_is_taken_off_and_changed():
  model = lm.ByteLM(**small_lm.SIZES, masks=(MASK, masks.Causal(3)))
  for text, mask in (
    ('off', masks.Causal()),
    ('4,9,2', masks.Lambda(n_global=4, n_local=9, top_k=2)),
  ):
    found = unlimited.read_with(model, unlimited.parse(text))
    assert found.masks == (mask, masks.Causal(3))
  assert unlimited.read_with(found, MASK) == model


class Absolute(nn.Module):
  masks: tuple = (masks.Causal(),)
  position: str = 'learned'


@pytest.mark.parametrize(
  ('model', 'words'),
  [
    (Absolute(), "position='learned', but distances"),
    (nn.Dense(3), 'has no layer that looks back'),
    (
      lm.ByteLM(**small_lm.SIZES, masks=(masks.Causal(4),)),
      'has no layer that looks back',
    ),
  ],
)
def test_models_without_anything_to_limit_are_named(model, words):
  with pytest.raises(ValueError, match=words):
    unlimited.read_with(model, MASK)


@pytest.mark.parametrize(
  ('sizes', 'words'),
  [((9, 4), 'n_global=9 exceeds'), ((1, 9), 'n_local=9 exceeds')],
)
def test_masks_larger_than_the_cache_are_named(sizes, words):
  mask = masks.Lambda(*sizes)
  model = lm.ByteLM(**small_lm.SIZES, max_length=8)
  whole = f'mask.{words} the cache, which holds model.max_length=8 ids; lower'
  for made, check in (
    (model, lambda model: unlimited.read_with(model, mask)),
    (model.clone(masks=(mask,)), unlimited.check),
  ):
    with pytest.raises(ValueError, match='exceeds the cache') as error:
      check(made)
    assert str(error.value).startswith(whole)
    check(made.clone(max_length=9))


@pytest.mark.parametrize('text', ['', '7', 'a,b', '1,2,3,4', '0,5', 'on'])
def test_flags_that_are_no_mask(text):
  with pytest.raises(ValueError, match=r'--lambda=|n_global=0'):
    unlimited.parse(text)
