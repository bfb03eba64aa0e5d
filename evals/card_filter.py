"""The exact Bayes filter of synthetic card users: the best possible scores.

It knows the laws of `data.card_world` and sees what a model sees: the past and
the columns of a row from left to right. Letters beside those of that file:
  K columns of a row  V values of a column  F the two fraudulent regimes
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data import card_world

COLUMNS = (*card_world.COLUMNS, 'fraud')
_Z, _C = card_world.PERSONAS, card_world.CITIES


class Filtered(NamedTuple):
  """Exact probabilities of every event.

  fraud_NT: of fraud, given the past and the event's other columns.
  nats_NTK: -log of the probability of each of COLUMNS given the past and the
    columns before it; that of the gap is of gap and hour, of the first hour
    in the first event.
  """

  fraud_NT: np.ndarray
  nats_NTK: np.ndarray


class _Law(NamedTuple):
  """Probabilities of one observed column, or of its possible values.

  honest: axes N T Z C (or N V Z C), of length 1 where they do not matter;
  forged: N T F (or N V F), what a fraud does that is not camouflaged.
  """

  honest: np.ndarray
  forged: np.ndarray


class _Step(NamedTuple):
  """The filter before and after it sees event t.

  prior_NZCS: of persona, home and regime. honest_NZCS, fraud_NZCF: joint with
  all columns of the event. sums_NK: probability of the columns so far.
  """

  prior_NZCS: np.ndarray
  honest_NZCS: np.ndarray
  fraud_NZCF: np.ndarray
  sums_NK: np.ndarray


def run(
  world: card_world.World, cards: card_world.Cards, *, revealed: bool = False
) -> Filtered:
  """Filters users from their first event on.

  revealed: whether the labels of the past are known.
  """
  fraud_TN, nats_TNK = [], []
  laws = _laws(world, cards)
  for t, step in enumerate(_walk(world, cards, laws, revealed)):
    fraud_N = step.fraud_NZCF.sum((1, 2, 3)) / step.sums_NK[:, -1]
    sums_NK = np.insert(step.sums_NK, 0, 1.0, axis=1)
    of_label_N = np.where(cards.fraud[:, t] == 1, fraud_N, 1 - fraud_N)
    of_columns_NK = sums_NK[:, 1:] / sums_NK[:, :-1]
    law_NK = np.concatenate([of_columns_NK, of_label_N[:, None]], 1)
    fraud_TN.append(fraud_N)
    nats_TNK.append(-np.log(np.maximum(law_NK, 1e-300)))
  return Filtered(np.stack(fraud_TN, 1), np.stack(nats_TNK, 1))


def impute(
  world: card_world.World,
  cards: card_world.Cards,
  column: str,
  *,
  edges_V1: np.ndarray | None = None,
  revealed: bool = False,
) -> np.ndarray:
  """P(value of a column | past, the other columns of the event), (N, T, V).

  The label of the event is hidden. Values are gaps in hours, merchants, the
  V intervals [edges[i], edges[i + 1]) of cents, channels, cities with 'none'
  last, or the error flag.
  """
  if column not in card_world.COLUMNS:
    raise ValueError(
      f'column {column!r} cannot be imputed; choose one of'
      f' {card_world.COLUMNS}, and `run` for fraud.'
    )
  if column == 'amount' and edges_V1 is None:
    raise ValueError(
      'The amount has no end of values; give edges_V1, the edges of bins in'
      ' cents.'
    )
  laws = _laws(world, cards)
  paid_NM = np.zeros((len(cards.gap), card_world.MERCHANTS), np.int64)
  result = []
  # What a candidate changes besides its own column.
  changed = {'merchant': ('merchant', 'amount', 'channel')}
  changed = changed.get(column, (column,))
  for t, step in enumerate(_walk(world, cards, laws, revealed)):
    rest = {name: laws[name] for name in laws if name not in changed}
    honest_NZCS, fraud_NZCF = _joint(world, step.prior_NZCS, rest, t)[:2]
    candidates = _candidates(world, cards, column, t, paid_NM, edges_V1)
    axis = 1 if column == 'city' else 2  # The one that does not matter.
    base_NA = honest_NZCS.sum((axis, 3))
    base_NAF = fraud_NZCF.sum(axis)
    honest_NVA, forged_NVAF = 1.0, 1.0
    for law in candidates:
      law_NVA = law.honest.sum(axis + 1) / law.honest.shape[axis + 1]
      honest_NVA = honest_NVA * law_NVA
      forged_NVAF = forged_NVAF * _camouflaged(world, law_NVA, law.forged)
    p_NV = (base_NA[:, None] * honest_NVA).sum(2)
    p_NV = p_NV + (base_NAF[:, None] * forged_NVAF).sum((2, 3))
    result.append(p_NV / p_NV.sum(1, keepdims=True))
    users_N = np.arange(len(paid_NM))
    paid_NM[users_N, cards.merchant[:, t]] = cards.cents[:, t]
  return np.stack(result, 1)


def _walk(
  world: card_world.World,
  cards: card_world.Cards,
  laws: dict[str, _Law],
  revealed: bool,
) -> Iterator[_Step]:
  users = len(cards.gap)
  state_NZCS = np.zeros((users, _Z, _C, len(card_world.REGIMES)))
  state_NZCS[..., 0] = 1 / (_Z * _C)
  for t in range(cards.gap.shape[1]):
    prior_NZCS = state_NZCS @ world.regime_SS
    step = _Step(prior_NZCS, *_joint(world, prior_NZCS, laws, t))
    yield step
    honest_NZCS, fraud_NZCF = step.honest_NZCS, step.fraud_NZCF
    if revealed:
      fraud_N111 = cards.fraud[:, t, None, None, None] == 1
      honest_NZCS = np.where(fraud_N111, 0.0, honest_NZCS)
      fraud_NZCF = np.where(fraud_N111, fraud_NZCF, 0.0)
    state_NZCS = honest_NZCS
    state_NZCS[..., 1:] += fraud_NZCF
    state_NZCS /= state_NZCS.sum((1, 2, 3), keepdims=True)


def _joint(
  world: card_world.World,
  prior_NZCS: np.ndarray,
  laws: dict[str, _Law],
  t: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Joint of latents and observed columns, honest and fraud, and the sums."""
  honest_NZCS = prior_NZCS * (1 - world.fraud_S)
  honest_NZC = honest_NZCS.sum(3)
  fraud_NZCF = prior_NZCS[..., 1:] * world.fraud_S[1:]
  all_NZC = np.ones((1, 1, 1))
  sums = []
  for law in laws.values():
    law_NZC = law.honest[:, t]
    all_NZC = all_NZC * law_NZC
    fraud_NZCF = fraud_NZCF * _camouflaged(
      world, law_NZC, law.forged[:, t, None]
    )
    of_honest_N = np.sum(honest_NZC * all_NZC, (1, 2))
    sums.append(of_honest_N + fraud_NZCF.sum((1, 2, 3)))
  return honest_NZCS * all_NZC[..., None], fraud_NZCF, np.stack(sums, 1)


