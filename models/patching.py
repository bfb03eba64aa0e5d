"""Where patches end: the rules of the Byte Latent Transformer.

A patch is a run of bytes that the latent transformer reads as one token
(arXiv 2412.09871, section 2). Whether a patch ends after a byte depends on
this byte and earlier ones of its document only, so one rule serves training
rows (`closes`), decoding (`step`) and stored boundaries.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from models import masks

RELEASED_THRESHOLD = 1.335442066192627  # nats, of the published models
_FIRST_BYTE = 4  # ids below are special, id b + 4 is byte b


class Reading(NamedTuple):
  """A byte as a rule sees it: arrays of one shape.

  index: bytes of the document before it, at least 1 when a rule is asked.
  entropy: nats, of the prediction made after reading the byte.
  """

  index: jax.Array
  id: jax.Array
  previous_id: jax.Array
  entropy: jax.Array
  previous_entropy: jax.Array


class State(NamedTuple):
  """What decides about the next byte of each row.

  index_B: bytes read; length_B: bytes of the open patch; id_B, entropy_B: of
    the last byte.
  """

  index_B: jax.Array
  length_B: jax.Array
  id_B: jax.Array
  entropy_B: jax.Array


class Layout(NamedTuple):
  """Patches of rows, numbered from 0 along each row.

  encoder_BT: the patch that holds the byte; decoder_BT: the last patch that
    is complete once the byte is read; count_B: patches of the row. Entries of
    padding are in range and mean nothing.
  """

  encoder_BT: jax.Array
  decoder_BT: jax.Array
  count_B: jax.Array


@dataclasses.dataclass(frozen=True)
class Entropy:
  """A patch ends where the next byte is uncertain: entropy > threshold."""

  threshold: float = RELEASED_THRESHOLD
  uses_entropy: ClassVar[bool] = True

  def closes(self, reading: Reading) -> jax.Array:
    return reading.entropy > self.threshold


@dataclasses.dataclass(frozen=True)
class Monotonic:
  """A patch ends where the entropy rises by more than `rise` nats.

  The second byte, which has no rise to go by, always ends one.
  """

  rise: float
  uses_entropy: ClassVar[bool] = True

  def closes(self, reading: Reading) -> jax.Array:
    rise = reading.entropy - reading.previous_entropy
    return (rise > self.rise) | (reading.index == 1)


@dataclasses.dataclass(frozen=True)
class Combined:
  """A patch ends where the entropy rises and is above a threshold.

  The second byte, which has no rise to go by, needs the threshold alone.
  compat: as the published code, which always ends a patch after the second
    byte and never after the third.
  """

  rise: float
  threshold: float
  compat: bool = False
  uses_entropy: ClassVar[bool] = True

  def closes(self, reading: Reading) -> jax.Array:
    rise = reading.entropy - reading.previous_entropy
    risen = (rise > self.rise) | (reading.index == 1)
    closes = risen & (reading.entropy > self.threshold)
    if self.compat:
      closes = (closes & (reading.index != 2)) | (reading.index == 1)
    return closes


@dataclasses.dataclass(frozen=True)
class Stride:
  """Patches of `stride` bytes, the first byte of a document apart."""

  stride: int = 4
  uses_entropy: ClassVar[bool] = False

  def __post_init__(self) -> None:
    if self.stride < 1:
      raise ValueError(f'stride={self.stride} must be at least 1 byte.')

  def closes(self, reading: Reading) -> jax.Array:
    return (reading.index + 1) % self.stride == 0


@dataclasses.dataclass(frozen=True)
class Space:
  """A patch ends with the first separator after a word, or a special id.

  Separators are ASCII bytes other than letters and digits, and the lead bytes
  of longer UTF-8 characters.
  """

  uses_entropy: ClassVar[bool] = False

  def closes(self, reading: Reading) -> jax.Array:
    special = reading.id < _FIRST_BYTE
    after_separator = _separates(reading.previous_id)
    return special | (_separates(reading.id) & ~after_separator)


@dataclasses.dataclass(frozen=True)
class EveryByte:
  """Every byte is a patch."""

  uses_entropy: ClassVar[bool] = False

  def closes(self, reading: Reading) -> jax.Array:
    return reading.index >= 0


@dataclasses.dataclass(frozen=True)
class Delimiter:
  """A patch ends with a delimiter, which the text must contain."""

  delimiter_id: int = 3
  uses_entropy: ClassVar[bool] = False

  def closes(self, reading: Reading) -> jax.Array:
    return reading.id == self.delimiter_id


@dataclasses.dataclass(frozen=True)
class Patching:
  """A rule and a limit, applied to each document on its own.

  A document's first byte is a patch of its own. Rules look at entropies in
  nats, compared in float32, where `uses_entropy`.
  max_length: longest patch in bytes, which bounds decoding buffers; None for
    any.
  """

  rule: Any = Space()
  max_length: int | None = 32

  def __post_init__(self) -> None:
    if self.max_length is not None and self.max_length < 1:
      raise ValueError(
        f'max_length={self.max_length} must be at least 1 byte, or None for'
        ' patches of any length.'
      )

  def closes(
    self,
    ids_BT: jax.Array,
    documents_BT: jax.Array,
    entropy_BT: jax.Array | None = None,
  ) -> jax.Array:
    """Whether a patch ends after each byte: bool [B, T], False at padding.

    Decided as if nothing followed: that a document ends there adds nothing.
    """
    index_BT = masks.row_tokens(documents_BT).position_BT
    entropy_BT = self._nats(entropy_BT, ids_BT)
    reading = Reading(
      index_BT, ids_BT, _shift(ids_BT), entropy_BT, _shift(entropy_BT)
    )
    closes_BT = (index_BT == 0) | self.rule.closes(reading)
    if self.max_length is not None:
      place_BT = _places(ids_BT)
      opens_BT = (index_BT == 0) | _shift(closes_BT)
      start_BT = jax.lax.cummax(jnp.where(opens_BT, place_BT, 0), axis=1)
      closes_BT |= (place_BT + 1 - start_BT) % self.max_length == 0
    return closes_BT & (documents_BT > 0)

  def starts(
    self,
    ids_BT: jax.Array,
    documents_BT: jax.Array,
    entropy_BT: jax.Array | None = None,
  ) -> jax.Array:
    """Whether a patch starts at each byte and at the next one, unseen yet.

    bool [B, T + 1], the mask that the published code builds: a document's
    first two bytes are starts.
    """
    closes_BT = self.closes(ids_BT, documents_BT, entropy_BT)
    after = jnp.pad(closes_BT, [(0, 0), (1, 0)])
    return after | jnp.pad(_fresh(documents_BT), [(0, 0), (0, 1)])

  def init(self, batch_size: int) -> State:
    """The state before a document."""
    # Arrays of their own, since the caller may donate all of them.
    return State(
      *(jnp.zeros(batch_size, jnp.int32) for _ in range(3)),
      jnp.zeros(batch_size, jnp.float32),
    )

  def step(
    self, state: State, id_B: jax.Array, entropy_B: jax.Array | None = None
  ) -> tuple[jax.Array, State]:
    """Whether a patch ends after one more byte per row, and the new state."""
    entropy_B = self._nats(entropy_B, id_B)
    reading = Reading(
      state.index_B, id_B, state.id_B, entropy_B, state.entropy_B
    )
    closes_B = (state.index_B == 0) | self.rule.closes(reading)
    length_B = state.length_B + 1
    if self.max_length is not None:
      closes_B |= length_B >= self.max_length
    length_B = jnp.where(closes_B, 0, length_B)
    return closes_B, State(state.index_B + 1, length_B, id_B, entropy_B)

  def extend(
    self,
    state: State,
    ids_BT: jax.Array,
    real_BT: jax.Array,
    entropy_BT: jax.Array | None = None,
  ) -> tuple[jax.Array, State]:
    """`step` for each real byte in turn; padding closes and changes nothing."""
    entropy_BT = self._nats(entropy_BT, ids_BT)

    def advance(state: State, byte: Any) -> tuple[State, jax.Array]:
      id_B, real_B, entropy_B = byte
      closes_B, new = self.step(state, id_B, entropy_B)
      state = jax.tree.map(lambda n, o: jnp.where(real_B, n, o), new, state)
      return state, closes_B & real_B

    columns = (ids_BT.T, real_BT.T, entropy_BT.T)
    state, closes_TB = jax.lax.scan(advance, state, columns)
    return closes_TB.T, state

  def _nats(self, entropy: jax.Array | None, ids: jax.Array) -> jax.Array:
    if entropy is not None:
      return jnp.asarray(entropy, jnp.float32)
    if self.rule.uses_entropy:
      raise ValueError(
        f'{type(self.rule).__name__} patches need the entropy of every byte;'
        ' pass entropies or choose a rule over bytes: Stride, Space,'
        ' EveryByte, Delimiter.'
      )
    return jnp.zeros(ids.shape, jnp.float32)


def entropy(logits: jax.Array) -> jax.Array:
  """Entropy in nats of the softmax over the last axis, in float32."""
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  p = jnp.exp(log_p)
  return -jnp.sum(jnp.where(p > 0, p * log_p, 0.0), axis=-1)


def segments(documents_BT: jax.Array) -> jax.Array:
  """Documents numbered 1, 2, ... along each row, 0 at padding."""
  number_BT = jnp.cumsum(_fresh(documents_BT), axis=1, dtype=jnp.int32)
  return jnp.where(documents_BT > 0, number_BT, 0)


def layout(closes_BT: jax.Array, documents_BT: jax.Array) -> Layout:
  """The patches of rows whose patches end where `closes_BT`.

  A byte predicts the next one from patches that end with it or before it, so
  at a document's end nothing tells that the document ends.
  """
  fresh_BT = _fresh(documents_BT)
  starts_BT = fresh_BT | (_shift(closes_BT) & (documents_BT > 0))
  number_BT = jnp.cumsum(starts_BT, axis=1, dtype=jnp.int32)
  encoder_BT = jnp.maximum(number_BT - 1, 0)
  decoder_BT = jnp.maximum(encoder_BT - 1 + closes_BT, 0)
  return Layout(encoder_BT, decoder_BT, number_BT[:, -1])


def _fresh(documents_BT: jax.Array) -> jax.Array:
  """True at the first byte of every document."""
  return (documents_BT != _shift(documents_BT)) & (documents_BT > 0)


def _shift(x_BT: jax.Array) -> jax.Array:
  """Each row moved one place to the right, with a 0 in front."""
  return jnp.pad(x_BT[:, :-1], [(0, 0), (1, 0)])


def _places(x_BT: jax.Array) -> jax.Array:
  index_1T = jnp.arange(x_BT.shape[1], dtype=jnp.int32)[None]
  return jnp.broadcast_to(index_1T, x_BT.shape)


def _separates(ids: jax.Array) -> jax.Array:
  """True for special ids, ASCII other than 0-9A-Za-z, UTF-8 lead bytes."""
  byte = ids - _FIRST_BYTE
  letter = (byte | 0x20) - ord('a')
  digit = byte - ord('0')
  word = (letter >= 0) & (letter < 26) | (digit >= 0) & (digit < 10)
  return ((byte < 128) & ~word) | (byte >= 0xC0)
