"""Integer range coding of binary decisions with adaptive KT models.

A KT model gives the next bit the probability (n + 1/2) / (N + 1) of its count
(Krichevsky and Trofimov 1981). Python integers only, so a file decodes to the
same numbers on every machine. The stream format is that of `Encoder`: interval
[low, low + span) of 48 bits, bit 0 below bit 1, a byte out when span < 2**40.
"""

_TOP = 1 << 48
_MASK = _TOP - 1
_BOTTOM = 1 << 40

# Half-counts above this are halved; it bounds the integers in use.
_LIMIT = 1 << 26


class Model:
  """Half-counts 2n + 1 of the zeros and the ones seen in one context."""

  __slots__ = ('ones', 'zeros')

  def __init__(self) -> None:
    self.zeros = 1
    self.ones = 1

  def update(self, bit: int) -> None:
    if bit:
      self.ones += 2
    else:
      self.zeros += 2
    if self.zeros + self.ones > _LIMIT:
      self.zeros = self.zeros >> 1 | 1
      self.ones = self.ones >> 1 | 1


class Encoder:
  """Appends decisions; `finish` gives the shortest bytes that decode to them.

  The decoder reads zeros after the last byte, so trailing zeros are not stored.
  """

  def __init__(self) -> None:
    self._low = 0
    self._span = _TOP
    self._out = bytearray()

  def bit(self, model: Model, bit: int) -> int:
    """Codes one decision, updates its model and returns the bit."""
    split = self._span * model.zeros // (model.zeros + model.ones)
    if bit:
      self._low += split
      self._span -= split
    else:
      self._span = split
    model.update(bit)
    self._shift()
    return bit

  def number(self, width: int, number: int) -> int:
    """Codes `width` <= 24 bits at one bit each and returns their number."""
    assert 0 <= number < 1 << width <= 1 << 24
    self._span >>= width
    self._low += self._span * number
    self._shift()
    return number

  def finish(self) -> bytes:
    for count in range(7):
      tail = (1 << (48 - 8 * count)) - 1
      low = (self._low + tail) & ~tail
      if low < self._low + self._span:
        break
    if low >= _TOP:
      self._carry()
      low &= _MASK
    self._out += low.to_bytes(6, 'big')[:count]
    return bytes(self._out).rstrip(b'\0')

  def _shift(self) -> None:
    if self._low >= _TOP:
      self._carry()
      self._low &= _MASK
    while self._span < _BOTTOM:
      self._out.append(self._low >> 40)
      self._low = self._low << 8 & _MASK
      self._span <<= 8

  def _carry(self) -> None:
    """Adds 1 to the bytes that are out."""
    place = len(self._out) - 1
    while self._out[place] == 255:
      self._out[place] = 0
      place -= 1
    self._out[place] += 1


class Decoder:
  """Reads what an `Encoder` wrote, asked in the same order."""

  def __init__(self, data: bytes) -> None:
    self._data = data
    self._place = 6
    self._code = int.from_bytes(data[:6].ljust(6, b'\0'), 'big')
    self._span = _TOP

  def bit(self, model: Model, _: int = 0) -> int:
    split = self._span * model.zeros // (model.zeros + model.ones)
    if self._code < split:
      bit = 0
      self._span = split
    else:
      bit = 1
      self._code -= split
      self._span -= split
    model.update(bit)
    self._shift()
    return bit

  def number(self, width: int, _: int = 0) -> int:
    self._span >>= width
    number = self._code // self._span
    if number >> width:
      raise ValueError('damaged file: its code leaves the coding interval')
    self._code -= self._span * number
    self._shift()
    return number

  def finish(self) -> None:
    """Raises ValueError if bytes remain that no decision needed."""
    if self._place < len(self._data):
      raise ValueError(
        f'damaged file: {len(self._data) - self._place} bytes are left after'
        ' the last symbol'
      )

  def _shift(self) -> None:
    while self._span < _BOTTOM:
      byte = self._data[self._place] if self._place < len(self._data) else 0
      self._code = self._code << 8 | byte
      self._place += 1
      self._span <<= 8


Coder = Encoder | Decoder


class Integers:
  """Signed integers: zero?, sign, then the magnitude in unary up to 14.

  Every decision has a KT model, in the context that the caller names. Beyond 14
  an Elias-gamma code with models for its length. Encoder and decoder run the
  same code: `code` returns the number that was given or that was read.
  """

  LARGEST = (1 << 24) - 2
  _UNARY = 14

  def __init__(self, contexts: int) -> None:
    sizes = range(self._UNARY + 1)
    self._size = [[Model() for _ in sizes] for _ in range(contexts)]
    self._sign = [Model() for _ in range(contexts)]
    self._length = [Model() for _ in range(24)]

  def code(self, coder: Coder, context: int, number: int = 0) -> int:
    sizes = self._size[context]
    size = abs(number)
    bit = coder.bit
    if not bit(sizes[0], size > 0):
      return 0
    negative = bit(self._sign[context], number < 0)
    read = 1
    while read <= self._UNARY and bit(sizes[read], size > read):
      read += 1
    if read > self._UNARY:
      read += self._large(coder, max(size - read, 0))
    return -read if negative else read

  def _large(self, coder: Coder, rest: int) -> int:
    """A number from 0 to 2**24 - 2, as the digits of one more."""
    rest += 1
    length = 0
    while length < 23 and coder.bit(self._length[length], rest >> length > 1):
      length += 1
    tail = coder.number(length, rest & (1 << length) - 1)
    return (1 << length | tail) - 1
