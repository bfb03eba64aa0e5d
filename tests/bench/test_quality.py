"""Samples of rules at equal risk, and who may judge them."""

import types

import numpy as np
import pytest

from bench import quality
from configs import restore
from data import codec
from evals import diversity
from samplers import bat
from samplers import mirostat
from samplers import truncation
from tests.models import small_lm

MODEL = small_lm.lm.ByteLM(**small_lm.SIZES)
LARGER = MODEL.clone(hidden=64)
TEXT = bytes(range(32, 127)) * 8


def make_run(model):
  config = types.SimpleNamespace(
    model=model, data=types.SimpleNamespace(codec=codec.Bytes())
  )
  return restore.Run(config, small_lm.draw(model), 7)


RUN = make_run(MODEL)


def match(knob):
  return diversity.Match(knob, 0, 0, 0, 0)


def test_places_are_cut_evenly():
  documents = [np.frombuffer(text, np.uint8) for text in (TEXT, b'', TEXT[:70])]
  begun = quality.cut(documents, 3, 6)
  # Ten places of 70 bytes in the first, one in the last.
  starts = 0, 350, 0
  for start, prompt, end in zip(starts, begun.prompts, begun.ends, strict=True):
    assert prompt + end == TEXT[start : start + 70]
    assert len(prompt) == quality.PROMPT_BYTES
  assert quality.cut(documents, 0, 6) is None
  with pytest.raises(ValueError, match='--samples=12 is more than the 11 plac'):
    quality.cut(documents, 12, 6)


def test_the_rule_that_draws_is_that_of_the_table():
  (rule,) = quality.sampler(RUN, 'top_p', match(1.0000001)).rules
  assert isinstance(rule, truncation.TopP) and rule.p == 1
  (rule,) = quality.sampler(RUN, 'bat(eta)', match(0.03)).rules
  assert isinstance(rule, bat.Bat) and rule.eta == pytest.approx(0.03)
  assert rule.basis_VC.shape[0] == 260
  (rule,) = quality.sampler(RUN, 'mirostat', match(3.4)).rules
  assert isinstance(rule, mirostat.Mirostat) and rule.target == 3.4
  for name, knob in (('adaptive', 0.1), ('eta', 1.5), ('bat(eta)', 23.0)):
    assert quality.sampler(RUN, name, match(knob)) is None


def test_rows_of_the_split_and_of_every_rule():
  begun = quality.Begun([b'abc', b'for'], [b' aa bb cc dd', b' aa aa aa aa'])
  found = {'top_k': {0.5: match(1)}, 'adaptive': {0.5: match(0.1)}}
  split, greedy = quality.rows(RUN, make_run(LARGER), begun, found)
  assert (split['rule'], split['risk']) == ('the split itself', '-')
  assert split['distinct-1'] == '0.500'
  assert (greedy['rule'], greedy['risk']) == ('top_k', '0.5')
  # One id is kept: the text is the likeliest, byte by byte.
  own = [float(r['own bits per byte'].split()[0]) for r in (split, greedy)]
  assert own[1] < own[0]
  other = [r['bits per byte, larger model'].split()[0] for r in (split, greedy)]
  assert all(float(a) != b for a, b in zip(other, own, strict=True))
  texts = quality.draw(RUN, quality.sampler(RUN, 'top_k', match(1)),
                       begun.prompts, 12)
  ids = np.concatenate([[codec.BOS], codec.encode(b'abc' + texts[0])])
  logits = np.asarray(small_lm.forward(MODEL, RUN.params, ids[None, :-1])[0])
  np.testing.assert_array_equal(logits[3:].argmax(axis=1), ids[4:])


def test_the_judge_is_larger(monkeypatch):
  runs = {'small': RUN, 'large': make_run(LARGER)}
  monkeypatch.setattr(restore, 'restore', runs.__getitem__)
  assert quality.read_judge(None, RUN, 0) is None
  assert quality.read_judge('large', RUN, 4) is runs['large']
  with pytest.raises(ValueError, match='the judge must be the larger model'):
    quality.read_judge('small', RUN, 4)
  with pytest.raises(ValueError, match='--judge=large has nothing to score'):
    quality.read_judge('large', RUN, 0)
