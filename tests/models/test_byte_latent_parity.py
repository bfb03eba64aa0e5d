"""The byte latent transformer against the one of transformers."""

import jax
import numpy as np
import pytest
import torch

from models import forward
from models import patching
from released import blt
from released import fields
from released import layouts
from released import tensor_files
from tests.released import small_blt


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
  """Our model and parameters of `small_blt.make()`."""
  path = small_blt.save(tmp_path_factory.mktemp('parity') / 'blt')
  model = blt.model(fields.read(path))
  plan = layouts.plan(model, blt.leaves(model))
  return model, layouts.load(plan, tensor_files.scan(path))


def padded_lengths(starts):
  """Patch lengths of rows of starts, zeros at the right."""
  rows = [np.diff([*np.flatnonzero(row), len(row)]) for row in starts]
  longest = max(map(len, rows))
  return np.stack([np.pad(row, (0, longest - len(row))) for row in rows])


def test_logits_of_a_batch_with_given_patches(imported):
  model, params = imported
  model = model.model.copy(
    patching=patching.Patching(patching.Space(), max_length=6)
  )
  ids = small_blt.text_ids(1, (4, 32))
  starts = jax.jit(model.patching.starts)(ids, np.ones_like(ids))
  expected = small_blt.logits(
    small_blt.make(), ids, patch_lengths=torch.tensor(padded_lengths(starts))
  )
  apply = jax.jit(forward.pure(model))
  found = apply(params['model'], ids, np.ones_like(ids))
  assert np.std(expected) > 0.3
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_entropies_and_their_patches(imported):
  model, params = imported
  ids = small_blt.text_ids(2, (4, 32))
  apply = jax.jit(forward.pure(model.entropy.lm))
  ours = np.asarray(
    patching.entropy(apply(params['entropy']['lm'], ids, np.ones_like(ids)))
  )
  ordered = np.sort(ours[:, 1:].ravel())
  gap = np.argmax(np.diff(ordered[40:80])) + 40
  threshold = float(ordered[gap : gap + 2].mean())
  with torch.no_grad():
    theirs, lengths, _ = small_blt.make().model.patcher(
      torch.tensor(ids, dtype=torch.long),
      patch_size=4,
      threshold=threshold,
      max_patch_length=6,
    )
  np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
  rule = patching.Patching(patching.Entropy(threshold), max_length=6)
  starts = jax.jit(rule.starts)(ids, np.ones_like(ids), ours)
  # Theirs drop the patch of the byte to come in the row with most patches.
  width = lengths.shape[1]
  found = padded_lengths(starts)
  np.testing.assert_array_equal(found[:, :width], lengths.numpy())
  assert found[:, width:].sum() <= 1
