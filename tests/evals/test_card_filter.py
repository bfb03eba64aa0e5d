import dataclasses
import itertools
import math

import numpy as np
import pytest

from data import card_stream
from data import card_world
from evals import card_filter
from evals import event_metrics

EVENTS = 3
WORLD = card_world.World(kappa=0.6, seed=0)


def flat(array_NT):
  return array_NT.ravel().astype(float)


def scores_of(probability_NT, fraud_NT):
  entity_NT = np.repeat(np.arange(len(fraud_NT)), fraud_NT.shape[1])
  return event_metrics.Scores(flat(probability_NT), flat(fraud_NT), entity_NT)


def normal_mass(cents, mean):
  """P(round(exp(normal)) = cents), by the error function."""

  def below(x):
    z = (math.log(x) - mean) / card_world.AMOUNT_SPREAD
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))

  return below(cents + 0.5) - (below(cents - 0.5) if cents > 1 else 0)


def laws_of_one(user, t, persona, home, regime):
  """Honest and forged law of every column of event t of one user, by hand."""
  gap, hour, merchant, cents, channel, city, error, _ = (
    [int(x) for x in column] for column in user
  )
  category = [m // 40 for m in merchant]
  rank, c = merchant[t] % 40, category[t]
  result = []
  for row in (persona, 5 + regime):
    forged = row != persona
    law = {}
    if t:
      law['gap'] = WORLD.gaps_LHG[row, hour[t - 1], gap[t]]
    else:
      law['gap'] = WORLD.hours_LH[row, hour[0]]
    share = WORLD.category_LM[row, c]
    if forged:
      law['merchant'] = share / 40
    else:
      if t:
        share = (share + WORLD.follows_MM[category[t - 1], c]) / 2
      law['merchant'] = share * WORLD.ranks_R[rank]
      if t:
        known = WORLD.known_Z[persona]
        recent = merchant[max(0, t - 8) : t]
        law['merchant'] *= 1 - known
        law['merchant'] += known * recent.count(merchant[t]) / len(recent)
    new = normal_mass(cents[t], WORLD.log_cents_LM[row, c])
    earlier = [cents[i] for i in range(t) if merchant[i] == merchant[t]]
    if not forged and c in card_world.SUBSCRIPTIONS and earlier:
      new = 0.1 * new + 0.9 * (cents[t] == earlier[-1])
    law['amount'] = new
    law['channel'] = WORLD.channel_LMX[row, c, channel[t]]
    if channel[t] == card_world.ONLINE:
      law['city'] = 1.0
    else:
      law['city'] = 1 / 20
      if not forged:
        law['city'] = 0.08 / 20 + 0.92 * (city[t] == home)
    flag = WORLD.error_L[row]
    law['error'] = flag if error[t] else 1 - flag
    result.append(law)
  return result


def of_labels(user, t, persona, home, regime):
  """P(label and columns of event t | latents) of both labels."""
  honest, forged = laws_of_one(user, t, persona, home, max(regime, 1))
  fraud = WORLD.fraud_S[regime]
  clean = (1 - fraud) * math.prod(honest.values())
  mixed = [0.4 * forged[name] + 0.6 * law for name, law in honest.items()]
  return clean, fraud * math.prod(mixed)


def enumerate_user(user, *, revealed):
  """P(columns, labels) of a user by adding up all paths of latents.

  Returns P(the last event's fraud | the past and its columns) and nats of all
  columns of all events but the last label.
  """
  total = {0: 0.0, 1: 0.0}
  seen = [int(y) for y in user.fraud]
  for persona, home in itertools.product(range(6), range(20)):
    laws = {
      (t, regime): of_labels(user, t, persona, home, regime)
      for t in range(EVENTS)
      for regime in range(3)
    }
    for path in itertools.product(range(3), repeat=EVENTS):
      regimes = (0, *path)
      chain = np.prod(
        [WORLD.regime_SS[a, b] for a, b in itertools.pairwise(regimes)]
      )
      if not chain:
        continue
      for labels in itertools.product((0, 1), repeat=EVENTS):
        if revealed and labels[:-1] != tuple(seen[:-1]):
          continue
        p = chain / 120
        for t, (regime, label) in enumerate(zip(path, labels, strict=True)):
          p *= laws[t, regime][label]
        total[labels[-1]] += p
  return total[1] / sum(total.values()), -math.log(sum(total.values()))


@pytest.fixture(scope='module')
def tiny():
  """Users of three events: of any kind, with a fraud, with a repeat."""
  cards, _ = card_stream.users(WORLD, 0, 500, EVENTS, 5)
  fraud = np.flatnonzero(cards.fraud[:, :2].any(1))[:1]
  same = cards.merchant[:, 1] == cards.merchant[:, 2]
  repeat = np.flatnonzero(same & (cards.merchant[:, 1] // 40 >= 10))[:1]
  chosen = np.concatenate([[0], fraud, repeat])
  assert len(chosen) == 3
  return card_world.Cards(*(column[chosen] for column in cards))


@pytest.mark.parametrize('revealed', [False, True])
def test_filter_is_the_sum_over_all_paths(tiny, revealed):
  found = card_filter.run(WORLD, tiny, revealed=revealed)
  for number in range(3):
    user = card_world.Cards(*(column[number] for column in tiny))
    fraud, nats = enumerate_user(user, revealed=revealed)
    np.testing.assert_allclose(found.fraud_NT[number, -1], fraud, rtol=1e-9)
    nats_TK = found.nats_NTK[number].copy()
    # Hidden labels of the past are in nobody's nats, the last one's neither.
    nats_TK[-1 if revealed else slice(None), -1] = 0
    np.testing.assert_allclose(nats_TK.sum(), nats, rtol=1e-9)


@pytest.mark.parametrize(
  'column', ['gap', 'merchant', 'amount', 'channel', 'city', 'error']
)
def test_imputation_is_proportional_to_the_probability_of_the_row(column):
  cards, _ = card_stream.users(WORLD, 40, 4, 12, 0)
  number, t = next(zip(*np.nonzero(cards.city[:, 9:] >= 0), strict=True))
  t += 9
  edges_V1 = np.array([1, 700, 701, 3000, 3001, 10**9])
  found_NTV = card_filter.impute(WORLD, cards, column, edges_V1=edges_V1)
  np.testing.assert_allclose(found_NTV.sum(2), 1, rtol=1e-9)
  name = 'cents' if column == 'amount' else column
  values, places = {
    'gap': [[cards.gap[number, t] % 24 + 24 * k for k in range(3)]] * 2,
    'merchant': [[3, 41, 415, cards.merchant[number, t - 2]]] * 2,
    'amount': [[700, 3000], [1, 3]],
    'channel': [[0, 1]] * 2,
    'city': [[2, 7, cards.city[number, t]]] * 2,
    'error': [[0, 1]] * 2,
  }[column]
  rows = []
  for value in values:
    user = {k: v[number, : t + 1].copy() for k, v in cards._asdict().items()}
    user[name][t] = value
    rows.append(card_world.Cards(**user))
  stacked = card_world.Cards(*map(np.stack, zip(*rows, strict=True)))
  nats_NTK = card_filter.run(WORLD, stacked).nats_NTK
  row_V = np.exp(-nats_NTK[:, t, :-1].sum(1))
  law_V = found_NTV[number, t, places]
  np.testing.assert_allclose(law_V / law_V[0], row_V / row_V[0], rtol=1e-8)


@pytest.mark.parametrize(
  'column', ['gap', 'merchant', 'amount', 'channel', 'city', 'error']
)
def test_stream_follows_the_laws(column):
  users = 60 if column == 'merchant' else 150
  cards, _ = card_stream.users(WORLD, 0, users, 30, 1)
  edges_V1 = np.array([1, 300, 1000, 2000, 4000, 10_000, 10**9])
  law_EV = card_filter.impute(WORLD, cards, column, edges_V1=edges_V1)
  law_EV = law_EV.reshape(-1, law_EV.shape[2])
  name = 'cents' if column == 'amount' else column
  value_E = getattr(cards, name).ravel().astype(int)
  if column == 'amount':
    value_E = np.searchsorted(edges_V1, value_E, side='right') - 1
  seen_EV = np.eye(law_EV.shape[1])[value_E]
  if column == 'merchant':
    law_EV = law_EV.reshape(-1, 12, 40).sum(2)
    seen_EV = seen_EV.reshape(-1, 12, 40).sum(2)
  # Given the past and the rest of the row, what came is a draw from the law.
  excess_V = (seen_EV - law_EV).sum(0)
  spread_V = np.sqrt((law_EV * (1 - law_EV)).sum(0))
  often_V = law_EV.sum(0) > 5
  assert often_V.sum() >= 2
  assert np.all(np.abs(excess_V)[often_V] <= 4 * spread_V[often_V] + 1e-6)


def test_probabilities_of_fraud_are_calibrated():
  cards, _ = card_stream.users(WORLD, 0, 300, 120, 2)
  fraud_NT = card_filter.run(WORLD, cards).fraud_NT
  order_E = np.argsort(fraud_NT, axis=None)
  p_E, y_E = fraud_NT.ravel()[order_E], cards.fraud.ravel()[order_E]
  # Bins of equal expected frauds.
  bin_E = np.minimum(np.cumsum(p_E) / p_E.sum() * 8, 7.999).astype(int)
  expected = np.bincount(bin_E, p_E)
  spread = np.sqrt(np.bincount(bin_E, p_E * (1 - p_E)))
  assert len(expected) == 8
  # One surprise more than the normal law allows where frauds are certain.
  excess = np.abs(np.bincount(bin_E, y_E) - expected)
  assert np.all(excess < 3 * spread + 1)


def test_all_camouflaged_leaves_the_chain_alone():
  world = dataclasses.replace(WORLD, kappa=1.0)
  cards, _ = card_stream.users(world, 0, 20, 30, 0)
  fraud_NT = card_filter.run(world, cards).fraud_NT
  regime_S = np.array([1.0, 0, 0])
  for t in range(30):
    regime_S = regime_S @ world.regime_SS
    expected = regime_S @ world.fraud_S
    np.testing.assert_allclose(fraud_NT[:, t], expected, rtol=1e-9)


def test_users_do_not_depend_on_how_the_row_is_cut():
  whole, _ = card_stream.users(WORLD, 0, 1030, 4, 3)
  part, hidden = card_stream.users(WORLD, 510, 516, 4, 3)
  for column, other in zip(whole, part, strict=True):
    assert column[510:1026].tobytes() == other.tobytes()
  again, _ = card_stream.users(WORLD, 510, 516, 4, 3)
  other, _ = card_stream.users(WORLD, 510, 516, 4, 4)
  assert all(
    a.tobytes() == b.tobytes() for a, b in zip(part, again, strict=True)
  )
  assert not np.array_equal(part.cents, other.cents)
  assert hidden.regime.shape == (516, 4)


def test_ceilings_are_those_of_an_independent_prototype():
  cards, _ = card_stream.users(WORLD, 0, 400, 120, 7)
  found = scores_of(card_filter.run(WORLD, cards).fraud_NT, cards.fraud)
  scores = found.report(30)
  assert abs(scores['auc'] - 0.9734) < 3 * scores['auc_stderr']
  error = scores['average_precision_stderr']
  assert abs(scores['average_precision'] - 0.762) < 3 * error


@pytest.mark.slow
@pytest.mark.parametrize(
  'kappa, revealed, auc, average_precision',
  [
    (0.0, False, 0.99998, 0.9985),
    (0.0, True, 0.99998, 0.9986),
    (0.3, False, 0.9966, 0.943),
    (0.3, True, 0.9973, 0.956),
    (0.5, False, 0.9866, 0.848),
    (0.5, True, 0.9918, 0.900),
    (0.6, False, 0.9734, 0.762),
    (0.6, True, 0.9848, 0.862),
    (0.8, False, 0.9018, 0.484),
    (0.8, True, 0.9647, 0.772),
  ],
)
def test_ceilings_at_every_camouflage(kappa, revealed, auc, average_precision):
  world = card_world.World(kappa, 0)
  cards, _ = card_stream.users(world, 0, 1500, 120, 0)
  fraud_NT = card_filter.run(world, cards, revealed=revealed).fraud_NT
  scores = scores_of(fraud_NT, cards.fraud).report(50)
  print(kappa, revealed, scores)
  # Both samples have errors, and the laws' details differ a little.
  error = scores['auc_stderr'] + 0.002
  assert abs(scores['auc'] - auc) < 3 * error
  error = scores['average_precision_stderr'] + 0.005
  assert abs(scores['average_precision'] - average_precision) < 3 * error
