import dataclasses
import json
from xml.etree import ElementTree

import numpy as np
import pytest

from bench import event_features
from bench import event_peers
from bench import event_plot
from bench import event_trees
from data import event_codes
from data import event_source
from data import event_tokens


@pytest.fixture(scope='module')
def stream(tmp_path_factory):
  """Frauds that hide nothing, so that little training tells them."""
  return event_source.CardStream(
    users=150, events=24, kappa=0.0,
    directory=str(tmp_path_factory.mktemp('cards')),
  )  # fmt: skip


@pytest.fixture(scope='module')
def corpus(stream):
  """Six users, with more frauds than there are."""
  drawn = stream.fresh(0, 6)
  ids_EC = drawn.ids_EC.copy()
  ids_EC[:, -1] = 3 + (np.random.default_rng(0).random(144) < 0.2)
  return dataclasses.replace(drawn, ids_EC=ids_EC)


def column(found, name):
  return found.x_EF[:, found.names.index(name)]


def test_lag_features_by_hand(corpus, monkeypatch):
  monkeypatch.setattr(event_features, '_ENTITIES', 4)  # Made in two parts.
  label_E = event_features.labels(corpus)
  found = event_features.features(corpus, lags=True, label_E=label_E)
  assert len(found.names) == len(set(found.names)) > 80
  amount_E = corpus.values_EC[:, 3].astype(float)
  merchant_E = corpus.ids_EC[:, 2].astype(int)
  expected = {}
  for name in (
    'amount 3 ago', 'amount mean of 5', 'amount spread of all', 'events in 24h',
    'merchant count', 'merchant rows since', 'amount change at merchant',
    'merchant seconds since', 'labels of 10', 'rows since label',
    'seconds of 3',
  ):  # fmt: skip
    expected[name] = np.full(len(amount_E), np.nan)
  for start, stop in zip(
    corpus.offsets_N1[:-1], corpus.offsets_N1[1:], strict=True
  ):
    for now in range(start, stop):
      past = np.arange(start, now)
      same = past[merchant_E[past] == merchant_E[now]]
      bad = past[label_E[past] == 1]
      times_E = corpus.times_E
      if now - start >= 3:
        expected['amount 3 ago'][now] = amount_E[now - 3]
      if len(past):
        expected['amount mean of 5'][now] = amount_E[past][-5:].mean()
        expected['amount spread of all'][now] = amount_E[past].std()
      day = times_E[past] >= times_E[now] - 86_400
      expected['events in 24h'][now] = day.sum()
      expected['merchant count'][now] = len(same)
      if len(same):
        expected['merchant rows since'][now] = now - same[-1]
        change = amount_E[now] - amount_E[same[-1]]
        expected['amount change at merchant'][now] = change
        since = np.log1p(times_E[now] - times_E[same[-1]])
        expected['merchant seconds since'][now] = since
      expected['labels of 10'][now] = label_E[past][-10:].sum()
      if len(bad):
        expected['rows since label'][now] = now - bad[-1]
      # Gaps of the three events before, as far as they have one.
      gaps = [times_E[i] - times_E[i - 1] for i in past[-3:] if i > start]
      expected['seconds of 3'][now] = np.log1p(sum(gaps))
  assert np.isfinite(expected['rows since label']).any()
  for name, values_E in expected.items():
    np.testing.assert_allclose(
      column(found, name), values_E, rtol=1e-4, atol=1e-4, err_msg=name
    )


def test_features_see_the_past_alone(corpus):
  ids_EC = corpus.ids_EC.copy()
  changed = 40  # Of the second user.
  ids_EC[changed, -1] = 7 - ids_EC[changed, -1]  # The other class.
  other = dataclasses.replace(corpus, ids_EC=ids_EC)
  for lags in (False, True):
    hidden = [
      event_trees.Split.of(c).features(lags=lags, revealed=False).x_EF
      for c in (corpus, other)
    ]
    np.testing.assert_array_equal(*hidden)
  shown = [
    event_trees.Split.of(c).features(lags=True, revealed=True).x_EF
    for c in (corpus, other)
  ]
  same_E = np.array(
    [np.array_equal(a, b, True) for a, b in zip(*shown, strict=True)]
  )
  assert same_E[: changed + 1].all() and not same_E[changed + 1 : 48].any()
  assert same_E[48:].all()
  later = corpus.values_EC.copy()
  later[changed, 3] += 1
  later = dataclasses.replace(corpus, values_EC=later)
  x_EF, y_EF = (
    event_features.features(c, lags=True).x_EF for c in (corpus, later)
  )
  np.testing.assert_array_equal(x_EF[:changed], y_EF[:changed])
  np.testing.assert_array_equal(x_EF[48:], y_EF[48:])


def test_labels_are_consolidated(corpus):
  words = ('1', '2', '3', '4', '5')
  code = event_codes.Words(words, masked=True)
  columns = (event_tokens.Column('rating', 'label', code),)
  tokenizer = dataclasses.replace(corpus.tokenizer, columns=columns)
  ids_EC = np.array([[0], [1], [3], [6], [7]], np.uint16)
  rated = dataclasses.replace(corpus, tokenizer=tokenizer, ids_EC=ids_EC)
  found = event_features.labels(rated, ('4', '5'))
  np.testing.assert_array_equal(found, [np.nan, np.nan, 0, 1, 1])
  np.testing.assert_array_equal(
    event_features.labels(rated), [np.nan, np.nan, 0, 0, 1]
  )


