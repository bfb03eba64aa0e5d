"""Draws users who rate items from their laws, and prepares them as events."""

import dataclasses
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from data import card_stream
from data import event_schema
from data import event_source
from data import rating_world

_DAY = 86_400
_ITEM_NAMES = tuple(f'i{i:03d}' for i in range(rating_world.ITEMS))
_RATING_NAMES = tuple(str(i + 1) for i in range(rating_world.RATINGS))


class Latents(NamedTuple):
  """What nobody sees: bias_N and mood_NT, as indices."""

  bias: np.ndarray
  mood: np.ndarray


@dataclasses.dataclass(frozen=True)
class RatingStream(event_source.Synthetic):
  """Synthetic raters; the label is the rating, 1 to 5, and the past's is seen.

  evals.rating_filter knows the best possible score.
  """

  events: int = 40

  name: ClassVar[str] = 'ratings'
  schema: ClassVar[event_schema.Schema] = event_schema.Schema(
    entity='user',
    time='time',
    fields=(
      event_schema.Field('item', 'category', _ITEM_NAMES),
      event_schema.Field('rating', 'label', _RATING_NAMES),
    ),
    derived=('gap',),
  )

  @property
  def world(self) -> rating_world.World:
    return rating_world.World(self.world_seed)

  def draw(
    self, first: int, count: int
  ) -> tuple[rating_world.Ratings, Latents]:
    block = card_stream.BLOCK
    last = (first + count - 1) // block
    blocks = range(first // block, last + 1)
    made = [_block(self.world, self.events, self.seed, b) for b in blocks]
    chosen = slice(first % block, first % block + count)
    columns = [
      np.concatenate(parts)[chosen] for parts in zip(*made, strict=True)
    ]
    return rating_world.Ratings(*columns[:3]), Latents(*columns[3:])

  def table(self, events: rating_world.Ratings, first: int) -> pa.Table:
    days_NT = np.cumsum(events.gap, 1, dtype=np.int64)
    return pa.table(
      {
        **event_source.user_and_time(_DAY * days_NT, first),
        'item': event_source.words(events.item, _ITEM_NAMES),
        'rating': event_source.words(events.rating - 1, _RATING_NAMES),
      }
    )


def _block(
  world: rating_world.World, events: int, seed: int, block: int
) -> tuple[np.ndarray, ...]:
  rng = np.random.default_rng([seed, 1, block])
  size = card_stream.BLOCK, events
  bias_N = rng.choice(len(world.bias_U), size[0], p=world.bias_U)
  mood_NT = np.empty(size, np.int8)
  mood_NT[:, 0] = rng.random(size[0]) < world.first_mood_M[1]
  turn_NT = rng.random(size)
  for t in range(1, events):
    mood_NT[:, t] = turn_NT[:, t] < world.mood_MM[mood_NT[:, t - 1], 1]
  item_NT = rng.choice(rating_world.ITEMS, size, p=world.item_I)
  gap_NT = np.zeros(size, np.int16)
  for mood, law_G in enumerate(world.gap_MG):
    drawn_NT = rng.choice(len(law_G), size, p=law_G)
    gap_NT = np.where(mood_NT == mood, drawn_NT, gap_NT).astype(np.int16)
  gap_NT[:, 0] = 0
  law_NTR = world.rating_UMIR[bias_N[:, None], mood_NT, item_NT]
  level_NT = rng.random(size)[..., None] >= np.cumsum(law_NTR, 2)[..., :-1]
  rating_NT = 1 + level_NT.sum(2)
  return (
    gap_NT, item_NT.astype(np.int16), rating_NT.astype(np.int8), bias_N, mood_NT
  )  # fmt: skip
