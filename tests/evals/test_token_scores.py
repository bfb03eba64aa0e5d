"""Scores of tokens against a model whose probabilities are known."""

import jax.numpy as jnp
import numpy as np

from evals import token_scores

V = 7
BOS = 5


def apply(table_VV, ids_BT, documents_BT):
  """Log-odds of the next id by this one and the one before in its document."""
  before_BT = jnp.pad(ids_BT[:, :-1], [(0, 0), (1, 0)])
  same_BT = documents_BT == jnp.pad(documents_BT[:, :-1], [(0, 0), (1, 0)])
  before_BT = jnp.where(same_BT, before_BT, 0)
  return table_VV[ids_BT] + 2 * table_VV[before_BT][..., ::-1]


def by_hand(table_VV, ids, window, stride):
  """p, entropy in bits and rank, each id from its window alone."""
  found = []
  row = [BOS, *ids]
  for place, target in enumerate(ids):
    begin = 0
    while place >= begin + window:
      begin += stride
    before = row[place - 1] if place > begin else 0
    logits_V = table_VV[row[place]] + 2 * table_VV[before][::-1]
    p_V = np.exp(logits_V) / np.exp(logits_V).sum()
    entropy = -(p_V * np.log2(p_V)).sum()
    found.append((p_V[target], entropy, np.sum(p_V > p_V[target])))
  return np.array(found).T


def test_every_token_is_scored_once_from_its_window():
  rng = np.random.default_rng(0)
  table_VV = rng.normal(size=(V, V))
  texts = [rng.integers(0, V, n) for n in (3, 1, 23, 8, 9)]
  expected = np.concatenate(
    [by_hand(table_VV, ids, 8, 6) for ids in texts], axis=1
  )
  setting = {'bos': BOS, 'window': 8, 'stride': 6, 'batch_size': 2}
  table = jnp.asarray(table_VV, jnp.float32)
  found = token_scores.scores(apply, table, texts, **setting)
  for values_N, wanted_N in zip(found, expected, strict=True):
    np.testing.assert_allclose(values_N, wanted_N, rtol=1e-5)
  drawn = np.array([0, 3, 4, 20, 43])
  some = token_scores.scores(apply, table, texts, **setting, drawn=drawn)
  for values_N, wanted_N in zip(some, expected, strict=True):
    np.testing.assert_allclose(values_N, wanted_N[drawn], rtol=1e-5)
