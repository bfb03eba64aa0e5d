"""Made-up events that are the real ones, or are spoiled in a known way."""

import math
import types

import jax
import numpy as np
import pyarrow as pa
import pytest

from bench import event_futures as bench_futures
from data import event_codes
from data import event_source
from evals import card_filter
from evals import event_futures
from models import event_lm
from models import stacks

USERS, LENGTH, NEW = 60, 24, 12


@pytest.fixture(scope='module')
def stream(tmp_path_factory):
  return event_source.CardStream(
    users=5 * USERS, events=LENGTH, kappa=0.0,
    directory=str(tmp_path_factory.mktemp('cards')),
  )  # fmt: skip


@pytest.fixture(scope='module')
def corpus(stream):
  return stream.open('test')


def real_futures(corpus, new_E):
  """What was, as if a model had said so."""
  tokenizer = corpus.tokenizer
  shape = (len(corpus), NEW)
  table = corpus.table.filter(pa.array(new_E))
  gaps = np.diff(np.asarray(corpus.times_E), prepend=0)[new_E]
  numbers = {'amount': table['amount'].to_numpy(), 'time:gap': gaps}
  numbers_BNC = np.full((*shape, len(tokenizer.columns)), np.nan)
  for name, x_E in numbers.items():
    numbers_BNC[:, :, tokenizer.names.index(name)] = x_E.reshape(shape)
  return event_futures.Futures(
    np.asarray(corpus.ids_EC)[new_E].astype(np.int32).reshape(*shape, -1),
    numbers_BNC,
    np.asarray(corpus.times_E)[new_E].reshape(shape),
  )


def test_real_events_cannot_be_told_from_themselves(stream, corpus):
  new_E = np.tile(np.arange(LENGTH) >= LENGTH - NEW, USERS)
  futures = real_futures(corpus, new_E)
  made = bench_futures.replaced(corpus, new_E, futures)
  np.testing.assert_array_equal(made.ids_EC, corpus.ids_EC)
  np.testing.assert_allclose(
    made.values_EC, corpus.values_EC, rtol=1e-5, atol=1e-5
  )
  both = bench_futures.Continued(corpus, made, new_E)
  report = bench_futures.compare(both, stream.open('train'))
  for name in corpus.tokenizer.names:
    assert report[f'tv_of_{name}'] == 0
  assert report['information_error'] == 0
  assert report['repeats_of_merchant_made'] > 0.2
  for name in ('gap_autocorrelation', 'repeats_of_merchant', 'rows_of_train'):
    assert report[f'{name}_real'] == report[f'{name}_made']
  assert report['discriminator_auc'] == pytest.approx(0.5, abs=1e-6)


def test_laws_judge_what_they_made(stream, corpus):
  drawn, _ = stream.drawn('test')
  for found, expected in zip(bench_futures.cards(corpus), drawn, strict=True):
    np.testing.assert_array_equal(found, expected)
  new_E = np.tile(np.arange(LENGTH) >= LENGTH - NEW, USERS)
  both = bench_futures.Continued(corpus, corpus, new_E)
  nats = card_filter.run(stream.world, drawn).nats_NTK[:, -NEW:].sum(2).mean()
  report = bench_futures.exact(both, stream)
  assert report['exact_nats_made'] == pytest.approx(nats)
  assert report['impossible_made'] == 0


def test_spoiled_events_are_noticed(stream, corpus):
  rng = np.random.default_rng(0)
  new_E = np.tile(np.arange(LENGTH) >= LENGTH - NEW, USERS)
  futures = real_futures(corpus, new_E)
  c = corpus.tokenizer.names.index('merchant')
  d = corpus.tokenizer.names.index('city')
  ids_EC = futures.ids_BNC.reshape(-1, futures.ids_BNC.shape[-1])
  # As often as before, but to anybody.
  ids_EC[:, c] = rng.permutation(ids_EC[:, c])
  # No online payment has a city.
  ids_EC[::10, d] = np.where(
    ids_EC[::10, d] == event_codes.NULL, 5, event_codes.NULL
  )
  both = bench_futures.Continued(
    corpus, bench_futures.replaced(corpus, new_E, futures), new_E
  )
  report = bench_futures.compare(both, stream.open('train'))
  assert report['tv_of_merchant'] == 0
  assert report['information_error'] > 0.005
  assert report['repeats_of_merchant_made'] < report['repeats_of_merchant_real']
  assert report['discriminator_auc_low'] > 0.6
  exact = bench_futures.exact(both, stream)
  assert exact['impossible_made'] == pytest.approx(0.1, abs=0.01)
  assert exact['exact_nats_made'] > exact['exact_nats_real'] + 1


def test_distances_by_hand():
  x_E, y_E = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
  assert bench_futures.variation(x_E, y_E) == 0.25
  assert bench_futures.information(x_E, x_E) == pytest.approx(math.log(2))
  assert bench_futures.information(x_E, np.array([0, 1, 0, 1])) == 0


@pytest.mark.slow
def test_a_model_goes_on_with_every_history(stream, corpus):
  tokenizer, new = corpus.tokenizer, 3
  model = event_lm.EventLM(
    trunk=stacks.Stack(width=8, layers=1, heads=2, hidden=8),
    columns=tuple(map(int, tokenizer.sizes_C)),
    cell_width=8, cell_layers=0, waves=0, reach=2,
  )  # fmt: skip
  ids_BT = np.zeros((1, 8), np.int32)
  params = model.init(jax.random.key(0), ids_BT)['params']
  run = types.SimpleNamespace(
    config=types.SimpleNamespace(model=model), params=params
  )
  real, made, new_E = bench_futures.go_on(run, corpus, new, seed=0)
  assert real is corpus and new_E.sum() == USERS * new
  np.testing.assert_array_equal(made.ids_EC[~new_E], corpus.ids_EC[~new_E])
  np.testing.assert_array_equal(made.times_E[~new_E], corpus.times_E[~new_E])
  assert (made.ids_EC[new_E] != corpus.ids_EC[new_E]).any(1).mean() > 0.9
  assert (np.diff(made.times_E.reshape(USERS, LENGTH)) >= 0).all()
  column = {name: c for c, name in enumerate(tokenizer.names)}
  hour_E = made.times_E // 3600 % 24
  code = tokenizer.columns[column['time:hour']].code
  np.testing.assert_array_equal(
    made.ids_EC[:, column['time:hour']] - code.first, hour_E
  )
  # The number that is remembered lies in the bin that was drawn.
  c = column['amount']
  code = tokenizer.columns[c].code
  bent_E = made.values_EC[new_E, c].astype(float) * code.spread + code.mean
  again_E = code.encode(pa.array(code.scale * np.sinh(bent_E)), None)
  assert (again_E == made.ids_EC[new_E, c]).mean() > 0.97  # But for rounding.
  with pytest.raises(ValueError, match='--events=24 must be less'):
    bench_futures.go_on(run, corpus, LENGTH, seed=0)
