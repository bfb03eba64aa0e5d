"""A model file that names the tokens it predicts: those of one tokenizer.

  'PT' | version | length | first bytes of the tokenizer's SHA-256 | model file
  | CRC-32

The tokenizer is not in it, so it must be fixed before the stream is seen, as
that of a released model is. Which one it is has to be said, and is paid for.
"""

from bounds import codec

MAGIC = b'PT'
_NAME_BYTES = 8


def pack(file: bytes, digest: str) -> bytes:
  """The file of a model (bounds.codec) over tokens of a hexadecimal digest."""
  return codec.sealed(bytes.fromhex(digest)[:_NAME_BYTES] + file, MAGIC)


def unpack(data: bytes, digest: str) -> bytes:
  """Inverse of `pack`; ValueError for a damaged file or other tokens."""
  body, size = codec.opened(data, MAGIC)
  if size != len(data):
    raise ValueError(
      f'file ends after {size} of {len(data)} bytes; what follows belongs to'
      ' nothing, so copy the file again'
    )
  if body[:_NAME_BYTES] != bytes.fromhex(digest)[:_NAME_BYTES]:
    raise ValueError(
      f'file predicts tokens of the tokenizer {body[:_NAME_BYTES].hex()}, not'
      f' of {digest[: 2 * _NAME_BYTES]}; give the one that it was made with'
    )
  return body[_NAME_BYTES:]
