"""The laws of synthetic card users, of whom everything is known exactly.

A user has a persona and a home city that never change, and a fraud regime that
is a Markov chain over events: clean, testing or cash-out. Every column of an
event is drawn from a discrete law given these and the visible history; each
column of a fraudulent event follows the law of honest ones with probability
`kappa`. So a filter over persona, home and regime gives exact probabilities.

Array names end in their axes:
  N users  T events of one user  Z personas  C cities  S regimes  M categories
  R merchants of a category  X channels  H hours of the day  G gaps in hours
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

PERSONAS = 6
CITIES = 20
REGIMES = ('clean', 'testing', 'cash-out')
CATEGORIES = 12
MERCHANTS_EACH = 40
MERCHANTS = CATEGORIES * MERCHANTS_EACH
CHANNELS = ('chip', 'swipe', 'online')
ONLINE = CHANNELS.index('online')
MAX_GAP = 240
HOURS = 24
# A known merchant is one of those of this many events before.
RECENT = 8
# Merchants of these categories take the same amount again.
SUBSCRIPTIONS = (10, 11)
REPEAT = 0.9
AT_HOME = 0.92
AMOUNT_SPREAD = 0.6
ERROR = 0.01
COLUMNS = ('gap', 'merchant', 'amount', 'channel', 'city', 'error')

# Of the fraudulent events of the regimes testing and cash-out.
_FRAUD_GAPS = (0.7, 2.0)
_FRAUD_AMOUNTS = (1.2, 180.0)
_FRAUD_ERRORS = (0.15, 0.05)
_FRAUD_CHANNELS = ((0.02, 0.03, 0.95), (0.10, 0.40, 0.50))


class Cards(NamedTuple):
  """Events of users, one row per user; every array is an integer (N, T).

  gap: hours since the event before, 0 in the first column; hour: of the day;
  merchant: in [0, MERCHANTS), its category is merchant // MERCHANTS_EACH;
  cents; channel: index in CHANNELS; city: -1 where the channel is online;
  error, fraud: 0 or 1.
  """

  gap: np.ndarray
  hour: np.ndarray
  merchant: np.ndarray
  cents: np.ndarray
  channel: np.ndarray
  city: np.ndarray
  error: np.ndarray
  fraud: np.ndarray


class Latents(NamedTuple):
  """What nobody sees: persona_N, home_N and regime_NT."""

  persona: np.ndarray
  home: np.ndarray
  regime: np.ndarray


@dataclasses.dataclass(frozen=True)
class World:
  """Every law, from one seed that all splits share.

  kappa: probability that a column of a fraudulent event looks honest.
  """

  kappa: float = 0.6
  seed: int = 0

  def __post_init__(self) -> None:
    if not 0 <= self.kappa <= 1:
      raise ValueError(
        f'kappa={self.kappa} is a probability; choose it in [0, 1], 0.6 by'
        ' default: 0 shows all fraud, 1 hides all.'
      )

  @property
  def regime_SS(self) -> np.ndarray:
    """P(next regime | regime), applied before every event, the first too."""
    return np.array(
      [[0.9985, 0.0015, 0.0], [0.05, 0.60, 0.35], [0.15, 0.0, 0.85]]
    )

  @property
  def fraud_S(self) -> np.ndarray:
    """P(the event is fraudulent | regime)."""
    return np.array([0.0, 0.75, 0.80])

  @functools.cached_property
  def hours_LH(self) -> np.ndarray:
    """Hour of the first event: rows of personas, then of testing, cash-out."""
    hours_H = np.arange(HOURS)
    rng = self._rng(1)
    rows = []
    for _ in range(PERSONAS):
      morning, evening = rng.uniform(6, 13), rng.uniform(15, 22)
      share = rng.uniform(0.3, 0.7)
      rows.append(
        share * _bump(hours_H, morning, 1.5)
        + (1 - share) * _bump(hours_H, evening, 1.5)
        + 0.002
      )
    rows += [_bump(hours_H, 3.0, 0.8)] * 2
    return _normalised(np.array(rows))

  @functools.cached_property
  def gaps_LHG(self) -> np.ndarray:
    """Gap given the hour of the event before; rows as those of `hours_LH`."""
    mean_L = np.concatenate(
      [self._rng(2).permutation(np.geomspace(7, 44, PERSONAS)), _FRAUD_GAPS]
    )
    gap_G = np.arange(MAX_GAP + 1)
    decay_LG = np.exp(-gap_G / mean_L[:, None])
    hour_HG = (np.arange(HOURS)[:, None] + gap_G) % HOURS
    return _normalised(decay_LG[:, None] * self.hours_LH[:, hour_HG])

  @functools.cached_property
  def known_Z(self) -> np.ndarray:
    """P(the merchant is one of the last RECENT events | persona)."""
    return self._rng(3).permutation(np.linspace(0.35, 0.75, PERSONAS))

  @functools.cached_property
  def category_LM(self) -> np.ndarray:
    """What categories personas prefer; two last rows: the frauds' choice."""
    rng = self._rng(4)
    prefer_ZM = rng.dirichlet(np.full(CATEGORIES, 0.8), PERSONAS)
    fraud_SM = rng.dirichlet(np.full(CATEGORIES, 2.0), 2)
    rows_LM = np.concatenate([prefer_ZM, fraud_SM])
    return _normalised(rows_LM + 0.002)

  @functools.cached_property
  def follows_MM(self) -> np.ndarray:
    """P(category | category of the event before)."""
    rng = self._rng(5)
    rows_MM = rng.dirichlet(np.full(CATEGORIES, 0.8), CATEGORIES)
    return _normalised(rows_MM + 0.002)

  @functools.cached_property
  def ranks_R(self) -> np.ndarray:
    """P(merchant | its category, honest): Zipf of exponent 1.1."""
    return _normalised(np.arange(1.0, MERCHANTS_EACH + 1) ** -1.1)

  @functools.cached_property
  def fraud_ranks_R(self) -> np.ndarray:
    """P(merchant | its category, fraud): uniform."""
    return np.full(MERCHANTS_EACH, 1 / MERCHANTS_EACH)

  @functools.cached_property
  def log_cents_LM(self) -> np.ndarray:
    """Mean of the logarithm of a new amount; two last rows are of fraud."""
    rng = self._rng(6)
    category_M = rng.normal(3.6, 0.8, CATEGORIES)
    persona_Z = rng.normal(0.0, 0.4, PERSONAS)
    fraud_S = np.log(_FRAUD_AMOUNTS)
    rows = [persona_Z[:, None] + category_M, np.tile(fraud_S[:, None], 12)]
    return np.concatenate(rows) + np.log(100)

  @functools.cached_property
  def channel_LMX(self) -> np.ndarray:
    """P(channel | persona, category); two last rows are of fraud."""
    rng = self._rng(7)
    taste_ZX = rng.dirichlet([1.2, 0.6, 0.5], PERSONAS)
    habit_MX = rng.dirichlet([1.2, 0.6, 0.5], CATEGORIES)
    honest_ZMX = (taste_ZX[:, None] + habit_MX) / 2
    fraud_SMX = np.repeat(np.array(_FRAUD_CHANNELS)[:, None], CATEGORIES, 1)
    return _normalised(np.concatenate([honest_ZMX, fraud_SMX]) + 0.002)

  @property
  def error_L(self) -> np.ndarray:
    """P(the error flag | persona); two last entries are of fraud."""
    return np.array([ERROR] * PERSONAS + list(_FRAUD_ERRORS))

  def _rng(self, part: int) -> np.random.Generator:
    return np.random.default_rng([self.seed, 72_019, part])


def _bump(hours_H: np.ndarray, centre: float, tight: float) -> np.ndarray:
  """A von Mises profile over the hours, up to its scale."""
  angle_H = 2 * np.pi * (hours_H - centre) / HOURS
  profile_H = np.exp(tight * np.cos(angle_H))
  return profile_H / profile_H.sum()


def _normalised(rows: np.ndarray) -> np.ndarray:
  return rows / rows.sum(-1, keepdims=True)
