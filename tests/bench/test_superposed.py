"""Superposed drafts against samples, on a tiny model."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from bench import quality
from bench import superposed
from configs import restore
from data import codec
from samplers import chain
from samplers import ngram_tables
from samplers import superposed as superposed_lib
from tests.evals import test_sample_quality
from tests.models import small_lm

MODEL = small_lm.lm.ByteLM(**small_lm.SIZES)
PROMPTS = [b'for i in', b'while a', b'x']


@pytest.fixture(scope='module')
def contest():
  text = b'for i in range: while a < x: x += i'
  config = types.SimpleNamespace(
    model=MODEL, data=types.SimpleNamespace(codec=codec.Bytes())
  )
  return superposed.Contest(
    restore.Run(config, small_lm.draw(MODEL), 7),
    ngram_tables.build([codec.encode(text)]),
    superposed_lib.Superposed(drafts=2),
    3,
    chain.parse('top_k(1)'),
  )


def test_perplexity_is_of_all_texts_and_of_the_best(contest, monkeypatch):
  p, q = 0.5, 0.5 / 259
  run = contest.run._replace(params=jnp.float32(p))
  contest = contest._replace(run=run)
  monkeypatch.setattr(
    superposed.forward, 'pure', lambda model: test_sample_quality.by_last
  )
  texts = {'draft': [b'bc', b'ba', b'bb', b'bc'], 'sample': [b'ba'] * 4}
  monkeypatch.setattr(superposed, 'draft', lambda *_: texts['draft'])
  monkeypatch.setattr(superposed, 'sample', lambda *_: texts['sample'])
  begun = quality.Begun([b'xa', b'a'], [b'', b''])
  drafts, samples = superposed.perplexities(contest, begun)
  # Of eight ids two are unlikely, and none in the best draft of each prompt.
  every = p ** (-6 / 8) * q ** (-2 / 8)
  assert drafts['perplexity'] == f'{every:.2f}'
  assert drafts['of the best of each prompt'] == '2.00'
  assert drafts['of the first of each prompt'] == f'{(p**3 * q) ** -0.25:.2f}'
  assert samples['perplexity'] == f'{(p * q) ** -0.5:.2f}'
  assert drafts['texts'] == 'superposed, 2 drafts'


@pytest.mark.slow
def test_both_sides_make_so_many_texts(contest):
  drafts = superposed.draft(contest, PROMPTS)
  samples = superposed.sample(contest, PROMPTS, 2)
  assert len(drafts) == len(samples) == 6
  # One id is kept, so that the samples of a prompt are the same.
  assert samples[0] == samples[1] and drafts[0] != drafts[1]
  ids = np.concatenate([[codec.BOS], codec.encode(PROMPTS[0] + samples[0])])
  logits = np.asarray(small_lm.forward(MODEL, contest.run.params, ids[None])[0])
  start = len(PROMPTS[0])
  np.testing.assert_array_equal(
    logits[start:-1].argmax(axis=1), ids[start + 1 :]
  )
  one, eight = superposed.speeds(contest, PROMPTS, 1)
  assert (one['prompts'], eight['prompts']) == (1, 8)
  for row in (one, eight):
    assert row['over samples in one batch'].median > 0


def test_missing_checkpoint_is_one_sentence(monkeypatch):
  monkeypatch.setattr(superposed.host, 'keep_memory', lambda: None)
  own = flags.FlagValues()
  given = superposed.define_flags(own)
  own(['superposed'])
  with pytest.raises(SystemExit, match='superposed: --checkpoint is missing'):
    superposed.main(given)