def test_features_of_scores_by_hand():
  score_E = np.array([0.1, 0.5, 0.2, 0.9, 0.3])
  offsets_N1 = np.array([0, 3, 5])
  found = event_features.score_features(score_E, offsets_N1)
  logit_E = np.log(score_E / (1 - score_E))
  smooth_E = [0, 0.01, 0.9 * 0.01 + 0.05, 0, 0.09]
  np.testing.assert_allclose(found['smooth score 0.1'], smooth_E, atol=1e-6)
  highest_E = [np.nan, logit_E[0], logit_E[1], np.nan, logit_E[3]]
  np.testing.assert_allclose(found['highest score'], highest_E, atol=1e-5)


def test_peers_are_kept_and_scored(stream, tmp_path, monkeypatch):
  quick = event_trees.Trees(lags=False, rounds=15)
  monkeypatch.setitem(event_peers.PEERS, 'trees', quick)
  splits = event_peers.Splits(stream, revealed=False)
  report = event_peers.run(splits, ['prior', 'trees'], tmp_path, 20)
  assert set(report) == {'prior', 'trees', event_peers.CEILING}
  assert report['prior']['auc'] == 0.5
  best = report[event_peers.CEILING]
  assert best['average_precision'] > 0.95
  assert report['trees']['auc'] > 0.8
  regret = report['trees']['log_loss'] - best['log_loss']
  assert report['trees']['regret'] == pytest.approx(regret) and regret > 0
  monkeypatch.setattr(event_trees.Trees, 'fit', None)  # No training again.
  again = event_peers.run(splits, ['trees'], tmp_path, 20)
  assert again['trees'] == report['trees']
  shown = event_peers.Splits(stream, revealed=True)
  with pytest.raises(TypeError):  # Other labels are seen: training again.
    event_peers.run(shown, ['trees'], tmp_path, 20)
  ours = splits.scores(np.load(tmp_path / 'exact filter.npy'), 0.5, None)
  found = event_peers.differences(splits, ours, ['trees'], tmp_path, 5)['trees']
  assert found['average_precision'] == pytest.approx(
    best['average_precision'] - report['trees']['average_precision']
  )
  assert 0 < found['average_precision_stderr'] < found['average_precision']
  assert len(event_peers.table(report).splitlines()) == 2 + len(report)
  (line,) = event_peers.paired('ours', {'trees': found}).splitlines()[2:]
  assert f'| {found["average_precision"]:+.4f} +- ' in line
  picture = ElementTree.fromstring(event_plot.draw(report, 'average_precision'))
  bars = [e for e in picture if e.tag.endswith('rect')]
  widths = [float(bar.get('width')) for bar in bars]
  scores = [r['average_precision'] for r in report.values()]
  np.testing.assert_allclose(
    np.array(widths) / widths[0], np.array(scores) / scores[0], atol=1e-3
  )
  assert json.loads((tmp_path / 'trees.json').read_text())['threshold'] > 0


def test_only_later_events_count_in_a_split_by_time(stream, tmp_path):
  later = dataclasses.replace(stream, split_by='time')
  splits = event_peers.Splits(later, revealed=False)
  times_E = np.asarray(splits.test.corpus.times_E)
  is_late_E = times_E >= np.quantile(times_E, 0.8, method='lower')
  np.testing.assert_array_equal(splits.test.used_E, is_late_E)
  event_peers.run(splits, ['prior'], tmp_path, 5)
  path = tmp_path / 'ours.npy'
  np.save(path, np.linspace(0, 1, is_late_E.sum()))
  ours = splits.given(str(path))
  np.testing.assert_array_equal(ours.label_E, splits.test.label_E[is_late_E])
  assert ours.ceiling_E.shape == ours.label_E.shape and ours.threshold == 0.5
  found = event_peers.differences(splits, ours, ['prior'], tmp_path, 5)
  expected = ours.metrics()['auc'] - 0.5
  assert found['prior']['auc'] == pytest.approx(expected)
  # Whoever knows the labels has their threshold.
  known_E = splits.validation.label_E[splits.validation.used_E]
  np.save(tmp_path / 'known.npy', known_E)
  ours = splits.given(f'{path}:{tmp_path / "known.npy"}')
  assert ours.threshold == 1.0
  with pytest.raises(ValueError, match=rf"'test' {is_late_E.sum()} scored"):
    splits.given(str(tmp_path / 'known.npy'))


@pytest.mark.slow
@pytest.mark.parametrize('revealed', [False, True])
def test_every_peer_learns(stream, tmp_path, revealed):
  larger = dataclasses.replace(stream, users=1000)
  splits = event_peers.Splits(larger, revealed=revealed)
  report = event_peers.run(splits, list(event_peers.PEERS), tmp_path, 20)
  best = report[event_peers.CEILING]
  for name in ('logistic', 'trees_of_rows', 'trees', 'stacked', 'gru'):
    assert report[name]['average_precision'] > 0.5, name
    assert report[name]['log_loss'] > best['log_loss']


def test_trees_without_lightgbm(stream, monkeypatch):
  monkeypatch.setattr(event_trees, 'lightgbm', None)
  splits = event_peers.Splits(stream, revealed=True)
  trees = event_trees.Trees(lags=False, rounds=10)
  predict = trees.fit(splits.train, splits.validation, revealed=True)
  scores = splits.scores(predict(splits.test), 0.5, None).metrics()
  assert scores['auc'] > 0.8
