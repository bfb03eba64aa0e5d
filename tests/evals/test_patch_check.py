"""Thresholds of real rules against trying all, and warnings that are due."""

import dataclasses
import functools
import logging

import jax
import numpy as np
import pytest

from configs import initial
from configs import patch_check
from data import pipeline
from evals import patch_lengths
from models import byte_latent
from models import ngram_entropy
from models import patched
from models import patching
from tests import test_initial
from tests import tiny_runs

WANTED = (1.05, 1.7, 2.0, 3.0, 4.5, 8.0, 60.0)


def drawn_rows(seed=0, size=60, documents=3):
  rng = np.random.default_rng(seed)
  ids = rng.integers(4, 260, size)
  cuts = np.sort(rng.choice(np.arange(2, size - 1), documents - 1, False))
  number = 1 + np.searchsorted(cuts, np.arange(size), 'right')
  first = np.flatnonzero(np.diff(number, prepend=0))
  ids[first] = 1
  ids[np.append(first[1:], size) - 1] = 2
  nats = rng.gamma(2.0, 1.0, size).astype(np.float32)
  nats[::7] = nats[0]
  return patch_check.Rows(
    *(x[None] for x in (ids.astype(np.int32), number.astype(np.int32), nats))
  )


def walked(rows, rule, max_length):
  """Lengths and cuts of patches by rules written out for one byte."""
  ids, documents, nats = (x[0] for x in rows)
  lengths, cuts, index, size, held = [], 0, 0, 0, 0
  for i in range(len(ids)):
    if i == 0 or documents[i] != documents[i - 1]:
      lengths.append(held)
      index = size = held = 0
    size, held = size + 1, held + int(ids[i] >= 4)
    closes = index == 0 or rule(nats, i, index)
    is_cut = not closes and max_length is not None and size == max_length
    cuts += int(is_cut and ids[i] >= 4)
    if closes or is_cut:
      lengths.append(held)
      size = held = 0
    index += 1
  lengths.append(held)
  return [length for length in lengths if length], cuts


def plain_rule(rule):
  """The same rule as a function of (nats, place, place in its document)."""
  if isinstance(rule, patching.Entropy):
    return lambda nats, i, index: nats[i] > np.float32(rule.threshold)
  if isinstance(rule, patching.Monotonic):
    return lambda nats, i, index: (
      index == 1 or nats[i] - nats[i - 1] > np.float32(rule.rise)
    )
  return lambda nats, i, index: (
    (index == 1 or nats[i] - nats[i - 1] > np.float32(rule.rise))
    and nats[i] > np.float32(rule.threshold)
  )


RULES = [
  patching.Entropy(1.5),
  patching.Monotonic(0.3),
  patching.Combined(rise=-0.5, threshold=1.2),
]


