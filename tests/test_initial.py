"""Runs that begin with parameters of another, or with fitted ones."""

import dataclasses

import jax
import numpy as np
import pytest

import train
from configs import initial
from configs import restore
from models import byte_latent
from models import ngram_entropy
from models import patched
from models import patching
from models import stacks
from tests import tiny_runs
from training import metrics

STACK = stacks.Stack(width=16, layers=1, heads=2, hidden=16)


def patched_model(entropy, threshold=0.9):
  return patched.Patched(
    entropy,
    byte_latent.ByteLatent(
      encoder=STACK,
      latent=STACK.copy(width=32),
      decoder=STACK,
      patching=patching.Patching(
        patching.Entropy(threshold), max_length=4
      ),
      reserve=1.0,
    ),
  )


@pytest.fixture(scope='module', autouse=True)
def _draw_initial():
  with pytest.MonkeyPatch.context() as patch:
    tiny_runs.draw_initial(patch, train)
    yield


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  return tiny_runs.write_texts(tmp_path_factory.mktemp('initial') / 'texts')


@pytest.fixture(scope='module')
def entropy_run(texts, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('entropy')
  train.train(tiny_runs.make_config(texts, evals=()), str(workdir))
  return workdir


def config_of(texts, entropy, source, **rule):
  config = tiny_runs.make_config(
    texts, model=patched_model(entropy, **rule), initial=(source,)
  )
  optimizer = dataclasses.replace(config.optimizer, frozen=('^entropy/',))
  return dataclasses.replace(config, optimizer=optimizer)


def test_entropies_of_another_run_are_stored_and_frozen(
  texts, entropy_run, tmp_path
):
  config = config_of(
    texts,
    patched.LMEntropy(tiny_runs.MODEL),
    initial.FromRun('entropy/lm', str(entropy_run)),
  )
  assert train.train(config, str(tmp_path)) == config.steps
  corpus = config.data.open('train')
  (stored,) = corpus.path.glob('entropy_*')
  params = restore.restore(tmp_path).params
  theirs = restore.restore(entropy_run).params
  jax.tree.map(
    np.testing.assert_array_equal, params['entropy']['lm'], theirs
  )
  bits = [line.get('train/bits_per_byte') for line in metrics.read(tmp_path)]
  bits = [value for value in bits if value is not None]
  assert bits[-1] < bits[0] - 0.1
  # It goes on without the other run, which the checkpoint has the weights of.
  more = dataclasses.replace(config, checkpoint_every=5)
  assert train.train(more, str(tmp_path)) == config.steps
  assert len(list(corpus.path.glob('entropy_*'))) == 1
  count = len(np.load(stored / 'numbers.npy'))
  assert count == len(corpus.bytes) + 2 * len(corpus)


def test_n_grams_are_fitted_to_the_train_split(texts, tmp_path, caplog):
  entropy = ngram_entropy.NgramEntropy(sizes=(1, 2), rows=512)
  config = config_of(
    texts, entropy, initial.FitNgramEntropy(), threshold=99.0
  )
  config = dataclasses.replace(config, steps=4, evals=())
  with caplog.at_level('WARNING', 'absl'):
    train.train(config, str(tmp_path))
  # No patch ends before it is cut at four bytes, and it says so once.
  said = [record.getMessage() for record in caplog.records]
  (warning,) = [text for text in said if 'threshold=99' in text]
  assert 'model.model.patching.rule.threshold' in warning
  tables = restore.restore(tmp_path).params['entropy']
  # Ten letters, the space and the begin mark; a word's last letter is followed
  # by a space, and each word begins with one of four.
  seen = np.asarray(tables['table_1'])
  assert 10 <= (seen >= 0).sum() <= 14
  assert seen[seen >= 0].min() < 0.2
  assert 0.5 < seen.max() < np.log(256)


@pytest.mark.parametrize(
  ('entropy', 'source', 'words'),
  [
    (
      tiny_runs.MODEL.clone(vocabulary_size=300),
      initial.FromRun('entropy/lm', '{run}'),
      r'entropy/lm/embed/embedding is \(300, 16\) in this config but'
      r' \(260, 16\) in .*sizes and vocabulary',
    ),
    (
      tiny_runs.MODEL.clone(layers=2),
      initial.FromRun('entropy/lm', '{run}'),
      'entropy/lm/block_1/.* but absent in',
    ),
    (
      tiny_runs.MODEL,
      initial.FromRun('entropy/llm', '{run}'),
      "this config has no parameters 'entropy/llm' .*among lm",
    ),
    (
      tiny_runs.MODEL,
      initial.FromRun('entropy/lm', '{run}', source='lm'),
      "has no parameters 'lm'",
    ),
  ],
)
def test_parameters_that_do_not_fit_are_named(
  texts, entropy_run, entropy, source, words
):
  source = dataclasses.replace(source, directory=str(entropy_run))
  config = config_of(texts, patched.LMEntropy(entropy), source)
  ids = jax.ShapeDtypeStruct((1, 8), np.int32)
  shapes = jax.eval_shape(config.model.init, jax.random.key(0), ids)
  with pytest.raises(ValueError, match=words):
    source(config, shapes['params'], None)


def test_a_run_that_cannot_begin_leaves_no_checkpoint(
  texts, entropy_run, tmp_path
):
  source = initial.FromRun('missing', str(entropy_run))
  config = tiny_runs.make_config(texts, initial=(source,))
  with pytest.raises(ValueError, match="no parameters 'missing'"):
    train.train(config, str(tmp_path / 'run'))
  assert not list((tmp_path / 'run').glob('checkpoints/*'))
