"""Questions answered by hand, and models that know or ignore the answers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import codec
from data import tokens
from evals import spelling

WORDS = (
  'word', 'line', 'file', 'type', 'name', 'part', 'text', 'code', 'table',
  'value', 'class', 'break', 'lambda', 'import', 'method', 'return', 'string',
  'object', 'python', 'number',
)  # fmt: skip
BPE = tokens.Bpe(vocabulary_size=264, merges='101 102,260 103,36 36,69 70')
TASKS = spelling.Spelling().tasks


class Documents(list):
  codec = BPE


def make_documents(cls=list):
  text = ' '.join(w for n, w in enumerate(WORDS) for _ in range(30 - n))
  return cls([np.frombuffer(text.encode(), np.uint8)])


def answer(text):
  """What the question asks for, worked out from its words."""
  word = re.findall(r'"([a-z ]+)"', text)[-1]
  names = re.findall(r'"([a-z])"', text)
  if text.startswith('Spell'):
    return ' '.join(word)
  if text.startswith('Write'):
    return word.replace(' ', '')
  if text.startswith('Is there'):
    return 'Yes' if names[0] in word else 'No'
  if text.startswith('Delete'):
    return word.replace(names[0], '')
  if text.startswith('Insert'):
    at = word.index(names[1]) + 1
    return word[:at] + names[0] + word[at:]
  if text.startswith('Substitute'):
    return word.replace(*names)
  assert text.startswith('Swap')
  letters = list(word)
  i, j = map(word.index, names)
  letters[i], letters[j] = letters[j], letters[i]
  return ''.join(letters)


@pytest.mark.parametrize('task', TASKS, ids=lambda task: type(task).__name__)
def test_questions_and_their_examples_have_right_answers(task):
  evaluator = spelling.Spelling(questions=40, shots=2)
  words = [w for w in WORDS if len(set(w)) == len(w)]
  asked = evaluator.prompts(task, words)
  assert len(asked) == 40 and asked == evaluator.prompts(task, words)
  assert len({question.text for question in asked}) > 30
  for text, right, wrong in asked:
    *examples, last = text.split('\n')
    assert len(examples) == 2
    for line in examples:
      question, found = line.split(' Answer: ')
      assert found == answer(question.removeprefix('Question: ')) + '.'
    question = last.removeprefix('Question: ').removesuffix(' Answer:')
    assert right == answer(question) != wrong
    used = [
      w for line in (*examples, last) for w in re.findall('"(.{4,})"', line)
    ]
    assert len(set(used)) == 3
    if 'Is there' not in text:
      assert len(right) == len(wrong)
  other = spelling.Spelling(questions=40, shots=2, seed=1)
  assert other.prompts(task, words) != asked


@pytest.mark.parametrize('task', TASKS, ids=lambda task: type(task).__name__)
def test_answers_alone_do_not_tell_which_is_right(task):
  """Half of the time the right one comes first in the alphabet."""
  evaluator = spelling.Spelling(questions=600, shots=0)
  words = [w for w in WORDS if len(set(w)) == len(w)]
  asked = evaluator.prompts(task, words)
  first = np.mean([right < wrong for _, right, wrong in asked])
  assert first == pytest.approx(0.5, abs=0.07)


def test_swap_in_the_published_shape():
  text, right, wrong = spelling.Swap()('word', '', np.random.default_rng(0))
  assert re.fullmatch(r'Swap "\w" and "\w" in "word"\.', text)
  assert sorted(right) == sorted(wrong) == sorted('word')


def test_words_are_whole_frequent_distinct_and_have_a_peer():
  text = b'loop word word word line line camelCase typed_as X1 aXis letter name'
  words = spelling.frequent_words([np.frombuffer(text, np.uint8)], 3)
  # 'typed' is alone in its length, 'loop' and 'letter' repeat a letter.
  assert words == ['word', 'line', 'name']
  assert 'typed' not in spelling.frequent_words(
    [np.frombuffer(text, np.uint8)], 10
  )


def right_and_wrong(evaluator, documents):
  """The id rows of all answers, as a scorer would have to see them."""
  own = getattr(documents, 'codec', codec.Bytes())
  words = spelling.frequent_words(documents, evaluator.words)
  rows = []
  for task in evaluator.tasks:
    for question in evaluator.prompts(task, words):
      prompt = [codec.BOS, *own.encode(question.text.encode())]
      for text in question[1:]:
        ids = [*prompt, *own.encode(f' {text}.'.encode())]
        rows.append((ids, len(prompt), len(text) + 2))
  return rows


@pytest.mark.parametrize('cls', [list, Documents])
def test_scores_equal_scoring_every_answer_alone(cls):
  documents = make_documents(cls)
  own = getattr(documents, 'codec', codec.Bytes())
  size = own.vocabulary_size
  table_VV = np.random.default_rng(0).normal(0, 3, (size, size))
  table_VV = jnp.asarray(table_VV, jnp.float32)

  def bigram(params, ids_BT, documents_BT):
    del documents_BT
    return params[ids_BT]

  evaluator = spelling.Spelling(questions=5, shots=1, batch_size=4)
  found = evaluator.run(bigram, table_VV, documents)
  log_p_VV = np.asarray(jax.nn.log_softmax(table_VV), np.float64)
  bits, sizes = [], []
  for ids, start, count in right_and_wrong(evaluator, documents):
    steps = zip(ids[start - 1 : -1], ids[start:], strict=True)
    bits.append(-sum(log_p_VV[a, b] for a, b in steps) / np.log(2))
    sizes.append(count)
  bits_KQ2 = np.reshape(bits, (len(TASKS), 5, 2))
  sizes_KQ2 = np.reshape(sizes, (len(TASKS), 5, 2))
  preferred_KQ = bits_KQ2[..., 0] < bits_KQ2[..., 1]
  for task, bits_Q2, sizes_Q2, preferred_Q in zip(
    TASKS, bits_KQ2, sizes_KQ2, preferred_KQ, strict=True
  ):
    head = f'spelling/{type(task).__name__}'
    rates = bits_Q2.sum(axis=0) / sizes_Q2.sum(axis=0)
    assert found[f'{head}/right_bits_per_byte'] == pytest.approx(
      rates[0], rel=1e-4
    )
    assert found[f'{head}/wrong_bits_per_byte'] == pytest.approx(
      rates[1], rel=1e-4
    )
    assert found[f'{head}/preferred'] == preferred_Q.mean()
    spread = np.std(preferred_Q, ddof=1) / 5**0.5
    assert found[f'{head}/preferred_stderr'] == pytest.approx(spread)
  assert found['spelling/preferred'] == pytest.approx(preferred_KQ.mean())
  spreads = np.std(preferred_KQ, axis=1, ddof=1) / 5**0.5
  assert found['spelling/preferred_stderr'] == pytest.approx(
    np.sqrt(np.sum(spreads**2)) / len(TASKS)
  )


def memorising(rows, size):
  """A model that has read the rows and gives their next ids by heart.

  The id at each place is predicted from a hash of all ids before it.
  """
  known = {}
  for ids in rows:
    for stop in range(1, len(ids)):
      known[tuple(ids[:stop])] = ids[stop]

  def look_up(ids_BT):
    next_BT = np.zeros(ids_BT.shape, np.int32)
    for row, ids in enumerate(ids_BT.tolist()):
      for stop in range(1, len(ids) + 1):
        next_BT[row, stop - 1] = known.get(tuple(ids[:stop]), 3)
    return next_BT

  def apply(params, ids_BT, documents_BT):
    del params, documents_BT
    shape = jax.ShapeDtypeStruct(ids_BT.shape, jnp.int32)
    return 9 * jax.nn.one_hot(jax.pure_callback(look_up, shape, ids_BT), size)

  return apply


@pytest.mark.parametrize('cls', [list, Documents])
@pytest.mark.parametrize('known', ['right', 'wrong'])
def test_a_model_that_knows_the_answers(cls, known):
  documents = make_documents(cls)
  own = getattr(documents, 'codec', codec.Bytes())
  evaluator = spelling.Spelling(
    tasks=(spelling.Spell(), spelling.Swap()), questions=4, shots=1
  )
  rows = right_and_wrong(evaluator, documents)
  learned = [ids for ids, _, _ in rows[known == 'wrong' :: 2]]
  apply = memorising(learned, own.vocabulary_size)
  found = evaluator.run(apply, None, documents)
  for name in ('exact', 'preferred'):
    assert found[f'spelling/{name}'] == (known == 'right')
    assert found[f'spelling/Spell/{name}_stderr'] == 0


def test_one_wrong_id_makes_an_answer_inexact():
  documents = make_documents()
  evaluator = spelling.Spelling(tasks=(spelling.Spell(),), questions=4, shots=0)
  rows = [ids for ids, _, _ in right_and_wrong(evaluator, documents)[::2]]
  # The period behind the answer is part of it.
  rows[2][-1] += 1
  rows[3][-4] += 1
  found = evaluator.run(memorising(rows, codec.VOCABULARY), None, documents)
  assert found['spelling/exact'] == 0.5


def test_a_model_without_opinion_prefers_neither():
  def uniform(params, ids_BT, documents_BT):
    del params, documents_BT
    return jnp.zeros((*ids_BT.shape, codec.VOCABULARY))

  tasks = (spelling.Spell(), spelling.Insert(), spelling.Swap())
  evaluator = spelling.Spelling(tasks=tasks, questions=1, shots=0)
  found = evaluator.run(uniform, None, make_documents())
  assert found['spelling/preferred'] == 0.5
  assert found['spelling/exact'] == 0
  assert found['spelling/preferred_stderr'] is None
  assert found['spelling/Swap/right_bits_per_byte'] == pytest.approx(
    np.log2(codec.VOCABULARY), rel=1e-5
  )


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'questions': 0}, 'questions=0 must be at least 1'),
    ({'shots': -1}, 'shots=-1 must be at least 0'),
    ({'shots': 4, 'words': 14}, 'words=14 must be at least 15 for shots=4'),
    ({'window': 40}, 'more than window=40; raise it, or lower shots=3'),
    ({'shots': 8}, 'the text has 16 words .* need at least 23; score more'),
  ],
)
def test_bad_input_is_named(fields, words):
  with pytest.raises(ValueError, match=words):
    spelling.Spelling(**fields).run(None, None, make_documents())
