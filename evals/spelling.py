"""Questions about the letters of words, made from the corpus's own words.

The tasks and the shape of the prompt are those of CUTE (Edman et al., arXiv
2409.15452), in which the Byte Latent Transformer is compared with token models
(arXiv 2412.09871, section 6.1). Models that are too small to answer any are
still told apart by whether they prefer the right answer to a wrong one.
"""

import collections
import dataclasses
import functools
import math
import re
import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from data import codec
from evals import noise

# Words alone, not parts of names in camel case.
_WORD = re.compile(rb'(?<![A-Za-z])[a-z]{4,8}(?![A-Za-z])')
_LENGTHS = 5
# Rows are this much longer than they need to be, at most.
_ROUND = 64


class Question(NamedTuple):
  """A question and two answers, one of which is right.

  The two are exchangeable for who does not understand the question: drawn
  alike, or the right answer to another question about the same word. So a
  model that ignores the question prefers the right one half of the time.
  """

  text: str
  right: str
  wrong: str


class Task(Protocol):
  """How questions of one kind are made."""

  def __call__(
    self, word: str, other: str, rng: np.random.Generator
  ) -> Question:
    """A question about `word`, which has no letter twice.

    other: a different word of the same length, for the wrong answer.
    """


@dataclasses.dataclass(frozen=True)
class Spell:
  """From a word to its letters."""

  def __call__(
    self, word: str, other: str, rng: np.random.Generator
  ) -> Question:
    del rng
    return Question(f'Spell "{word}".', ' '.join(word), ' '.join(other))


@dataclasses.dataclass(frozen=True)
class InverseSpell:
  """From letters to the word."""

  def __call__(
    self, word: str, other: str, rng: np.random.Generator
  ) -> Question:
    del rng
    return Question(f'Write the word "{" ".join(word)}".', word, other)


@dataclasses.dataclass(frozen=True)
class Contains:
  """Whether a letter of one of the two words is in the other."""

  def __call__(
    self, word: str, other: str, rng: np.random.Generator
  ) -> Question:
    only = sorted(set(word) - set(other)) or list(word)
    letter = str(rng.choice(only))
    asked = word if rng.random() < 0.5 else other
    answers = ('Yes', 'No') if letter in asked else ('No', 'Yes')
    return Question(f'Is there a "{letter}" in "{asked}"?', *answers)


@dataclasses.dataclass(frozen=True)
class Insert:
  """A new letter behind one of the word's; wrong: behind another."""

  def __call__(
    self, word: str, other: str, rng: np.random.Generator
  ) -> Question:
    del other
    new = _new_letter(word, rng)
    first, second = _two(word, rng)
    return Question(
      f'Insert "{new}" after "{first}" in "{word}".',
      word.replace(first, first + new),
      word.replace(second, second + new),
    )


@dataclasses.dataclass(frozen=True)
class Delete:
  """The word without a letter; wrong: without another."""

  def __call__(
    self, word: str, other: str, rng: np.random.Generator
  ) -> Question:
    del other
    first, second = _two(word, rng)
    return Question(
      f'Delete "{first}" in "{word}".',
      word.replace(first, ''),
      word.replace(second, ''),
    )


@dataclasses.dataclass(frozen=True)
class Substitute:
  """A new letter in place of one; wrong: in place of another."""

  def __call__(
    self, word: str, other: str, rng: np.random.Generator
  ) -> Question:
    del other
    new = _new_letter(word, rng)
    first, second = _two(word, rng)
    return Question(
      f'Substitute "{first}" with "{new}" in "{word}".',
      word.replace(first, new),
      word.replace(second, new),
    )


@dataclasses.dataclass(frozen=True)
class Swap:
  """Two letters change places; wrong: another two do."""

  def __call__(
    self, word: str, other: str, rng: np.random.Generator
  ) -> Question:
    del other
    pairs = [(a, b) for i, b in enumerate(word) for a in word[:i]]
    chosen = rng.choice(len(pairs), 2, replace=False)
    right, wrong = (
      word.translate(str.maketrans(a + b, b + a))
      for a, b in (pairs[number] for number in chosen)
    )
    first, second = pairs[chosen[0]]
    return Question(f'Swap "{first}" and "{second}" in "{word}".', right, wrong)


