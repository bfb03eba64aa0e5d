"""Draws card users from their laws, all users of a block at a time."""

import functools
from typing import NamedTuple

import numpy as np

from data import card_world

BLOCK = 512
_EVENT_UNIFORMS = 18


class _Tables(NamedTuple):
  """Laws as rows of cumulative probabilities, for `_draw`."""

  regimes: np.ndarray
  hours: np.ndarray
  gaps: np.ndarray
  categories: np.ndarray
  follows: np.ndarray
  ranks: np.ndarray
  channels: np.ndarray


def users(
  world: card_world.World, first: int, count: int, events: int, seed: int
) -> tuple[card_world.Cards, card_world.Latents]:
  """Users first ... first + count - 1 of an endless row of users.

  A user depends on (world, events, seed) and their own number alone: however
  the row is cut, the same bytes come out.
  """
  if min(first, seed) < 0 or min(count, events) < 1:
    raise ValueError(
      f'first={first} and seed={seed} must be >= 0 and count={count} and'
      f' events={events} >= 1.'
    )
  cards, latents = [], []
  for block in range(first // BLOCK, (first + count - 1) // BLOCK + 1):
    low = max(first - block * BLOCK, 0)
    high = min(first + count - block * BLOCK, BLOCK)
    made, hidden = _block(world, events, seed, block)
    cards.append([column[low:high] for column in made])
    latents.append([column[low:high] for column in hidden])
  return (
    card_world.Cards(*map(np.concatenate, zip(*cards, strict=True))),
    card_world.Latents(*map(np.concatenate, zip(*latents, strict=True))),
  )


def _block(
  world: card_world.World, events: int, seed: int, block: int
) -> tuple[card_world.Cards, card_world.Latents]:
  rng = np.random.default_rng([seed, block])
  persona_N = rng.integers(card_world.PERSONAS, size=BLOCK)
  home_N = rng.integers(card_world.CITIES, size=BLOCK)
  state = _State(world, persona_N, home_N)
  rows = [state.step(rng) for _ in range(events)]
  columns = [np.stack(column, 1) for column in zip(*rows, strict=True)]
  latents = card_world.Latents(persona_N, home_N, columns.pop())
  return card_world.Cards(*columns), latents


class _State:
  """What the next event of every user of a block depends on."""

  def __init__(
    self, world: card_world.World, persona_N: np.ndarray, home_N: np.ndarray
  ) -> None:
    size = len(persona_N)
    self._world = world
    self._tables = _tables(world)
    self._persona_N, self._home_N = persona_N, home_N
    self._regime_N = np.zeros(size, np.int64)
    self._hour_N = np.zeros(size, np.int64)
    self._recent_NJ = np.zeros((size, card_world.RECENT), np.int64)
    # The last amount at every merchant; 0 where there is none.
    self._paid_NM = np.zeros((size, card_world.MERCHANTS), np.int64)
    self._seen = 0

  def step(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The next event: the columns of Cards, then the regimes."""
    u_UN = rng.random((_EVENT_UNIFORMS, len(self._persona_N)))
    self._regime_N = _draw(self._tables.regimes, self._regime_N, u_UN[0])
    fraud_N = u_UN[1] < self._world.fraud_S[self._regime_N]
    # The row of the tables that each column is drawn from.
    rows_KN = np.where(
      fraud_N & (u_UN[2:8] >= self._world.kappa),
      card_world.PERSONAS - 1 + self._regime_N,
      self._persona_N,
    )
    gap_N = self._gap(rows_KN[0], u_UN[8])
    merchant_N = self._merchant(rows_KN[1], u_UN[9:13])
    normal_N = rng.standard_normal(len(fraud_N))
    cents_N = self._cents(rows_KN[2], merchant_N, u_UN[13], normal_N)
    category_N = merchant_N // card_world.MERCHANTS_EACH
    channel_N = _draw(
      self._tables.channels,
      rows_KN[3] * card_world.CATEGORIES + category_N,
      u_UN[14],
    )
    city_N = self._city(rows_KN[4], channel_N, u_UN[15:17])
    error_N = u_UN[17] < self._world.error_L[rows_KN[5]]
    self._recent_NJ[:, self._seen % card_world.RECENT] = merchant_N
    self._paid_NM[np.arange(len(merchant_N)), merchant_N] = cents_N
    self._seen += 1
    return (
      gap_N.astype(np.int16),
      self._hour_N.astype(np.int8),
      merchant_N.astype(np.int16),
      cents_N.astype(np.int32),
      channel_N.astype(np.int8),
      city_N.astype(np.int8),
      error_N.astype(np.int8),
      fraud_N.astype(np.int8),
      self._regime_N.astype(np.int8),
    )

  def _gap(self, row_N: np.ndarray, u_N: np.ndarray) -> np.ndarray:
    if not self._seen:
      self._hour_N = _draw(self._tables.hours, row_N, u_N)
      return np.zeros_like(row_N)
    table_row_N = row_N * card_world.HOURS + self._hour_N
    gap_N = _draw(self._tables.gaps, table_row_N, u_N)
    self._hour_N = (self._hour_N + gap_N) % card_world.HOURS
    return gap_N

  def _merchant(self, row_N: np.ndarray, u_UN: np.ndarray) -> np.ndarray:
    honest_N = row_N < card_world.PERSONAS
    own_N = _draw(self._tables.categories, row_N, u_UN[0])
    category_N, known_N = own_N, np.zeros_like(honest_N)
    seen = min(self._seen, card_world.RECENT)
    if seen:
      last_N = self._recent_NJ[:, (self._seen - 1) % card_world.RECENT]
      last_N = last_N // card_world.MERCHANTS_EACH
      # Half by taste and half by what came before.
      follows_N = honest_N & (u_UN[1] < 0.5)
      next_N = _draw(self._tables.follows, last_N, u_UN[0])
      category_N = np.where(follows_N, next_N, own_N)
      known_N = honest_N & (u_UN[2] < self._world.known_Z[self._persona_N])
    rank_N = _draw(self._tables.ranks, 1 - honest_N.astype(int), u_UN[3])
    new_N = category_N * card_world.MERCHANTS_EACH + rank_N
    slot_N = (u_UN[3] * max(seen, 1)).astype(int)
    old_N = self._recent_NJ[np.arange(len(slot_N)), slot_N]
    return np.where(known_N, old_N, new_N)

  def _cents(
    self,
    row_N: np.ndarray,
    merchant_N: np.ndarray,
    u_N: np.ndarray,
    normal_N: np.ndarray,
  ) -> np.ndarray:
    category_N = merchant_N // card_world.MERCHANTS_EACH
    mean_N = self._world.log_cents_LM[row_N, category_N]
    drawn_N = np.exp(mean_N + card_world.AMOUNT_SPREAD * normal_N)
    new_N = np.maximum(np.floor(drawn_N + 0.5), 1).astype(int)
    old_N = self._paid_NM[np.arange(len(merchant_N)), merchant_N]
    again_N = (
      (row_N < card_world.PERSONAS)
      & np.isin(category_N, card_world.SUBSCRIPTIONS)
      & (old_N > 0)
      & (u_N < card_world.REPEAT)
    )
    return np.where(again_N, old_N, new_N)

  def _city(
    self, row_N: np.ndarray, channel_N: np.ndarray, u_UN: np.ndarray
  ) -> np.ndarray:
    home_N = (row_N < card_world.PERSONAS) & (u_UN[0] < card_world.AT_HOME)
    away_N = (u_UN[1] * card_world.CITIES).astype(int)
    city_N = np.where(home_N, self._home_N, away_N)
    return np.where(channel_N == card_world.ONLINE, -1, city_N)


@functools.lru_cache(maxsize=8)
def _tables(world: card_world.World) -> _Tables:
  ranks_AR = np.stack([world.ranks_R, world.fraud_ranks_R])
  return _Tables(
    *map(
      _cumulative,
      (
        world.regime_SS,
        world.hours_LH,
        world.gaps_LHG.reshape(-1, card_world.MAX_GAP + 1),
        world.category_LM,
        world.follows_MM,
        ranks_AR,
        world.channel_LMX.reshape(-1, len(card_world.CHANNELS)),
      ),
    )
  )


def _cumulative(law_LK: np.ndarray) -> np.ndarray:
  """Cumulative probabilities, each row one above the row before."""
  sums_LK = np.cumsum(law_LK, 1)
  sums_LK /= sums_LK[:, -1:]
  return sums_LK + np.arange(len(law_LK))[:, None]


def _draw(
  table_LK: np.ndarray, row_N: np.ndarray, u_N: np.ndarray
) -> np.ndarray:
  """Column k of row_N with its probability, by a search in all rows at once."""
  width = table_LK.shape[1]
  flat_N = np.searchsorted(table_LK.ravel(), row_N + u_N, side='right')
  return np.clip(flat_N - row_N * width, 0, width - 1)
