"""What mixing with a corpus is worth, by hand and on a tiny model."""

import math

import jax
import numpy as np
import pytest
from absl import flags
from scipy import special

from bench import mixing
from bench import nest
from bench import quality
from configs import neighbours
from samplers import chain
from samplers import key_store
from samplers import nearest
from samplers import retrieval
from tests.samplers import test_key_store as stores

FILES = [(f'p/{i}.py', bytes([65 + i]) * 9) for i in range(5)]


def test_packages_of_several_files_are_cut_in_two():
  others = [('q.py', b'q'), ('r/a.py', b'r'), ('r/b.py', b'r'), ('e', b'')]
  sides = mixing.divide(FILES[::-1] + others)
  assert sides.stored == FILES[::2] and sides.near == FILES[1::2]
  assert sides.far == others[:3]
  for documents, words in ((others, '0 have 4'), (FILES, '1 have 4 or more')):
    with pytest.raises(ValueError, match=words):
      mixing.divide(documents)


def test_pieces_are_evenly_spaced():
  begun = mixing.cut([('a', b'0123456789'), ('b', b'abc')], 2, 1, 2)
  assert begun == quality.Begun([b'0', b'a'], [b'12', b'bc'])
  with pytest.raises(ValueError, match='no document has 11 bytes; take a'):
    mixing.cut([('a', b'0123456789')], 2, 1, 10)


def test_bits_are_those_of_the_formula():
  p_N, near_N = np.array([0.5, 0.25]), np.array([0.0, 0.75])
  near_GN = np.array([near_N * 0, near_N])
  part = mixing.Scores(p_N, near_GN, np.array([np.inf, 0.3]), 2)
  plain, mixed, mass = mixing.bits([part], 1, 0.3, 0.1)
  # Without a key the model is alone, and at alpha each has one half.
  assert plain.tolist() == [3.0] and mixed.tolist() == [1.0 + 1.0]
  assert mass == 0.25
  assert mixing.bits([part], 1, -np.inf, 0.1)[1:] == (plain, 0.0)


def test_missing_checkpoint_is_one_sentence(monkeypatch):
  monkeypatch.setattr(nest.host, 'keep_memory', lambda: None)
  own = flags.FlagValues()
  given = nest.define_flags(own)
  own(['nest'])
  with pytest.raises(SystemExit, match=r'bench\.nest: --checkpoint is'):
    nest.main(given)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  path = tmp_path_factory.mktemp('bench') / 'store'
  key_store.build(path, stores.RUN, stores.DOCUMENTS, stores.OPTIONS)
  store = neighbours.open_store(str(path), stores.RUN)
  rule = nearest.Nest(neighbours=5, delta=1.0, gamma=0.0, span=4)
  return neighbours.Corpus(store, rule, retrieval.Retrieval(passages=3))


@pytest.mark.slow
def test_scores_are_those_of_a_plain_loop(corpus):
  begun = quality.Begun([b'import os\np'], [b'rint'])
  [found] = mixing.score(stores.RUN, corpus, begun)
  ids = np.array([[1, *(b + 4 for b in b'import os\nprint')]], np.int32)
  x_TD = np.asarray(stores.final_block(stores.RUN.params, ids), np.float64)[0]
  scale = np.asarray(stores.RUN.params['block_0']['feed_forward_norm']['scale'])
  key_TD = x_TD / np.sqrt(np.mean(x_TD**2, axis=1, keepdims=True) + 1e-5)
  key_TD *= scale
  logits_TV = stores.small_lm.forward(stores.MODEL, stores.RUN.params, ids)[0]
  p_TV = special.softmax(np.asarray(logits_TV, np.float64), axis=1)
  held = retrieval.read_index(corpus.store)
  chosen = retrieval.choose(
    corpus.store, held, begun.prompts[0], key_TD[4:12].mean(axis=0),
    corpus.search,
  )  # fmt: skip
  places = np.concatenate(
    [
      np.arange(start, start + length)
      for start, length in zip(
        *(x[chosen] for x in corpus.store.passages[1:]), strict=True
      )
    ]
  )
  keys = np.stack([corpus.store.keys.read(p, p + 1)[0] for p in places])
  for n in range(4):
    query_D = key_TD[11 + n]
    distance = np.sum((keys - query_D) ** 2, axis=1)
    near = np.argsort(distance)[:5]
    weight = special.softmax(-distance[near] / math.sqrt(32))
    fits = corpus.store.texts.ids_N[places[near]] == ids[0, 12 + n]
    assert found.p_N[n] == pytest.approx(p_TV[11 + n, ids[0, 12 + n]], rel=1e-3)
    assert found.near_p_GN[0, n] == pytest.approx(weight[fits].sum(), abs=1e-3)
    ratio = distance[near].min() / distance[near].max()
    assert found.ratio_N[n] == pytest.approx(ratio, abs=1e-3)


@pytest.mark.slow
def test_both_ways_make_texts_of_one_length(corpus):
  begun = quality.Begun([b'import os\np', b'for n'], [b'rint', b'ame '])
  stores.RUN.config.sampler = chain.parse('greedy')
  contest = nest.Contest(
    stores.RUN, None, corpus.store, chain.parse('temperature(1)'), 8
  )
  rules = {'x': (corpus.rule, corpus.search)}
  documents, plain, copied = contest.rows(rules, begun, 1)
  assert documents['bytes/s'] == '-' and plain['copied'] == '-'
  assert copied['copied'] != '0%' and copied['bytes/s'].median > 0
  assert jax.tree.structure(list(plain)) == jax.tree.structure(list(copied))
