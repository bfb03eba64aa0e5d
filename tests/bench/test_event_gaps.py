"""A column's posterior from the probabilities of whole events."""

import numpy as np

from bench import event_gaps
from tests.data import event_tables


def test_the_posterior_is_the_joint_divided_by_its_sum():
  tokenizer = event_tables.TOKENIZER
  places, amounts, _ = tokenizer.sizes_C
  rng = np.random.default_rng(0)
  joint_PA = rng.dirichlet(np.ones(places * amounts)).reshape(places, amounts)

  def ask(ids_BC, numbers_BC):
    assert (numbers_BC[:, 1] == 0.25).all()
    logits = np.full((len(ids_BC), 3, tokenizer.vocabulary), 7.0)
    logits[:, 0, :places] = np.log(joint_PA.sum(1)) + 3
    rows_BA = joint_PA[ids_BC[:, 0]]
    logits[:, 1, places : places + amounts] = np.log(rows_BA) - 1
    return logits

  event = np.array([9, 2, 4]), np.array([0, 0.25, 0])
  values = np.array([2, 3, 3]), np.zeros(3), np.array([1, 0.25, 0.75])
  found = event_gaps.posterior(ask, tokenizer, event, 0, values)
  expected = joint_PA[2:4, 2] / joint_PA[2:4, 2].sum()
  np.testing.assert_allclose(found, [0, 0, *expected])
