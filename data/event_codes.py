"""How the values of one column become small integers, and back.

Local ids begin with the special ones. Words: NULL, UNKNOWN (labels: MASK, too).
Numbers: NULL, UNDER, OVER, ZERO. Recents: NULL, NEW.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NULL = 0
# Of words.
UNKNOWN = 1
MASK = 2
# Of numbers.
UNDER, OVER, ZERO = 1, 2, 3
# Of recent values.
NEW = 1

_WORDS, _LABELS, _NUMBERS, _RECENTS = 2, 3, 4, 2
# Train values kept of every bin to draw from; the one in the middle is the
# median.
_SAMPLES = 65
_DEEPEST = 2**20  # of Recents
_NEW_VALUES = 1024  # of training, that Recents keep to draw from


@dataclasses.dataclass(frozen=True)
class Words:
  """One id per word; those not seen in training share UNKNOWN.

  masked: whether there is a MASK id, as labels have.
  """

  words: tuple[str, ...]
  masked: bool = False

  @property
  def first(self) -> int:
    """The id of the first word."""
    return _LABELS if self.masked else _WORDS

  @property
  def size(self) -> int:
    return self.first + len(self.words)

  def encode(self, column: pa.Array, first_E: np.ndarray) -> np.ndarray:
    """Local ids of a column of any type, by its values as text."""
    del first_E
    if pa.types.is_dictionary(column.type):
      ids_V = np.append(self._encode_text(column.dictionary), NULL)
      chosen = pc.fill_null(column.indices.cast(pa.int64()), -1)
      return ids_V[chosen.to_numpy(zero_copy_only=False)]
    return self._encode_text(column)

  def decode(
    self, ids_E: np.ndarray, rng: np.random.Generator | None
  ) -> pa.Array:
    """The words; null for every special id."""
    del rng
    indices = pa.array(ids_E - self.first, mask=ids_E < self.first)
    return self._words.take(indices)

  def _encode_text(self, column: pa.Array) -> np.ndarray:
    text = column.cast(pa.string())
    found = pc.index_in(text, value_set=self._words)
    # Of an empty set of words nothing is found, not even null.
    ids_E = pc.fill_null(found, -1).to_numpy(zero_copy_only=False)
    ids_E = np.where(ids_E < 0, UNKNOWN, ids_E + self.first)
    missing_E = text.is_null().to_numpy(zero_copy_only=False)
    return np.where(missing_E, NULL, ids_E).astype(np.int32)

  @functools.cached_property
  def _words(self) -> pa.Array:
    return pa.array(self.words, pa.string())


@dataclasses.dataclass(frozen=True)
class Bins:
  """One id per interval between edges; the first and last are the extremes.

  samples: train values of every bin, in order.
  scale, mean, spread: `values` are (asinh(x / scale) - mean) / spread.
  """

  edges: tuple[float, ...]
  samples: tuple[tuple[float, ...], ...]
  scale: float
  mean: float
  spread: float

  @property
  def first(self) -> int:
    """The id of the first bin."""
    return _NUMBERS

  @property
  def size(self) -> int:
    return _NUMBERS + len(self.samples)

  def encode(self, column: pa.Array, first_E: np.ndarray) -> np.ndarray:
    """Local ids of numbers."""
    del first_E
    x_E = as_floats(column)
    ids_E = np.searchsorted(self.edges[1:-1], x_E, side='right') + self.first
    ids_E = np.where(x_E < self.edges[0], UNDER, ids_E)
    ids_E = np.where(x_E > self.edges[-1], OVER, ids_E)
    ids_E = np.where(x_E == 0, ZERO, ids_E)
    return np.where(np.isnan(x_E), NULL, ids_E).astype(np.int32)

  def values(self, column: pa.Array) -> np.ndarray:
    """Standardised numbers in float32, NaN where there is none."""
    x_E = np.arcsinh(as_floats(column) / self.scale)
    return ((x_E - self.mean) / self.spread).astype(np.float32)

  def decode(
    self, ids_E: np.ndarray, rng: np.random.Generator | None
  ) -> pa.Array:
    """A train value of each bin: its median, or drawn where there is an rng.

    UNDER and OVER give the extremes of training.
    """
    counts_I = np.array([len(s) for s in self.samples])
    starts_I = np.cumsum(counts_I) - counts_I
    bin_E = np.clip(ids_E - self.first, 0, len(self.samples) - 1)
    share_E = 0.5 if rng is None else rng.random(len(ids_E))
    place_E = starts_I[bin_E] + (counts_I[bin_E] * share_E).astype(int)
    x_E = np.concatenate(self.samples)[place_E]
    for special, value in (
      (UNDER, self.edges[0]), (OVER, self.edges[-1]), (ZERO, 0.0),
    ):  # fmt: skip
      x_E = np.where(ids_E == special, value, x_E)
    return pa.array(x_E, pa.float64(), mask=ids_E == NULL)

  @classmethod
  def fitted(cls, x_E: np.ndarray, *, bins: int, logarithmic: bool) -> 'Bins':
    """Bins of equal mass, or of equal width of the logarithm.

    Edges that coincide are one, and a bin without a train value is joined to
    the one below. NaN and 0 are left out: they have ids of their own.
    """
    x_E = np.sort(x_E[np.isfinite(x_E) & (x_E != 0)])
    if not len(x_E):
      x_E = np.ones(1)
    if logarithmic and x_E[0] > 0:
      edges = np.geomspace(x_E[0], x_E[-1], bins + 1)
      edges[0], edges[-1] = x_E[0], x_E[-1]
    else:
      edges = np.quantile(x_E, np.linspace(0, 1, bins + 1))
    inner = np.unique(edges[1:-1])
    inner = inner[(inner > x_E[0]) & (inner <= x_E[-1])]
    starts = np.searchsorted(x_E, inner, side='left')
    inner = inner[np.diff(np.append(starts, len(x_E))) > 0]
    cuts = np.searchsorted(x_E, inner, side='left')
    scale = float(np.median(np.abs(x_E)))
    bent_E = np.arcsinh(x_E / scale)
    return cls(
      edges=(float(x_E[0]), *map(float, inner), float(x_E[-1])),
      samples=tuple(_chosen(part) for part in np.split(x_E, cuts)),
      scale=scale,
      mean=float(bent_E.mean()),
      spread=float(bent_E.std()) or 1.0,
    )


@dataclasses.dataclass(frozen=True)
class Recents:
  """How many events of the entity ago the same value came, or NEW.

  For columns of more values than can have an id each, or of values too rare to
  be learned. NEW + k is the value of k events ago, k <= depth. Unlike buckets
  of a hash, ids stay few however many values there are, and those that stand
  for a value of the past can be written as that value.

  samples: train values that were new, to draw from.
  """

  depth: int = 16
  samples: tuple[str, ...] = ()

  @property
  def first(self) -> int:
    """The id of a new value."""
    return NEW

  @property
  def size(self) -> int:
    return _RECENTS + self.depth

  def encode(self, column: pa.Array, first_E: np.ndarray) -> np.ndarray:
    """Local ids; first_E is where the entity of each event begins."""
    if not pa.types.is_dictionary(column.type):
      column = column.dictionary_encode()
    codes = pc.fill_null(column.indices.cast(pa.int64()), -1)
    code_E = codes.to_numpy(zero_copy_only=False)
    place_E = np.arange(len(code_E))
    ids_E = np.full(len(code_E), NEW, np.int32)
    for ago in range(min(self.depth, len(code_E) - 1), 0, -1):
      same = code_E[ago:] == code_E[:-ago]
      same &= place_E[ago:] - ago >= first_E[ago:]
      ids_E[ago:][same] = NEW + ago
    return np.where(code_E < 0, NULL, ids_E)

  def decode(
    self, ids_E: np.ndarray, rng: np.random.Generator | None
  ) -> pa.Array:
    """What is known without the history: 'NEW' or '3 ago'."""
    del rng
    words = ['NEW', *(f'{ago} ago' for ago in range(1, self.depth + 1))]
    indices = pa.array(ids_E - NEW, mask=ids_E == NULL)
    return pa.array(words).take(indices)

  def value(
    self,
    history: Sequence[str | None],
    number: int,
    rng: np.random.Generator | None = None,
  ) -> str | None:
    """What an id stands for after a history; a new one is drawn, or None.

    What is older than the history is as new.
    """
    ago = number - NEW
    if 0 < ago <= len(history):
      return history[-ago]
    if number == NULL or rng is None or not self.samples:
      return None
    known = set(history[-self.depth :])
    new = [value for value in self.samples if value not in known]
    return new[rng.integers(len(new))] if new else None

  @classmethod
  def fitted(
    cls, column: pa.Array, first_E: np.ndarray, *, depth: int
  ) -> 'Recents':
    """With new values of training, evenly spread over its events."""
    new_E = cls(depth).encode(column, first_E) == NEW
    places = np.flatnonzero(new_E)
    count = min(len(places), _NEW_VALUES)
    places = places[np.arange(count) * len(places) // max(count, 1)]
    values = column.take(pa.array(places)).cast(pa.string()).to_pylist()
    return cls(depth, tuple(values))


Code = Words | Bins | Recents


def as_floats(column: pa.Array) -> np.ndarray:
  """A column of numbers in float64, NaN where there is none."""
  column = column.cast(pa.float64())
  return pc.fill_null(column, np.nan).to_numpy(zero_copy_only=False)


def to_json(code: Code) -> dict[str, Any]:
  """A code as JSON values; `from_json` is its inverse."""
  return {'code': type(code).__name__, **dataclasses.asdict(code)}


def from_json(stored: dict[str, Any]) -> Code:
  """What `to_json` was given; ValueError for anything else."""
  kinds = {'Words': Words, 'Bins': Bins, 'Recents': Recents}
  name = stored.get('code')
  kind = kinds.get(name) if isinstance(name, str) else None
  fields = {x: _tuples(stored[x]) for x in stored if x != 'code'}
  known = kind and {field.name for field in dataclasses.fields(kind)}
  if known is None or fields.keys() != known:
    raise ValueError(f'{str(name)[:40]!r} with {len(fields)} fields is no code')
  found = kind(**fields)
  if not _is_sound(found):
    raise ValueError(f'its {name} are not what fitting makes')
  return found


def _is_sound(code: Code) -> bool:
  """Whether the fields are of their types, and fit together."""
  if isinstance(code, Words):
    words = code.words
    is_text = isinstance(words, tuple) and all(map(_is_text, words))
    return is_text and isinstance(code.masked, bool)
  if isinstance(code, Recents):
    is_text = isinstance(code.samples, tuple) and all(
      map(_is_text, code.samples)
    )
    return is_text and type(code.depth) is int and 1 <= code.depth <= _DEEPEST
  edges, samples = code.edges, code.samples
  if not _are_numbers(edges) or not isinstance(samples, tuple):
    return False
  inside = all(_are_numbers(part) and part for part in samples)
  rises = all(a <= b for a, b in itertools.pairwise(edges))
  scales = (code.scale, code.mean, code.spread)
  return (
    inside
    and rises
    and len(edges) == len(samples) + 1 > 1
    and _are_numbers(scales)
    and min(code.scale, code.spread) > 0
  )


def _is_text(value: Any) -> bool:
  try:
    return isinstance(value, str) and value.encode('utf-8') is not None
  except UnicodeEncodeError:
    return False


def _are_numbers(values: Any) -> bool:
  return isinstance(values, tuple) and all(
    type(x) in (int, float) and abs(x) <= sys.float_info.max for x in values
  )


def _tuples(value: Any) -> Any:
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _chosen(x_E: np.ndarray) -> tuple[float, ...]:
  """At most _SAMPLES values, evenly spread over the sorted ones."""
  count = min(_SAMPLES, len(x_E))
  places = ((np.arange(count) + 0.5) * len(x_E) / count).astype(int)
  return tuple(map(float, x_E[places]))