@pytest.mark.parametrize('rule', RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize('max_length', [None, 1, 4, 9])
def test_statistics_are_those_of_walking_along(rule, max_length):
  rows = drawn_rows()
  lengths, cuts = walked(rows, plain_rule(rule), max_length)
  patches = patching.Patching(rule, max_length)
  assert patch_check.lengths(patches, rows).tolist() == lengths
  found = patch_check.statistics(patches, rows)
  assert found.mean == pytest.approx(np.mean(lengths))
  assert found.cut == pytest.approx(cuts / len(lengths))
  assert found.bytes == np.sum(rows.ids_BT >= 4)


@pytest.mark.parametrize('rule', RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize('max_length', [None, 5])
def test_thresholds_are_the_best_of_all(rule, max_length):
  rows = drawn_rows(seed=1)
  name = patch_check.knob(rule)
  nats = rows.nats_BT[0]
  scores = np.diff(nats) if name == 'rise' else nats
  edges = np.unique(scores).astype(np.float64)

  def mean(value):
    changed = dataclasses.replace(rule, **{name: float(value)})
    return np.mean(walked(rows, plain_rule(changed), max_length)[0])

  possible = [mean(value) for value in (edges[0] - 1, *edges)]
  assert possible == sorted(possible)
  patches = patching.Patching(rule, max_length)
  found = patch_check.choose(patches, rows, WANTED)
  assert [choice.wanted for choice in found] == list(WANTED)
  some = 0
  for choice in found:
    if choice.value is None:
      assert not possible[0] <= choice.wanted <= possible[-1]
      assert choice.mean in (pytest.approx(possible[0]),
                             pytest.approx(possible[-1]))  # fmt: skip
      continue
    some += 1
    assert choice.mean == pytest.approx(mean(choice.value))
    best = min(abs(value - choice.wanted) for value in possible)
    assert abs(choice.mean - choice.wanted) == pytest.approx(best)
  assert some >= 3


def test_rules_over_bytes_have_nothing_to_choose():
  rows = drawn_rows()._replace(nats_BT=None)
  for rule in (patching.Space(), patching.Stride(3), patching.EveryByte()):
    assert patch_check.choose(patching.Patching(rule), rows) == []


def latent(**fields):
  return dataclasses.replace(
    test_initial.patched_model(None).model, parent=None, **fields
  )


def test_room_is_what_the_latent_rows_have():
  rng = np.random.default_rng(0)
  ids = rng.integers(4, 260, (4, 64)).astype(np.int32)
  documents = np.ones_like(ids)
  documents[3, 40:] = 0
  nats = (rng.random(ids.shape) < [[0.9], [0.1], [0.5], [0.5]]).astype('f')
  rows = patch_check.Rows(ids, documents, nats)
  patches = patching.Patching(patching.Entropy(0.5), max_length=None)
  closes = np.asarray(patches.closes(*rows))
  starts = np.ones_like(closes)
  starts[:, 1:] = closes[:, :-1]
  starts &= documents > 0
  needed = starts.sum(axis=1).reshape(2, 2).sum(axis=1)
  model = latent(patching=patches, reserve=0.3, rows=2)
  assert model.budget(128) == 48 < needed.max()
  expected = 0
  for row in range(2):
    number = np.cumsum(starts[2 * row : 2 * row + 2])
    real = documents[2 * row : 2 * row + 2].ravel() > 0
    expected += int(np.sum((number > 48) & real))
  found = patch_check.room(model, rows)
  assert (found.ids, found.overflow) == (232, expected)
  enough = latent(patching=patches, reserve=found.reserve, rows=2)
  assert patch_check.room(enough, rows).overflow == 0
  assert found.reserve - 0.01 < needed.max() / 128 <= found.reserve


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  return tiny_runs.write_texts(tmp_path_factory.mktemp('check') / 'texts')


@functools.cache
def fitted(texts):
  """A config of a Patched model, its corpus, and fitted entropy tables."""
  scorer = ngram_entropy.NgramEntropy(sizes=(1, 2), rows=512)
  config = test_initial.config_of(texts, scorer, initial.FitNgramEntropy())
  config = dataclasses.replace(config, row_length=64, batch_size=8)
  config.data.prepare()
  corpus = config.data.open('train')
  return config, corpus, config.initial[0](config, {}, corpus)


def warned(texts, caplog, rule, max_length=16, **fields):
  config, corpus, params = fitted(texts)
  fields = {'reserve': 1.0} | fields
  scorer = config.model.entropy if rule.uses_entropy else None
  model = config.model.clone(
    entropy=scorer,
    model=latent(patching=patching.Patching(rule, max_length), **fields),
  )
  config = dataclasses.replace(config, model=model)
  caplog.clear()
  with caplog.at_level(logging.INFO), jax.set_mesh(config.mesh.build()):
    patch_check.check(config, params, corpus)
  return [record.getMessage() for record in caplog.records]


def value_after(message, name):
  return float(message.rsplit(f'{name}=', 1)[1].split()[0].rstrip(',.;'))


@pytest.mark.parametrize(
  ('rule', 'max_length', 'words'),
  [
    (patching.Entropy(-1.0), 16, 'threshold=-1.0 gives patches of 1.00 bytes'),
    (patching.Entropy(9.0), 8, '% of which end only because of max_length=8'),
    (patching.Monotonic(-9.0), 16, 'rule.rise=-9.0 gives patches of 1.00'),
    (
      patching.Combined(rise=-9.0, threshold=9.0),
      8,
      'rule.threshold=9.0 gives patches of ',
    ),
  ],
)
def test_a_threshold_is_named_with_a_better_one(
  texts, caplog, rule, max_length, words
):
  (message,) = warned(texts, caplog, rule, max_length)
  assert words in message
  name = patch_check.knob(rule)
  assert message.startswith(f'model.model.patching.rule.{name}=')
  assert message.count('. ') == 0
  assert message.endswith(' bytes.')
  value = value_after(message, f'model.model.patching.rule.{name}')
  better = dataclasses.replace(rule, **{name: value})
  assert warned(texts, caplog, better, max_length) == []
  # What it says it gives is what the first batch has.
  config, corpus, params = fitted(texts)
  config = dataclasses.replace(
    config,
    model=config.model.clone(model=latent(patching=patching.Patching(better))),
  )
  rows = patch_check._sample(config, params['entropy'], corpus, {})
  lengths = patch_check.lengths(patching.Patching(better, max_length), rows)
  assert f'gives {patch_lengths.mean(lengths):.2f} bytes.' in message
  assert abs(patch_lengths.mean(lengths) - 4.5) < 1.5


def test_patches_without_end_are_named(texts, caplog):
  config, corpus, params = fitted(texts)
  long = dataclasses.replace(
    config,
    row_length=256,
    model=config.model.clone(
      model=latent(patching=patching.Patching(patching.Entropy(9.0), None))
    ),
  )
  with caplog.at_level(logging.INFO):
    patch_check.check(long, params, corpus)
  assert 'which nothing limits' in caplog.messages[0]
  assert len(caplog.messages) == 1


@pytest.mark.parametrize(
  ('rule', 'max_length', 'words'),
  [
    (patching.Delimiter(), 8, ['rule=Delimiter(delimiter_id=3)', 'another']),
    (patching.Stride(20), 8, ['rule=Stride(stride=20)', 'max_length=8']),
    (patching.Entropy(9.0), 3, ['no value of ', 'max_length=3 too']),
  ],
)
def test_a_rule_that_no_value_helps(texts, caplog, rule, max_length, words):
  (message,) = warned(texts, caplog, rule, max_length)
  assert all(word in message for word in words)


def test_a_reserve_is_named_with_one_that_is_enough(texts, caplog):
  rule = patching.Entropy(0.2)
  (message,) = warned(texts, caplog, rule, reserve=0.1, rows=2)
  assert message.startswith('model.model.reserve=0.1 leaves ')
  assert 'bytes in the mean; set it to ' in message
  enough = float(message.split('set it to ')[1].split(',')[0])
  assert 0.1 < enough < 1
  assert warned(texts, caplog, rule, reserve=enough, rows=2) == []
  assert "overflow='cut'" in message
  longer = value_after(message, 'model.model.patching.rule.threshold')
  assert longer > 0


@pytest.mark.parametrize(
  ('rule', 'max_length'),
  [
    (patching.Entropy(1.0), 16),
    (patching.Space(), 16),
    (patching.EveryByte(), 16),
    (patching.Stride(1), None),
    (patching.Stride(4), 4),
    (patching.Entropy(9.0), 1),
  ],
)
def test_nothing_is_said_without_reason(texts, caplog, rule, max_length):
  assert warned(texts, caplog, rule, max_length) == []


def test_entropies_are_those_that_training_stores(texts, caplog):
  scorer = patched.LMEntropy(tiny_runs.MODEL)
  config = test_initial.config_of(texts, scorer, None)
  patches = patching.Patching(patching.Entropy(-1.0), max_length=16)
  model = config.model.clone(model=latent(patching=patches))
  config = dataclasses.replace(config, model=model)
  config.data.prepare()
  corpus = config.data.open('train')
  shapes = jax.eval_shape(scorer.init, jax.random.key(0), np.ones((1, 8), int))
  rng = np.random.default_rng(0)
  params = {
    'entropy': jax.tree.map(
      lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes['params']
    )
  }
  patch_check.check(config, params, corpus)
  (message,) = caplog.messages
  assert 'gives patches of 1.00 bytes' in message
  (folder,) = corpus.path.glob('entropy_*')
  kept = {'entropy': np.load(folder / 'numbers.npy')}
  rows = patch_check._sample(config, None, corpus, kept)
  batch = pipeline.batches(
    corpus, row_length=16, batch_size=len(rows.ids_BT), seed=0, stored=kept
  )[0]
  np.testing.assert_array_equal(rows.ids_BT, batch['ids'])
  np.testing.assert_array_equal(rows.nats_BT, batch['entropy'])


def test_models_without_patches_pass(texts, caplog):
  config, corpus, _ = fitted(texts)
  config = dataclasses.replace(config, model=tiny_runs.MODEL)
  patch_check.check(config, {}, corpus)
  assert not caplog.messages
  with pytest.raises(ValueError, match='ByteLM makes no patches; give a run'):
    patch_check.byte_latent_of(config.model)


def test_a_bare_byte_latent_model_has_shorter_paths(texts, caplog):
  config, corpus, _ = fitted(texts)
  model = latent(patching=patching.Patching(patching.Delimiter(), 8))
  assert isinstance(model, byte_latent.ByteLatent)
  config = dataclasses.replace(config, model=model)
  patch_check.check(config, {}, corpus)
  (message,) = caplog.messages
  assert message.startswith('model.patching.rule=Delimiter')
