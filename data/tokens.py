"""Byte-pair encoding of any bytes: the baseline to byte models.

Merges of the most frequent pair (Sennrich et al., arXiv 1508.07909) of bytes,
within the pieces that the regular expression of GPT-2 cuts a text into
(Radford et al., 2019, section 2.2). Ids below 260 are those of data.codec, so
every text has ids, and those of a text decode to it, UTF-8 or not.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from absl import logging

from data import codec
from data import folders
from data import id_files
from data import json_text
from data import text as text_lib

# GPT-2's: contractions, words, numbers, signs, spaces; a space goes with what
# it stands before. What it leaves out is a piece, too.
_PATTERN = (
  r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
# A pair that is seen once says nothing about other texts.
_MIN_COUNT = 2
_MOST_IDS = 2**22
_LONGEST = 2**16  # bytes of a token
# The library works on text. ASCII stands for itself and every other byte for a
# letter (U+0180 to U+01FF), so the pattern cuts no UTF-8 character in two.
_SPELLING = {byte: byte + 256 for byte in range(128, 256)}


@dataclasses.dataclass(frozen=True)
class Bpe:
  """A data.codec.Codec of byte pairs, learned from the train split.

  vocabulary_size: special ids, bytes and tokens; the model's must be the same.
  pattern: regular expression (Oniguruma) of the pieces of a text, in which
    every byte above 127 is a letter; no token spans two pieces.
  merges: 'left right' ids of each merge, by rank, comma-separated; empty until
    `trained`, which is how a config holds its whole tokenizer.
  """

  vocabulary_size: int = 4096
  pattern: str = _PATTERN
  merges: str = ''

  bos: ClassVar[int] = codec.BOS
  stops: ClassVar[tuple[int, ...]] = (codec.EOS,)
  lead: ClassVar[bytes] = b''

  def __post_init__(self) -> None:
    if not codec.VOCABULARY < self.vocabulary_size <= _MOST_IDS:
      raise ValueError(
        f'data.codec.vocabulary_size={self.vocabulary_size} must be above'
        f' {codec.VOCABULARY}, the bytes and special ids, and at most'
        f' {_MOST_IDS}; data.codec.Bytes() is the codec of the former alone.'
      )

  @property
  def is_trained(self) -> bool:
    return bool(self.merges)

  @functools.cached_property
  def tokens(self) -> tuple[bytes, ...]:
    """The bytes of every id; none for special ids and ids without a merge."""
    made = [b''] * codec.OFFSET + [bytes([byte]) for byte in range(256)]
    known = set(made)
    for left, right in self._pairs:
      if not codec.OFFSET <= min(left, right) <= max(left, right) < len(made):
        raise ValueError(
          f'data.codec.merges joins ids {left} and {right} where there are'
          f' {codec.OFFSET} to {len(made) - 1}; leave it empty to train anew.'
        )
      token = made[left] + made[right]
      if len(token) > _LONGEST:
        raise ValueError(
          f'data.codec.merges makes a token of {len(token)} bytes; at most'
          f' {_LONGEST} are allowed, so leave it empty to train anew.'
        )
      if token not in known:
        known.add(token)
        made.append(token)
    if len(made) > self.vocabulary_size:
      raise ValueError(
        f'data.codec.merges makes {len(made)} ids for vocabulary_size='
        f'{self.vocabulary_size}; leave it empty to train anew.'
      )
    return tuple(made) + (b'',) * (self.vocabulary_size - len(made))

  @functools.cached_property
  def lengths_V(self) -> np.ndarray:
    return np.array([len(token) for token in self.tokens], np.int32)

  @property
  def digest(self) -> str:
    """SHA-256 of what decides the ids of a text."""
    identity = json.dumps([self.vocabulary_size, self.pattern, self.merges])
    return hashlib.sha256(identity.encode()).hexdigest()

  def encode(self, text: bytes | np.ndarray) -> np.ndarray:
    """Ids (int32) of bytes or of a uint8 array, without BOS and EOS."""
    return self.encode_all([text])[0]

  def prompt(self, text: bytes) -> np.ndarray:
    return codec.marked(self.bos, self.encode(text))

  def decode(self, ids: np.ndarray, *, begins: bool = True) -> bytes:
    """The bytes that the ids stand for; special ids are dropped."""
    del begins  # The same anywhere.
    found = codec.as_ids(ids, self.vocabulary_size)
    return b''.join(self.tokens[i] for i in found)

  def trained(self, train: text_lib.Corpus) -> 'Bpe':
    """This codec with the merges of a train split, kept beside the split."""
    if self.is_trained:
      return self
    folder = train.path.parent / f'tokenizer-{self.digest[:16]}'
    folders.make_once(folder, functools.partial(self._train, train))
    path, way_out = folder / 'metadata.json', f'remove {folder} to train anew'
    merges = json_text.load(path, dict, way_out).get('merges')
    if not isinstance(merges, str):
      raise ValueError(f'{path} has no merges; {way_out}.')
    return dataclasses.replace(self, merges=merges)

  def untrained(self) -> 'Bpe':
    return dataclasses.replace(self, merges='')

  def stream(self, corpus: text_lib.Corpus) -> codec.Stream:
    """The ids of a split, kept in a folder of it named by `digest`."""
    return id_files.stream(self, corpus)

  @functools.cached_property
  def _pairs(self) -> list[tuple[int, int]]:
    pairs = [pair.split() for pair in self.merges.split(',') if pair]
    is_id = re.compile('[0-9]{1,9}').fullmatch
    if not all(len(p) == 2 and all(map(is_id, p)) for p in pairs):
      raise ValueError(
        f'data.codec.merges={self.merges[:30]!r}... must be pairs of ids, as'
        " '36 36,108 105'; leave it empty to train anew."
      )
    return [(int(left), int(right)) for left, right in pairs]

  @functools.cached_property
  def _tokenizer(self) -> Any:
    """The library's tokenizer with our ids."""
    if not self.is_trained:
      raise ValueError(
        'data.codec has no merges yet; open the corpus, or call trained() of'
        ' the data, to learn them from the train split.'
      )
    spelled = [_spell(token) for token in self.tokens]
    return self._make(
      vocab={token: i for i, token in enumerate(spelled) if token},
      merges=[(spelled[left], spelled[right]) for left, right in self._pairs],
    )

  def _make(self, **fields: Any) -> Any:
    library = id_files.library()
    try:
      pattern = library.Regex(self.pattern)
    except Exception as error:  # The library has no class of its own for it.
      raise ValueError(
        f'data.codec.pattern={self.pattern!r} is no regular expression: {error}'
      ) from error
    tokenizer = library.Tokenizer(library.models.BPE(**fields))
    # Keeps what does not match, so no pattern loses a byte.
    split = library.pre_tokenizers.Split(pattern, 'isolated')
    tokenizer.pre_tokenizer = split
    return tokenizer

  def encode_all(self, texts: Sequence[bytes | np.ndarray]) -> list[np.ndarray]:
    """`encode` of several texts, on all cores."""
    tokenizer = self._tokenizer
    found = tokenizer.encode_batch_fast(
      [_spell(codec.as_array(text).tobytes()) for text in texts],
      add_special_tokens=False,
    )
    return [np.array(encoding.ids, np.int32) for encoding in found]

  def _train(self, train: text_lib.Corpus, folder: pathlib.Path) -> None:
    """Learns the merges; the same on any number of threads."""
    logging.info('Training %d tokens on %s', self.vocabulary_size, train.path)
    library = id_files.library()
    tokenizer = self._make()
    trainer = library.trainers.BpeTrainer(
      vocab_size=self.vocabulary_size - codec.OFFSET,
      min_frequency=_MIN_COUNT,
      show_progress=False,
      initial_alphabet=[_spell(bytes([byte])) for byte in range(256)],
    )
    tokenizer.train_from_iterator(
      (_spell(document.tobytes()) for document in train), trainer
    )
    merges = json.loads(tokenizer.to_str())['model']['merges']
    if not merges:
      raise ValueError(
        f'{train.path} has no pair of bytes that comes twice to merge; use'
        ' data.codec.Bytes(), or more text.'
      )
    trained = dataclasses.replace(self, merges=_numbered(merges))
    made = codec.OFFSET + int(np.count_nonzero(trained.lengths_V))
    if made < self.vocabulary_size:
      logging.warning(
        'the train split gives %d of data.codec.vocabulary_size=%d ids; the'
        ' others stay unused',
        made,
        self.vocabulary_size,
      )
    trained.describe(folder, {'merges': trained.merges, 'ids': made})

  def describe(self, folder: pathlib.Path, facts: dict[str, Any]) -> None:
    """Writes the tokenizer, and last what completes the folder."""
    tokenizer = self._tokenizer.to_str(pretty=True)
    (folder / 'tokenizer.json').write_text(tokenizer, 'utf-8')
    metadata = {
      'digest': self.digest,
      'tokenizer_sha256': hashlib.sha256(tokenizer.encode()).hexdigest(),
      'tokenizers': id_files.library().__version__,
      'vocabulary_size': self.vocabulary_size,
      'pattern': self.pattern,
    }
    described = json.dumps(metadata | facts, indent=2)
    (folder / 'metadata.json').write_text(described, 'utf-8')


def _spell(text: bytes) -> str:
  """One character per byte."""
  return text.decode('latin-1').translate(_SPELLING)


def _numbered(merges: Iterable[tuple[str, str]]) -> str:
  """The library's merges as ids; each makes the next id, or one there is.

  Two merges that make the same bytes make the same id.
  """
  ids = {_spell(bytes([byte])): byte + codec.OFFSET for byte in range(256)}
  pairs = []
  for left, right in merges:
    pairs.append(f'{ids[left]} {ids[right]}')
    ids.setdefault(left + right, codec.OFFSET + len(ids))
  return ','.join(pairs)