def _camouflaged(
  world: card_world.World, honest: np.ndarray, forged: np.ndarray
) -> np.ndarray:
  """A fraud's law: an axis F behind those of `honest`."""
  mixed = (1 - world.kappa) * forged[..., None, :]
  return mixed + world.kappa * honest[..., None]


def _laws(world: card_world.World, cards: card_world.Cards) -> dict[str, _Law]:
  """The probabilities of every observed column, in the order of a row."""
  hour_NT = cards.hour.astype(int)
  category_NT = cards.merchant // card_world.MERCHANTS_EACH
  before_NT = np.concatenate([hour_NT[:, :1], hour_NT[:, :-1]], 1)
  gap_LNT = world.gaps_LHG[:, before_NT, cards.gap]
  gap_LNT[:, :, 0] = world.hours_LH[:, hour_NT[:, 0]]
  channel_LNT = world.channel_LMX[:, category_NT, cards.channel]
  error_LNT = world.error_L[:, None, None]
  error_LNT = np.where(cards.error == 1, error_LNT, 1 - error_LNT)
  return {
    'gap': _split(gap_LNT),
    'merchant': _merchants(world, cards, category_NT),
    'amount': _amounts(world, cards, category_NT),
    'channel': _split(channel_LNT),
    'city': _cities(cards),
    'error': _split(error_LNT),
  }


def _split(law_LNT: np.ndarray) -> _Law:
  """Rows of personas, then of the fraudulent regimes."""
  law_NTL = np.moveaxis(law_LNT, 0, -1)
  return _Law(law_NTL[..., :_Z, None], law_NTL[..., _Z:])


