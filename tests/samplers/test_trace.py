"""A replayed text has the laws that it was drawn from, and shows them."""

import json
import re

import jax.numpy as jnp
import numpy as np
from scipy import special

from evals import trace_page
from samplers import chain
from samplers import loop
from samplers import trace
from tests.samplers import test_loop as toy


def test_replay_knows_the_laws_of_every_token():
  """With a rule that remembers, one of chance, and rows that end early."""
  sampler = chain.parse('presence(0.8)|xtc(0.5)|temperature(0.7)|top_k(4)')
  rows = (*toy.padded(toy.PROMPTS), toy.keys_for(4))
  made = loop.generate(
    toy.step,
    toy.TABLE,
    toy.empty(4),
    *rows,
    sampler,
    num_tokens=toy.CAPACITY,
    stop_ids=(6, 2),
  )
  found = trace.replay(
    toy.step,
    toy.TABLE,
    toy.empty(4),
    rows,
    made.ids_BN,
    made.length_B,
    sampler,
  )
  texts = toy.rows_of(made)
  assert len(set(map(len, texts))) > 1
  for row, (prompt, ids) in enumerate(zip(toy.PROMPTS, texts, strict=True)):
    for n, token in enumerate(ids):
      logits_V = toy.TABLE[toy.hash_of(prompt + ids[:n])].astype(np.float64)
      p_V = special.softmax(logits_V)
      np.testing.assert_allclose(
        [found.entropy_BN[row, n], found.p_BN[row, n]],
        [special.entr(p_V).sum(), p_V[token]],
        rtol=1e-4,
      )
      changed_V = logits_V - 0.8 * np.isin(np.arange(len(p_V)), ids[:n])
      # Of the four best all above 0.1 but one may have been excluded.
      kept, q = int(found.kept_BN[row, n]), float(found.q_BN[row, n])
      assert 1 <= kept <= 4
      order = np.argsort(-changed_V)
      left = [v for v in order if v == token or v in order[:8]]
      share = special.softmax(changed_V / 0.7)
      assert q >= share[token] / share[left].sum() - 1e-5
    for x_BN in found:
      assert not np.any(np.asarray(x_BN)[row, len(ids) :])


def test_kept_and_drawn_with_are_those_of_the_chain():
  sampler = chain.parse('temperature(0.7)|top_k(3)')
  rows = (*toy.padded([[1, 4]]), toy.keys_for(1))
  found = trace.replay(
    toy.step,
    toy.TABLE,
    toy.empty(1),
    rows,
    jnp.array([[7, 3]]),
    jnp.array([1]),
    sampler,
  )
  logits_V = toy.TABLE[toy.hash_of([1, 4])]
  changed_BV = sampler.transform(None, logits_V[None], ())
  assert found.kept_BN.tolist() == [[3, 0]]
  np.testing.assert_allclose(
    found.q_BN[0, 0], special.softmax(np.asarray(changed_BV)[0])[7], rtol=1e-5
  )


STEPS = [
  trace_page.Step(9, b'<a>', 1.5, 10, 0.25, 0.5),
  trace_page.Step(10, b'\xe2', 0.5, 1, 2.0**-20, 1.0),
  trace_page.Step(2, b'', 0.25, 100, 1.0, 1.0),
]
SAMPLES = [trace_page.Sample('one', 'caf\u00e9 &'.encode(), STEPS)]


def test_json_holds_every_step():
  found = json.loads(json.dumps(trace_page.to_json('top_k(3)', SAMPLES)))
  assert found['sampler'] == 'top_k(3)'
  (sample,) = found['samples']
  assert sample['prompt'] == 'caf\u00e9 &'
  assert sample['steps'][0] == {
    'id': 9, 'text': '<a>', 'entropy': 1.5, 'kept': 10, 'p': 0.25, 'q': 0.5
  }  # fmt: skip
  assert sample['steps'][1]['text'] == '\ufffd'


def test_page_is_whole_and_escaped():
  page = trace_page.page('T <1>', 'top_k(3)', SAMPLES)
  assert page.isascii() and '<a>' not in page
  assert not re.search(r'(src|href)=', page)
  assert 'caf&#233; &amp;' in page and 'T &lt;1&gt;' in page
  shares = re.findall(r'--s:([\d.]+)"', page)
  assert shares == ['0.20', '1.00', '0.00']
  assert '>E2</i>' in page and '>[2]</i>' in page
  # The largest is at the top; one line for each of the three quantities.
  lines = re.findall(r'points="([^"]*)"', page)
  assert lines[0] == '0,0.00 1,66.67 2,83.33'
  assert lines[1] == '0,50.00 1,100.00 2,0.00'
  assert len(lines) == 3


def test_empty_and_single_texts_have_pages():
  for steps in ([], STEPS[:1]):
    sample = trace_page.Sample('x', b'', steps)
    assert f'{len(steps)} tokens' in trace_page.page('t', 's', [sample])