@dataclasses.dataclass(frozen=True)
class Spelling:
  """Exact answers, and the right answer against a wrong one.

  Each prompt holds `shots` answered questions of the same task about other
  words. A greedy answer is exact if every id of the right answer and of the
  period behind it is the likeliest, which needs no decoding. For tokens this
  asks for the codec's own way to spell the answer.

  questions: of each task; words: the most frequent ones of the text that have
  4 to 8 small letters, none twice; window: ids that a prompt and its answer
  may have; batch_size: rows.
  """

  tasks: tuple[Any, ...] = (
    Spell(),
    InverseSpell(),
    Contains(),
    Insert(),
    Delete(),
    Substitute(),
    Swap(),
  )
  questions: int = 32
  shots: int = 3
  words: int = 500
  window: int = 512
  batch_size: int = 8
  seed: int = 0

  def __post_init__(self) -> None:
    for name, least in (('questions', 1), ('shots', 0), ('batch_size', 1)):
      if getattr(self, name) < least:
        raise ValueError(
          f'evals: {name}={getattr(self, name)} must be at least {least}.'
        )
    if self.words < self._fewest:
      raise ValueError(
        f'evals: words={self.words} must be at least {self._fewest} for'
        f' shots={self.shots}, which have words of their own.'
      )

  def run(
    self,
    apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,
    documents: Sequence[np.ndarray],
    *,
    max_bytes: int | None = None,
  ) -> dict[str, float | None]:
    """Asks about the words of `documents`, or of their first `max_bytes`.

    Returns for each task, as `spelling/<task>/...`, the fractions exact and
    preferred (the right answer is likelier than the wrong one; chance is 1/2)
    with their standard errors over questions, and right_bits_per_byte and
    wrong_bits_per_byte of the answers; `spelling/exact` and
    `spelling/preferred` are the means over the tasks.
    """
    spelling = getattr(documents, 'codec', codec.Bytes())
    words = frequent_words(noise.first_bytes(documents, max_bytes), self.words)
    if len(words) < self._fewest:
      raise ValueError(
        f'the text has {len(words)} words that questions can be asked about'
        f' and shots={self.shots} need at least {self._fewest}; score more'
        ' bytes, or leave evals.spelling out.'
      )
    asked = [self.prompts(task, words) for task in self.tasks]
    flat = [question for questions in asked for question in questions]
    nats_Q2, exact_Q2 = self._score(apply, params, flat, spelling)
    results: dict[str, float | None] = {}
    for number, (task, questions) in enumerate(
      zip(self.tasks, asked, strict=True)
    ):
      part = slice(number * self.questions, (number + 1) * self.questions)
      results |= _described(
        f'spelling/{type(task).__name__}',
        questions,
        nats_Q2[part] / math.log(2),
        exact_Q2[part, 0],
      )
    for name in ('exact', 'preferred'):
      keys = [f'spelling/{type(task).__name__}/{name}' for task in self.tasks]
      spreads = [results[f'{key}_stderr'] for key in keys]
      results[f'spelling/{name}'] = float(np.mean([results[k] for k in keys]))
      results[f'spelling/{name}_stderr'] = (
        None if None in spreads else math.hypot(*spreads) / len(keys)
      )
    return results

  @property
  def _fewest(self) -> int:
    """Words that always hold a pair of one length for each question asked.

    Pairs of one length leave at most one word of each length over.
    """
    return 2 * (self.shots + 1) + _LENGTHS

  def prompts(self, task: Task, words: Sequence[str]) -> list[Question]:
    """The questions of a task, each behind its examples.

    They depend on the seed, the task's class and the words only.
    """
    name = type(task).__name__
    rng = np.random.default_rng([self.seed, *name.encode()])
    found = []
    for _ in range(self.questions):
      lines, used = [], set()
      while len(lines) <= self.shots:
        word, other = _pair(words, rng)
        if not {word, other} & used:
          used |= {word, other}
          lines.append(task(word, other, rng))
      *examples, last = lines
      shown = ''.join(
        f'Question: {text} Answer: {right}.\n' for text, right, _ in examples
      )
      found.append(last._replace(text=f'{shown}Question: {last.text} Answer:'))
    return found

  def _score(
    self,
    apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,
    questions: Sequence[Question],
    spelling: codec.Codec,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Nats of the right and the wrong answers, and whether all ids are best."""
    rows = []
    for question in questions:
      prompt = [spelling.bos, *spelling.encode(question.text.encode())]
      for answer in question[1:]:
        ids = spelling.encode(f' {answer}.'.encode())
        rows.append((np.array([*prompt, *ids], np.int32), len(prompt)))
    longest = max(len(ids) for ids, _ in rows) - 1
    if longest > self.window:
      raise ValueError(
        f'evals: a prompt of spelling has {longest} ids, more than window='
        f'{self.window}; raise it, or lower shots={self.shots}.'
      )
    length = min(-(-longest // _ROUND) * _ROUND, self.window)
    nats_R, exact_R = np.zeros(len(rows)), np.zeros(len(rows), bool)
    for first in range(0, len(rows), self.batch_size):
      part = rows[first : first + self.batch_size]
      shape = (self.batch_size, length)
      names = ('ids', 'targets', 'documents', 'scored')
      batch = {name: np.zeros(shape, np.int32) for name in names}
      for row, (ids, start) in enumerate(part):
        size = len(ids) - 1
        batch['ids'][row, :size] = ids[:-1]
        batch['targets'][row, :size] = ids[1:]
        batch['documents'][row, :size] = 1
        batch['scored'][row, start - 1 : size] = 1
      nats_B, exact_B = _answer(apply, params, **batch)
      stop = first + len(part)
      nats_R[first:stop] = np.asarray(nats_B, np.float64)[: len(part)]
      exact_R[first:stop] = np.asarray(exact_B)[: len(part)]
    return nats_R.reshape(-1, 2), exact_R.reshape(-1, 2)


def frequent_words(documents: Sequence[np.ndarray], count: int) -> list[str]:
  """The most frequent words of `_WORD` without a letter twice, and by name.

  Of a length that only one word has, there is none.
  """
  counted: collections.Counter[str] = collections.Counter()
  for document in documents:
    found = _WORD.findall(document.tobytes())
    counted.update(word.decode() for word in found)
  distinct = [word for word in counted if len(set(word)) == len(word)]
  ranked = sorted(distinct, key=lambda word: (-counted[word], word))[:count]
  sizes = collections.Counter(map(len, ranked))
  return [word for word in ranked if sizes[len(word)] > 1]


def _pair(words: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
  """Two different words of one length, in either order as likely."""
  first = words[rng.integers(len(words))]
  same = [word for word in words if len(word) == len(first) and word != first]
  return first, same[rng.integers(len(same))]


def _two(word: str, rng: np.random.Generator) -> tuple[str, str]:
  """Two different letters of a word, in either order as likely."""
  first, second = rng.choice(len(word), 2, replace=False)
  return word[first], word[second]


def _new_letter(word: str, rng: np.random.Generator) -> str:
  return str(rng.choice(sorted(set(string.ascii_lowercase) - set(word))))


def _described(
  head: str,
  questions: Sequence[Question],
  bits_Q2: np.ndarray,
  exact_Q: np.ndarray,
) -> dict[str, float | None]:
  """The results of one task. Equal likelihoods are half a preference."""
  difference_Q = bits_Q2[:, 1] - bits_Q2[:, 0]
  preferred_Q = (np.sign(difference_Q) + 1) / 2
  results: dict[str, float | None] = {}
  for name, values_Q in (('exact', exact_Q), ('preferred', preferred_Q)):
    count = len(values_Q)
    spread = float(np.std(values_Q, ddof=1) / count**0.5) if count > 1 else None
    results[f'{head}/{name}'] = float(np.mean(values_Q))
    results[f'{head}/{name}_stderr'] = spread
  for column, name in enumerate(('right', 'wrong')):
    # The space before and the period behind an answer are scored too.
    size = sum(len(question[1 + column]) + 2 for question in questions)
    total = float(bits_Q2[:, column].sum())
    results[f'{head}/{name}_bits_per_byte'] = total / size
  return results


@functools.partial(jax.jit, static_argnames=('apply',))
def _answer(
  apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
  params: Any,
  ids: jax.Array,
  targets: jax.Array,
  documents: jax.Array,
  scored: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Nats of the scored targets of each row; whether greedy gives them all."""
  logits_BTV = apply(params, ids, documents).astype(jnp.float32)
  log_p_BTV = jax.nn.log_softmax(logits_BTV)
  log_p_BT = jnp.take_along_axis(log_p_BTV, targets[..., None], -1)[..., 0]
  nats_B = -jnp.sum(log_p_BT * scored, axis=1)
  is_best_BT = jnp.argmax(logits_BTV, axis=-1) == targets
  exact_B = jnp.all(is_best_BT | (scored == 0), axis=1)
  if jax.sharding.get_abstract_mesh().empty:
    return nats_B, exact_B
  whole = jax.sharding.PartitionSpec()
  return jax.lax.with_sharding_constraint((nats_B, exact_B), whole)