def _merchants(
  world: card_world.World, cards: card_world.Cards, category_NT: np.ndarray
) -> _Law:
  rank_NT = cards.merchant % card_world.MERCHANTS_EACH
  honest, forged = _split(world.category_LM[:, category_NT])
  honest = honest[..., 0].copy()
  follows_NT = world.follows_MM[category_NT[:, :-1], category_NT[:, 1:]]
  honest[:, 1:] = (honest[:, 1:] + follows_NT[..., None]) / 2
  honest *= world.ranks_R[rank_NT][..., None]
  events = cards.merchant.shape[1]
  recent_NT = np.zeros(cards.merchant.shape)
  for ago in range(1, min(card_world.RECENT, events - 1) + 1):
    recent_NT[:, ago:] += cards.merchant[:, ago:] == cards.merchant[:, :-ago]
  recent_NT /= np.clip(np.arange(events), 1, card_world.RECENT)
  known_TZ = np.where(np.arange(events)[:, None] > 0, world.known_Z, 0.0)
  honest = known_TZ * recent_NT[..., None] + (1 - known_TZ) * honest
  forged = forged * world.fraud_ranks_R[rank_NT][..., None]
  return _Law(honest[..., None], forged)


def _amounts(
  world: card_world.World, cards: card_world.Cards, category_NT: np.ndarray
) -> _Law:
  cents_NT = cards.cents.astype(float)
  honest, forged = _split(
    _amount_mass(world, category_NT, cents_NT, cents_NT + 1)
  )
  paid_NM = np.zeros((len(cents_NT), card_world.MERCHANTS))
  users_N = np.arange(len(cents_NT))
  paid_NT = np.zeros_like(cents_NT)
  for t in range(cents_NT.shape[1]):
    merchant_N = cards.merchant[:, t]
    paid_NT[:, t] = paid_NM[users_N, merchant_N]
    paid_NM[users_N, merchant_N] = cents_NT[:, t]
  repeat_NT = _repeats(category_NT, paid_NT)
  again_NT = repeat_NT * (paid_NT == cents_NT)
  honest = honest * (1 - repeat_NT)[..., None, None]
  return _Law(honest + again_NT[..., None, None], forged)


def _repeats(category: np.ndarray, paid: np.ndarray) -> np.ndarray:
  """P(the amount paid before comes again | honest)."""
  subscribed = np.isin(category, card_world.SUBSCRIPTIONS) & (paid > 0)
  return np.where(subscribed, card_world.REPEAT, 0.0)


def _amount_mass(
  world: card_world.World,
  category: np.ndarray,
  low: np.ndarray,
  high: np.ndarray,
) -> np.ndarray:
  """P(low <= cents < high) of new amounts; whole numbers, axis L first."""
  with np.errstate(divide='ignore'):
    below = np.where(low <= 1, -np.inf, np.log(np.maximum(low, 1) - 0.5))
    above = np.where(high <= 1, -np.inf, np.log(np.maximum(high, 1) - 0.5))
  mean = world.log_cents_LM[:, category]
  scale = card_world.AMOUNT_SPREAD * math.sqrt(2)
  x, y = (below - mean) / scale, (above - mean) / scale
  # In the tail where the difference loses no digits.
  x, y = np.where(x > 0, x, -y), np.where(x > 0, y, -x)
  return (_erfc(x) - _erfc(y)) / 2


def _erfc(x: np.ndarray) -> np.ndarray:
  return np.frompyfunc(math.erfc, 1, 1)(x).astype(float)


def _cities(cards: card_world.Cards) -> _Law:
  city_NT = cards.city.astype(int)
  home_NTC = city_NT[..., None] == np.arange(_C)
  away = (1 - card_world.AT_HOME) / _C
  honest_NTC = card_world.AT_HOME * home_NTC + away
  honest_NTC = np.where(city_NT[..., None] < 0, 1.0, honest_NTC)
  forged_NT = np.where(city_NT < 0, 1.0, 1 / _C)
  return _Law(
    honest_NTC[:, :, None], np.repeat(forged_NT[..., None], 2, axis=2)
  )


