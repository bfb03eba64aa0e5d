"""Other masks for models as they are."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from models import byte_latent
from models import forward
from models import lm
from models import masks
from models import patched
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


@pytest.mark.parametrize('text', ['', '7', 'a,b', '1,2,3', '0,5'])
def test_flags_that_are_no_mask(text):
  with pytest.raises(ValueError, match=r'--lambda=|n_global=0'):
    unlimited.parse(text)
