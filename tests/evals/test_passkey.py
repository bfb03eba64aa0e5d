"""Passkeys: texts of the length asked for, and a model that looks back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import codec
from evals import passkey

_CONTEXT = 6


def look_back(reach, ids_BT, documents_BT):
  """Repeats what followed the latest place of like context within reach."""
  length = ids_BT.shape[1]
  place = jnp.arange(length)
  behind = place[:, None] - place[None]
  same = (behind > 0) & (behind < reach)
  for back in range(_CONTEXT):
    past = jnp.roll(ids_BT[0], back)
    same &= past[:, None] == past[None]
  latest = jnp.max(jnp.where(same, place[None], -1), axis=1)
  following = ids_BT[0][jnp.clip(latest + 1, 0, length - 1)]
  best = jnp.where(latest >= 0, following, 0)
  return jax.nn.one_hot(best, codec.VOCABULARY)[None]


@pytest.mark.parametrize('depth', [0.0, 0.3, 1.0])
def test_a_text_has_the_length_and_the_needle_where_asked(depth):
  evaluator = passkey.Passkey(depths=(0.0, 0.3, 1.0))
  texts = [evaluator.sample(700, depth, number) for number in range(20)]
  keys = {text.answer for text in texts}
  assert len(keys) > 15
  for text in texts:
    assert len(text.prompt) + len(text.answer) == 700
    assert text.answer.isdigit()
    assert len(text.answer) == 5
    line = b'The pass key is ' + text.answer + b'. Remember it. ' + text.answer
    place = text.prompt.index(line)
    assert text.prompt.count(text.answer) == 2
    assert text.prompt[place - 1 : place] == b'\n'
    task, last = 41, 700 - len(evaluator.needle) - 20
    wanted = task + depth * (last - task)
    assert abs(place - wanted) < 120
    assert text.prompt.endswith(b'The pass key is ')
  assert texts[0] == evaluator.sample(700, depth, 0)


def test_any_line_with_a_key_is_a_needle():
  evaluator = passkey.Passkey(
    needle='Best city: {key}, nowhere else.\n', cue='Go to ', digits=9
  )
  for depth in (0.0, 0.43, 1.0):
    text = evaluator.sample(3000, depth, 5)
    line = b'\nBest city: ' + text.answer + b', nowhere else.\n'
    assert text.prompt.count(line) == text.prompt.count(text.answer) == 1
    assert abs(text.prompt.index(line) - depth * 2900) < 150
    assert text.prompt.endswith(b'Go to ') and len(text.answer) == 9


def test_documents_are_answered_texts_of_any_depth():
  evaluator = passkey.Passkey(lengths=(300, 500), seed=1)
  texts = [evaluator.document(number) for number in range(40)]
  assert {len(text) for text in texts} == {300, 500}
  places = []
  for text in texts:
    assert text.startswith(b'A pass key is hidden')
    key = text[-5:]
    assert key.isdigit() and text.count(key) == 3
    place = text.index(b'The pass key is ' + key + b'. Remember')
    places.append(place / len(text))
  assert min(places) < 0.25 and max(places) > 0.6
  assert len({text[-5:] for text in texts}) > 35
  assert texts[7] == evaluator.document(7)


def test_tokens_may_go_on_over_the_end_of_the_prompt():
  """Pairs of bytes as ids, so that the last of a prompt depends on it."""

  class Pairs:
    bos = 1

    def encode(self, text):
      text = bytes(text) + b'\0' * (len(text) % 2)
      pairs = np.frombuffer(text, np.uint8).reshape(-1, 2)
      return pairs[:, 0].astype(np.int32) * 256 + pairs[:, 1]

  answer = passkey.Sample(b'abc', b'123')
  wanted = Pairs().encode(b'abc123')

  def apply(ids_N, ids_BT, documents_BT):
    best_T = jnp.pad(ids_N, (0, ids_BT.shape[1] - len(ids_N)))
    return jax.nn.one_hot(best_T, 2**16)[None]

  assert passkey.is_said(apply, jnp.asarray(wanted), answer, Pairs())
  # The first id is all of the prompt's; the other two are of the answer.
  for place, said in ((0, True), (1, False), (2, False)):
    other = wanted.copy()
    other[place] += 1
    found = passkey.is_said(apply, jnp.asarray(other), answer, Pairs())
    assert found == said


def test_retrieval_is_as_deep_as_the_model_looks():
  evaluator = passkey.Passkey(
    lengths=(256, 1024), depths=(0.0, 0.5, 1.0), questions=3
  )
  found = evaluator.run(look_back, jnp.int32(700), [])
  assert found == {
    'passkey/256/0': 1.0,
    'passkey/256/50': 1.0,
    'passkey/256/100': 1.0,
    'passkey/256/mean': 1.0,
    'passkey/256/mean_stderr': 0.0,
    'passkey/256/worst': 1.0,
    'passkey/1024/0': 0.0,
    'passkey/1024/50': 1.0,
    'passkey/1024/100': 1.0,
    'passkey/1024/mean': pytest.approx(2 / 3),
    'passkey/1024/mean_stderr': pytest.approx(np.sqrt(2 / 9 / 8)),
    'passkey/1024/worst': 0.0,
  }


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'needle': 'no place'}, 'needle='),
    ({'questions': 0}, 'questions=0'),
    ({'depths': (0.0, 1.5)}, 'depths='),
    ({'lengths': (100, 512)}, 'must be at least'),
  ],
)
def test_tasks_that_cannot_be_made_are_named(fields, words):
  with pytest.raises(ValueError, match=words):
    passkey.Passkey(**fields)
