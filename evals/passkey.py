"""A number hidden in a text of any length, to be said again at its end."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data import codec

_TASK = 'A pass key is hidden below. Remember it.\n'
_FILLER = (
  'The grass is green.',
  'The sky is blue.',
  'The sun is yellow.',
  'Here we go.',
  'There and back again.',
)
_CUE = 'The pass key is '
# Rows are this much longer than they need to be, at most.
_ROUND = 64


class Sample(NamedTuple):
  """A text that ends where the answer begins."""

  prompt: bytes
  answer: bytes


@dataclasses.dataclass(frozen=True)
class Passkey:
  """Passkey retrieval (arXiv 2305.16300), made up as it is asked.

  The text is filler of which one line is the key. `needle` is that line, with
  {key} where the key goes and must be said again after `cue`, so that other
  retrieval tasks of one needle are of this form too.

  lengths: bytes of the texts with their answers. depths: places of the needle,
  0 for the start and 1 for the end. questions: per length and depth.
  """

  lengths: tuple[int, ...] = (512, 2048, 8192)
  depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
  questions: int = 16
  digits: int = 5
  needle: str = 'The pass key is {key}. Remember it. {key} is the pass key.\n'
  cue: str = _CUE
  seed: int = 0

  def __post_init__(self) -> None:
    if '{key}' not in self.needle or self.questions < 1 or self.digits < 1:
      raise ValueError(
        f'evals: needle={self.needle!r} must say where the {{key}} goes;'
        f' questions={self.questions} and digits={self.digits} are at least 1.'
      )
    if not all(0 <= depth <= 1 for depth in self.depths):
      raise ValueError(f'evals: depths={self.depths} must be from 0 to 1.')
    shortest = len(_TASK) + len(self._line('0' * self.digits))
    shortest += len(self.cue) + self.digits
    if min(self.lengths, default=0) < shortest:
      raise ValueError(
        f'evals: lengths={self.lengths} must be at least {shortest}, of the'
        ' task, the needle and the answer.'
      )

  def sample(self, length: int, depth: float, number: int) -> Sample:
    """Question `number`: a text of `length` bytes with its answer."""
    place = self.depths.index(depth) if depth in self.depths else 0
    rng = np.random.default_rng((self.seed, length, place, number))
    key = ''.join(rng.choice(list('0123456789'), self.digits))
    line = self._line(key)
    room = length - len(_TASK) - len(line) - len(self.cue) - self.digits
    start = int(rng.integers(len(_FILLER)))
    whole = ' '.join(_FILLER[start:] + _FILLER[:start]) + '\n'
    before = round(depth * room)
    filler = whole * math.ceil(room / len(whole))
    cut = _at_a_line(filler, before)
    text = _TASK + filler[:cut] + line + filler[cut:room] + self.cue
    return Sample(text.encode(), key.encode())

  def document(self, number: int) -> bytes:
    """A text with its answer to learn from: any length of ours, any depth."""
    rng = np.random.default_rng((self.seed, number))
    length = self.lengths[int(rng.integers(len(self.lengths)))]
    return b''.join(self.sample(length, float(rng.random()), number))

  def run(
    self,
    apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,
    documents: Sequence[np.ndarray],
    *,
    max_bytes: int | None = None,
  ) -> dict[str, float]:
    """How often greedy decoding says the key.

    documents: only their codec is used. Returns for every length
    `passkey/LENGTH/DEPTH` in percent of the way, `mean` with its standard
    error over questions, and `worst` of its depths.
    """
    del max_bytes
    spelling = getattr(documents, 'codec', codec.Bytes())
    found = {}
    for length in self.lengths:
      grid = []
      for depth in self.depths:
        hits = [
          is_said(apply, params, self.sample(length, depth, i), spelling)
          for i in range(self.questions)
        ]
        grid.append(hits)
        found[f'passkey/{length}/{round(100 * depth)}'] = float(np.mean(hits))
      count = len(self.depths) * self.questions
      mean = float(np.mean(grid))
      found[f'passkey/{length}/mean'] = mean
      found[f'passkey/{length}/mean_stderr'] = math.sqrt(
        mean * (1 - mean) / max(count - 1, 1)
      )
      found[f'passkey/{length}/worst'] = float(np.mean(grid, axis=1).min())
    return found

  def _line(self, key: str) -> str:
    return self.needle.replace('{key}', key)


def is_said(
  apply: Any, params: Any, sample: Sample, spelling: codec.Codec
) -> bool:
  """Whether greedy decoding continues a prompt with the answer.

  It does if every id of the answer is the best one after those before it,
  which a single forward pass shows.
  """
  before, whole = (
    spelling.encode(text) for text in (sample.prompt, b''.join(sample))
  )
  # Where tokens are longer than a byte, the last of the prompt may go on.
  shared = min(len(before), len(whole))
  same = before[:shared] == whole[:shared]
  start = shared if same.all() else int(same.argmin())
  prompt, answer = whole[:start], whole[start:]
  row = codec.marked(spelling.bos, whole[:-1])
  size = -(-len(row) // _ROUND) * _ROUND
  ids_BT, documents_BT = np.zeros((2, 1, size), np.int32)
  ids_BT[0, : len(row)] = row
  documents_BT[0, : len(row)] = 1
  best = _best(apply, params, ids_BT, documents_BT, len(prompt), len(answer))
  return bool(np.array_equal(np.asarray(best), answer))


@functools.partial(jax.jit, static_argnames=('apply', 'count'))
def _best(
  apply: Any,
  params: Any,
  ids_BT: jax.Array,
  documents_BT: jax.Array,
  start: int,
  count: int,
) -> jax.Array:
  """The likeliest ids after the places start .. start + count - 1."""
  logits_BTV = apply(params, ids_BT, documents_BT)
  part = jax.lax.dynamic_slice_in_dim(logits_BTV[0], start, count)
  return jnp.argmax(part, axis=-1)


def _at_a_line(text: str, place: int) -> int:
  """Where the line begins that the place is in."""
  return text.rfind('\n', 0, place) + 1
