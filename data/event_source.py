"""Where events come from: prepared once, split, encoded, opened by split."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from data import card_stream
from data import card_world
from data import event_corpus
from data import event_schema
from data import event_tokens
from data import folders

SPLITS = ('train', 'validation', 'test')
# entity: new entities; time: the same ones later; both: new ones later.
SPLIT_BY = ('entity', 'time', 'both')
# Part of every folder's name; raised when the files below it change meaning.
_LAYOUT = 2
_SECOND = 10**6
# Users begin on one of this many days from Monday, 2024-01-01.
_START = 1_704_067_200
_START_DAYS = 28
_MERCHANT_NAMES = tuple(
  f'm{i // card_world.MERCHANTS_EACH:02d}_{i % card_world.MERCHANTS_EACH:02d}'
  for i in range(card_world.MERCHANTS)
)
_CITY_NAMES = tuple(f'c{i:02d}' for i in range(card_world.CITIES))
_FLAGS = ('no', 'yes')
_CLASSES = ('0', '1')

CARD_SCHEMA = event_schema.Schema(
  entity='user',
  time='time',
  fields=(
    event_schema.Field('merchant', 'category', _MERCHANT_NAMES),
    event_schema.Field('amount', 'number'),
    event_schema.Field('channel', 'category', card_world.CHANNELS),
    event_schema.Field('city', 'category', _CITY_NAMES),
    event_schema.Field('error', 'bool', _FLAGS),
    event_schema.Field('fraud', 'label', _CLASSES),
  ),
  derived=('gap', 'hour'),
)


@dataclasses.dataclass(frozen=True)
class Synthetic:
  """Users drawn from known laws, prepared as files of events are.

  users: of all three splits; the first 60% train, then 20% validation.
  events: of each user.
  seed: of the users; world_seed: of the laws they follow.
  split_by: one of SPLIT_BY. By time, the borders are the times before which
    60% and 80% of all events lie, and the past of a split is history that is
    not scored.
  """

  users: int = 10_000
  events: int = 120
  seed: int = 0
  world_seed: int = 0
  split_by: str = 'entity'
  bins: int = 32
  directory: str = '~/.cache/patchwork'

  name: ClassVar[str]
  schema: ClassVar[event_schema.Schema]

  def __post_init__(self) -> None:
    check_split_by(self.split_by)
    if self.users < 5 or self.events < 1:
      raise ValueError(
        f'data.users={self.users} and data.events={self.events} must be at'
        ' least 5 and 1, so that every split has a user with an event.'
      )

  @property
  def world(self) -> Any:
    """The laws of the users."""
    raise NotImplementedError

  def draw(self, first: int, count: int) -> tuple[Any, Any]:
    """Events and latents of users first ... first + count - 1."""
    raise NotImplementedError

  def table(self, events: Any, first: int) -> pa.Table:
    """Users as a table in the layout of `schema`, named from `first` on."""
    raise NotImplementedError

  def prepare(self) -> pathlib.Path:
    """Makes all splits unless they are there; returns their folder."""
    identity = dataclasses.asdict(self) | {'layout': _LAYOUT}
    del identity['directory']
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    directory = pathlib.Path(self.directory).expanduser()
    folder = directory / f'{self.name}-{key.hexdigest()[:16]}'
    return folders.make_once(folder, self._build)

  def open(self, split: str) -> event_corpus.EventCorpus:
    """One split, prepared first where needed."""
    corpus = open_split(self.prepare(), split)
    return dataclasses.replace(corpus, stream=self)

  def trained(self) -> Any:
    """This stream, prepared: its folder keeps the fitted tokenizer."""
    self.prepare()
    return self

  def untrained(self) -> Any:
    """This stream as a config file names it."""
    return self

  @functools.cached_property
  def tokenizer(self) -> event_tokens.Tokenizer:
    """Fitted on the training events of this stream."""
    return read_tokenizer(self.prepare())

  def drawn(self, split: str) -> tuple[Any, Any]:
    """The users of a split as the laws made them, for the exact filter.

    Row i is entity i of `open(split)`, event j its j-th event; where the split
    is by time, earlier splits have the first of these events only.
    """
    first, last = self._users(split)
    return self.draw(first, last - first)

  def fresh(self, first: int, count: int) -> event_corpus.EventCorpus:
    """Users first ... first + count - 1 beyond all splits, in memory."""
    events, _ = self.fresh_drawn(first, count)
    return self.encode(events, self._beyond + first)

  def fresh_drawn(self, first: int, count: int) -> tuple[Any, Any]:
    """What `fresh` encodes, and its latents."""
    return self.draw(self._beyond + first, count)

  def encode(self, events: Any, first: int = 0) -> event_corpus.EventCorpus:
    """Users as a corpus in memory, named from number `first` on."""
    corpus = event_corpus.EventCorpus.encoded(
      self.table(events, first), self.tokenizer, 'fresh'
    )
    return dataclasses.replace(corpus, stream=self)

  @property
  def _beyond(self) -> int:
    """The first user of a block that no split has a user of."""
    return -(-self.users // card_stream.BLOCK) * card_stream.BLOCK

  def _users(self, split: str) -> tuple[int, int]:
    check_split(split)
    if self.split_by == 'time':
      return 0, self.users
    borders = 0, self.users * 3 // 5, self.users * 4 // 5, self.users
    index = SPLITS.index(split)
    return borders[index], borders[index + 1]

  def _build(self, folder: pathlib.Path) -> None:
    times, time = None, self.schema.time
    if self.split_by != 'entity':
      table = self.table(self.draw(0, self.users)[0], 0)
      time_E = event_tokens.microseconds(table, time)
      times = np.quantile(time_E, [0.6, 0.8], method='lower')
    tokenizer, counts = None, {}
    for split in SPLITS:
      first, _ = self._users(split)
      table = self.table(self.drawn(split)[0], first)
      table, scored_E = cut(table, time, split, times)
      if tokenizer is None:
        limits = event_tokens.Limits(bins=self.bins)
        tokenizer = event_tokens.fit(self.schema, table, limits)
      writer = event_corpus.Writer(folder / split, tokenizer)
      writer.add(table, scored_E)
      counts[split] = writer.close()
    finish(folder, self.schema, tokenizer, {'splits': counts})


@dataclasses.dataclass(frozen=True)
class CardStream(Synthetic):
  """Synthetic card users; the exact filter knows the best possible score.

  kappa: how often a column of a fraud looks honest; 1 hides all frauds.
  """

  kappa: float = 0.6

  name: ClassVar[str] = 'cards'
  schema: ClassVar[event_schema.Schema] = CARD_SCHEMA

  @property
  def world(self) -> card_world.World:
    return card_world.World(self.kappa, self.world_seed)

  def draw(
    self, first: int, count: int
  ) -> tuple[card_world.Cards, card_world.Latents]:
    return card_stream.users(self.world, first, count, self.events, self.seed)

  def table(self, events: card_world.Cards, first: int) -> pa.Table:
    hours_NT = np.cumsum(events.gap, 1, dtype=np.int64) + events.hour[:, :1]
    return pa.table(
      {
        **user_and_time(3600 * hours_NT, first),
        'merchant': words(events.merchant, _MERCHANT_NAMES),
        'amount': pa.array(events.cents.ravel() / 100),
        'channel': words(events.channel, card_world.CHANNELS),
        'city': words(events.city, _CITY_NAMES),
        'error': words(events.error, _FLAGS),
        'fraud': words(events.fraud, _CLASSES),
      }
    )

  def cards(self, split: str) -> tuple[card_world.Cards, card_world.Latents]:
    """The users of a split as drawn."""
    return self.drawn(split)

  def fresh_cards(
    self, first: int, count: int
  ) -> tuple[card_world.Cards, card_world.Latents]:
    """What `fresh` encodes, and its latents."""
    return self.fresh_drawn(first, count)


def user_and_time(seconds_NT: np.ndarray, first: int) -> dict[str, pa.Array]:
  """The columns of users numbered from `first` on, and of their times.

  seconds_NT: since the midnight when a user begins.
  """
  users, events = seconds_NT.shape
  number_N = np.arange(first, first + users)
  # Spreads the first days evenly, whatever the split.
  day_N = number_N * 17 % _START_DAYS
  time_NT = _START + 86_400 * day_N[:, None] + seconds_NT
  user_NT = np.repeat(np.arange(users, dtype=np.int32), events)
  names = [f'u{number:06d}' for number in number_N]
  return {
    'user': pa.DictionaryArray.from_arrays(user_NT, names),
    'time': pa.array(time_NT.ravel() * _SECOND, pa.timestamp('us', 'UTC')),
  }


def check_split(split: str) -> None:
  """ValueError unless the split has a name that exists."""
  if split not in SPLITS:
    raise ValueError(f'split {split!r} is unknown; choose one of {SPLITS}.')


def open_split(folder: pathlib.Path, split: str) -> event_corpus.EventCorpus:
  """One split of a prepared folder."""
  check_split(split)
  return event_corpus.EventCorpus.load(folder / split, read_tokenizer(folder))


def read_tokenizer(folder: pathlib.Path) -> event_tokens.Tokenizer:
  """The tokenizer of a prepared folder."""
  path = folder / 'tokenizer.json'
  return event_tokens.Tokenizer.from_json(path.read_bytes(), str(path))


def cut(
  table: pa.Table, time: str, split: str, times: np.ndarray | None
) -> tuple[pa.Table, np.ndarray]:
  """The events of a split and which are scored.

  times: microseconds at which validation and test begin; None keeps all.
  """
  if times is None:
    return table, np.ones(len(table), bool)
  time_E = event_tokens.microseconds(table, time)
  begin = dict(zip(SPLITS, (None, *times), strict=True))[split]
  end = dict(zip(SPLITS, (*times, None), strict=True))[split]
  kept_E = np.ones(len(table), bool) if end is None else time_E < end
  scored_E = np.ones(len(table), bool) if begin is None else time_E >= begin
  return table.filter(pa.array(kept_E)), scored_E[kept_E]


def finish(
  folder: pathlib.Path,
  schema: event_schema.Schema,
  tokenizer: event_tokens.Tokenizer,
  metadata: dict[str, Any],
) -> None:
  """Writes what a prepared folder holds beside its splits."""
  (folder / 'schema.json').write_text(schema.to_json(), 'utf-8')
  (folder / 'tokenizer.json').write_text(tokenizer.to_json(), 'utf-8')
  content = json.dumps([tokenizer.digest, metadata['splits']])
  metadata |= {'content_sha256': hashlib.sha256(content.encode()).hexdigest()}
  text = json.dumps(metadata | {'tokenizer': tokenizer.digest}, indent=2)
  (folder / 'metadata.json').write_text(text, 'utf-8')


def check_split_by(split_by: str) -> None:
  """ValueError unless there is such a way to split."""
  if split_by not in SPLIT_BY:
    raise ValueError(
      f'data.split_by={split_by!r} is unknown; choose one of {SPLIT_BY}.'
    )


def words(code_NT: np.ndarray, words: tuple[str, ...]) -> pa.Array:
  """Codes as a column of words; negative ones are missing."""
  code_E = code_NT.ravel().astype(np.int32)
  indices = pa.array(code_E, mask=code_E < 0)
  return pa.DictionaryArray.from_arrays(indices, list(words))
