"""The tokens of a released model, by its tokenizer.json.

That file is of the package tokenizers, which reads text. What it loses, as
bytes that are no UTF-8 or characters that it rewrites, is spelled in the
model's own single-byte tokens here, so that the ids of any text decode to it.
"""

import base64
import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data import codec
from data import id_files
from data import json_text
from data import text as text_lib
from data import token_bytes

NAME = 'tokenizer.json'
# Bytes of a file and ids of a model; real ones have a tenth of it.
_LARGEST, _MOST_IDS = 2**27, 2**22
# What bytes that are no UTF-8 are shown to the library as.
_UNREADABLE = {0xDC00 + byte: '\ufffd' for byte in range(128, 256)}


@dataclasses.dataclass(frozen=True)
class TokenizerJson:
  """A data.codec.Codec with the ids of a tokenizer.json.

  vocabulary_size: of the model; the tokenizer may have fewer ids.
  bos, stops: see Codec. Prompts begin with what the file's post-processor
    adds, documents with `bos`, which is the same unless it adds nothing.
  packed: the file, compressed and in base 85, as `pack` makes it.
  """

  vocabulary_size: int
  bos: int
  stops: tuple[int, ...]
  packed: str

  def __post_init__(self) -> None:
    marks = self.bos, *self.stops
    if self.vocabulary_size > _MOST_IDS:
      raise ValueError(
        f'data.codec.vocabulary_size={self.vocabulary_size} must be at most'
        f' {_MOST_IDS}, more than any released model has.'
      )
    known = range(self.vocabulary_size)
    if not self.stops or not all(mark in known for mark in marks):
      raise ValueError(
        f'data.codec.bos={self.bos} and data.codec.stops={self.stops} must be'
        f' ids below data.codec.vocabulary_size={self.vocabulary_size}, one at'
        ' least that stops.'
      )

  @property
  def is_trained(self) -> bool:
    return True

  def trained(self, train: text_lib.Corpus) -> 'TokenizerJson':
    del train  # The model knows these tokens only.
    return self

  def untrained(self) -> 'TokenizerJson':
    return self

  @functools.cached_property
  def file(self) -> bytes:
    """The tokenizer.json, byte for byte."""
    inflate = zlib.decompressobj()
    try:
      file = inflate.decompress(base64.b85decode(self.packed), _LARGEST)
      if inflate.eof and not inflate.unused_data:
        return file
    except (ValueError, zlib.error):
      pass
    raise ValueError(
      f'data.codec.packed holds no {NAME} of at most {_LARGEST} bytes; import'
      ' the model again with convert.py.'
    )

  @property
  def digest(self) -> str:
    """SHA-256 of what decides the ids of a text."""
    return hashlib.sha256(self.file).hexdigest()

  @functools.cached_property
  def lengths_V(self) -> np.ndarray:
    return np.array([len(token) for token in self._tokens], np.int32)

  @functools.cached_property
  def lead(self) -> bytes:
    with _library_errors():
      ids = self._bare.encode('a').ids
    made = self._raw(ids)
    if not made.endswith(b'a'):
      raise ValueError(
        f"{NAME}: the tokens of 'a' are those of {made!r}; choose a checkpoint"
        ' whose tokenizer keeps the text.'
      )
    return made[:-1]

  @functools.cached_property
  def marks(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that the post-processor adds before and after a text."""
    with _library_errors():
      whole = self._whole.encode('a').ids
      ids = self._bare.encode('a').ids
    for start in range(len(whole) - len(ids) + 1):
      if whole[start : start + len(ids)] == ids:
        return tuple(whole[:start]), tuple(whole[start + len(ids) :])
    raise ValueError(
      f'{NAME}: its post_processor changes the ids of a text beside adding'
      ' some; choose a checkpoint that only marks its ends.'
    )

  def encode(self, text: bytes | np.ndarray) -> np.ndarray:
    """Ids (int32) of bytes or of a uint8 array, without the marks."""
    return self.encode_all([text])[0]

  def encode_all(
    self, texts: Sequence[bytes | np.ndarray]
  ) -> list[np.ndarray]:
    """`encode` of several texts, on all cores."""
    texts = [codec.as_array(text).tobytes() for text in texts]
    found = self._bare.encode_batch_fast([_readable(text) for text in texts])
    return [
      np.array(self._mended(text, encoding.ids), np.int32)
      for text, encoding in zip(texts, found, strict=True)
    ]

  def prompt(self, text: bytes) -> np.ndarray:
    """The ids that the tokenizer gives a text, with the marks before it.

    Just as the model's own library would have it, be it that text is lost.
    """
    before, _ = self.marks
    ids = [*before, *self._bare.encode(_readable(text)).ids]
    if _readable(text) != text.decode('utf-8', 'surrogateescape'):
      ids = [*before, *self.encode(text)]
    return np.array(ids or [self.bos], np.int32)

  def decode(self, ids: np.ndarray, *, begins: bool = True) -> bytes:
    """The bytes that the ids stand for; special ids are dropped.

    begins: whether they begin a text, and do not go on with one.
    """
    found = codec.as_ids(ids, self.vocabulary_size).tolist()
    made = self._raw(i for i in found if i not in self._special)
    return made.removeprefix(self.lead) if begins else made

  def stream(self, corpus: text_lib.Corpus) -> codec.Stream:
    """The ids of a split, kept in a folder of it named by `digest`."""
    return id_files.stream(self, corpus)

  def describe(self, folder: pathlib.Path, facts: dict[str, Any]) -> None:
    """Writes the tokenizer, and last what completes the folder."""
    (folder / NAME).write_bytes(self.file)
    metadata = {
      'digest': self.digest,
      'tokenizers': id_files.library().__version__,
      'vocabulary_size': self.vocabulary_size,
    }
    described = json.dumps(metadata | facts, indent=2)
    (folder / 'metadata.json').write_text(described, 'utf-8')

  def _raw(self, ids: Any) -> bytes:
    return b''.join(self._tokens[i] for i in ids)

  def _mended(self, text: bytes, ids: list[int]) -> list[int]:
    """Ids of which `_raw` is the lead and the text."""
    if not text:
      return []
    if self._raw(ids) == self.lead + text:
      return ids
    string = text.decode('utf-8', 'surrogateescape')
    sizes = [len(c.encode('utf-8', 'surrogateescape')) for c in string]
    place_C = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    encoding = self._bare.encode(_readable(text))
    made, before, done = [], self.lead, 0
    for stop, group in _groups(encoding.offsets, encoding.ids):
      part = text[done : max(place_C[stop], done)]
      raw = self._raw(group)
      if raw == before + part:
        made += group
      elif raw == part:
        made += [*self._spelled(before), *group]
      else:
        made += self._spelled(before + part)
      before, done = b'', done + len(part)
    return [*made, *self._spelled(before + text[done:])]

  def _spelled(self, text: bytes) -> list[int]:
    """A token for every byte."""
    missing = [byte for byte in text if byte not in self._bytes]
    if missing:
      raise ValueError(
        f'{NAME} has no token for byte 0x{missing[0]:02X} and no other way to'
        f' spell {text[:20]!r}; choose text that it has tokens for, or a'
        ' checkpoint whose tokenizer falls back to bytes.'
      )
    return [self._bytes[byte] for byte in text]

  @functools.cached_property
  def _tree(self) -> Any:
    return json_text.parse(self.file, NAME, 'write it anew')

  @functools.cached_property
  def _whole(self) -> Any:
    """The library's tokenizer, which adds marks."""
    library = id_files.library()
    token_bytes.check_ids(self._tree, _MOST_IDS, NAME)
    with _library_errors():
      tokenizer = library.Tokenizer.from_str(self.file.decode())
      tokenizer.no_truncation()
      tokenizer.no_padding()
    return tokenizer

  @functools.cached_property
  def _bare(self) -> Any:
    """The same without marks; also, its places are not changed afterwards."""
    with _library_errors():
      text = self._whole.to_str()
      tokenizer = id_files.library().Tokenizer.from_str(text)
      tokenizer.post_processor = None
    return tokenizer

  @functools.cached_property
  def _special(self) -> frozenset[int]:
    added = self._whole.get_added_tokens_decoder()
    marked = [i for i, token in added.items() if token.special]
    return frozenset([self.bos, *self.stops, *marked])

  @functools.cached_property
  def _tokens(self) -> tuple[bytes, ...]:
    """The bytes that every id stands for in a text, those of marks as well."""
    vocabulary = self._whole.get_vocab(with_added_tokens=False)
    read = token_bytes.reader(self._tree, NAME)
    added = self._whole.get_added_tokens_decoder()
    known = {i: read(token) for token, i in vocabulary.items()}
    known |= {i: token.content.encode() for i, token in added.items()}
    if max(known, default=-1) >= self.vocabulary_size:
      raise ValueError(
        f'{NAME} has ids up to {max(known)}, but config.json has vocab_size='
        f'{self.vocabulary_size}; they are of different models.'
      )
    return tuple(known.get(i, b'') for i in range(self.vocabulary_size))

  @functools.cached_property
  def _bytes(self) -> dict[int, int]:
    """The token of a byte alone, rather a character than its fallback."""
    names = self._whole.get_vocab(with_added_tokens=False)
    fallback = {i for name, i in names.items() if token_bytes.is_fallback(name)}
    found: dict[int, int] = {}
    for i in sorted(names.values(), key=lambda i: (i not in fallback, -i)):
      if len(self._tokens[i]) == 1 and i not in self._special:
        found[self._tokens[i][0]] = i
    return found


def read(
  path: pathlib.Path,
  *,
  vocabulary_size: int,
  bos: int | None,
  stops: Sequence[int],
) -> TokenizerJson:
  """The codec of a file, for a model whose config.json names these marks.

  Marks that the file's post-processor adds go before them. Raises ValueError
  for a file by which text cannot be read and written.
  """
  size = path.stat().st_size
  if size > _LARGEST:
    raise ValueError(
      f'{path} has {size} bytes; a tokenizer has at most {_LARGEST}.'
    )
  try:
    return _read(path.read_bytes(), path, vocabulary_size, bos, stops)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def _read(
  file: bytes,
  path: pathlib.Path,
  vocabulary_size: int,
  bos: int | None,
  stops: Sequence[int],
) -> TokenizerJson:
  packed = pack(file)
  before, after = TokenizerJson(vocabulary_size, 0, (0,), packed).marks
  if len(before) > 1 or len(after) > 1:
    raise ValueError(
      f'its post_processor adds {len(before)} ids before and'
      f' {len(after)} after a text; choose a checkpoint that marks each end by'
      ' at most one.'
    )
  stops = tuple(dict.fromkeys([*after, *stops]))
  begins = [*before, *([] if bos is None else [bos]), *stops]
  if not begins:
    raise ValueError(
      'it adds no id before or after a text, and config.json names neither'
      ' bos_token_id nor eos_token_id; add one of them there.'
    )
  found = TokenizerJson(
    vocabulary_size, begins[0], stops or (begins[0],), packed
  )
  _ = found.lead  # Refuses a tokenizer that has none.
  return found


def pack(file: bytes) -> str:
  """The text that a TokenizerJson holds of a file."""
  return base64.b85encode(zlib.compress(file, 9)).decode()


@contextlib.contextmanager
def _library_errors() -> Iterator[None]:
  """Says in one sentence what the package tokenizers says, or panics of."""
  try:
    yield
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # A panic of Rust is no Exception.
    reason = ' '.join(str(error).split())[:200]
    raise ValueError(
      f'{NAME} is none that the package tokenizers reads: {reason}; write it'
      ' anew with a tokenizer of transformers and save_pretrained.'
    ) from error


def _readable(text: bytes) -> str:
  """As UTF-8, with a sign in place of each byte that is none."""
  return text.decode('utf-8', 'surrogateescape').translate(_UNREADABLE)


def _groups(
  offsets: list[tuple[int, int]], ids: list[int]
) -> list[tuple[int, list[int]]]:
  """Tokens that share characters together, and where their characters end."""
  found: list[tuple[int, list[int]]] = []
  for (start, stop), i in zip(offsets, ids, strict=True):
    if found and start < found[-1][0]:
      last, group = found[-1]
      found[-1] = max(last, stop), [*group, i]
    else:
      found.append((stop, [i]))
  return found