def _candidates(
  world: card_world.World,
  cards: card_world.Cards,
  column: str,
  t: int,
  paid_NM: np.ndarray,
  edges_V1: np.ndarray | None,
) -> list[_Law]:
  """The laws that each possible value of a column of event t has."""
  users = len(cards.gap)
  category_N = cards.merchant[:, t] // card_world.MERCHANTS_EACH
  if column == 'gap':
    return [_gap_values(world, cards, t)]
  if column == 'merchant':
    return _merchant_values(world, cards, t, paid_NM)
  if column == 'amount':
    low_V, high_V = edges_V1[:-1], edges_V1[1:]
    law = _split(_amount_mass(world, category_N[:, None], low_V, high_V))
    paid_N1 = paid_NM[np.arange(users), cards.merchant[:, t], None]
    repeat_N1 = _repeats(category_N[:, None], paid_N1)
    again_NV = repeat_N1 * (low_V <= paid_N1) * (paid_N1 < high_V)
    honest = law.honest * (1 - repeat_N1)[..., None, None]
    return [_Law(honest + again_NV[..., None, None], law.forged)]
  if column == 'channel':
    online_V = np.arange(len(card_world.CHANNELS)) == card_world.ONLINE
    possible_NV = (cards.city[:, t, None] < 0) == online_V
    law_LNV = world.channel_LMX[:, category_N] * possible_NV
    return [_split(law_LNV)]
  if column == 'city':
    city_V = np.append(np.arange(_C), -1)
    values = cards._replace(city=np.broadcast_to(city_V, (users, _C + 1)))
    law = _cities(values)
    online_N1 = cards.channel[:, t, None] == card_world.ONLINE
    possible_NV = (city_V < 0) == online_N1
    honest = law.honest * possible_NV[..., None, None]
    return [_Law(honest, law.forged * possible_NV[..., None])]
  error_LV = np.stack([1 - world.error_L, world.error_L], 1)
  return [_split(np.repeat(error_LV[:, None], users, 1))]


def _gap_values(
  world: card_world.World, cards: card_world.Cards, t: int
) -> _Law:
  """Every gap that the hour allows; none but 0 in the first event."""
  gap_V = np.arange(card_world.MAX_GAP + 1)
  if not t:
    shape = (_Z + 2, len(cards.gap), 1)
    return _split(np.ones(shape) * (gap_V == 0))
  before_N = cards.hour[:, t - 1].astype(int)
  hour_NV = (before_N[:, None] + gap_V) % card_world.HOURS
  possible_NV = hour_NV == cards.hour[:, t, None]
  return _split(world.gaps_LHG[:, before_N] * possible_NV)


def _merchant_values(
  world: card_world.World, cards: card_world.Cards, t: int, paid_NM: np.ndarray
) -> list[_Law]:
  """Every merchant, with the amount and the channel that it explains."""
  users = len(paid_NM)
  merchant_V = np.arange(card_world.MERCHANTS)
  values_NV = np.broadcast_to(merchant_V, (users, len(merchant_V)))
  category_NV = values_NV // card_world.MERCHANTS_EACH
  past_NT = cards.merchant[:, max(t - card_world.RECENT, 0) : t]
  honest, forged = _split(world.category_LM[:, category_NV])
  honest, rank_V = honest[..., 0], merchant_V % card_world.MERCHANTS_EACH
  new_NVZ = honest * world.ranks_R[rank_V][:, None]
  if t:
    last_N = past_NT[:, -1] // card_world.MERCHANTS_EACH
    follows_NV = world.follows_MM[last_N][:, category_NV[0]]
    new_NVZ = (honest + follows_NV[..., None]) / 2
    new_NVZ = new_NVZ * world.ranks_R[rank_V][:, None]
    recent_NV = np.mean(past_NT[:, None] == merchant_V[:, None], 2)
    new_NVZ = (1 - world.known_Z) * new_NVZ
    new_NVZ = new_NVZ + world.known_Z * recent_NV[..., None]
  merchant = _Law(
    new_NVZ[..., None], forged * world.fraud_ranks_R[rank_V][:, None]
  )
  cents_N1 = cards.cents[:, t, None].astype(float)
  # All merchants of a category have the same law of new amounts.
  category_NM = category_NV[:, :: card_world.MERCHANTS_EACH]
  mass_LNM = _amount_mass(world, category_NM, cents_N1, cents_N1 + 1)
  mass_LNV = np.repeat(mass_LNM, card_world.MERCHANTS_EACH, 2)
  repeat_NV = _repeats(category_NV, paid_NM)
  again_NV = repeat_NV * (paid_NM == cents_N1)
  law = _split(mass_LNV)
  honest = law.honest * (1 - repeat_NV)[..., None, None]
  amount = _Law(honest + again_NV[..., None, None], law.forged)
  channel_N1 = cards.channel[:, t, None]
  channel = _split(world.channel_LMX[:, category_NV, channel_N1])
  return [merchant, amount, channel]
