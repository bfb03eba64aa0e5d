"""The command sample.py, over a stand-in model that spells a known text."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver

import sample
from configs import corpora
from configs import restore
from data import codec
from data import tokens
from models import superposition
from samplers import chain
from samplers import engines
from samplers import ngram_tables
from samplers import superposed

# Byte 16, where the second chunk begins, falls inside a character.
TEXT = 'fifteen bytes, \u20ac and \u00e9t\u00e9 after'
SPELT = TEXT.encode()
assert len(SPELT[:16].decode('utf-8', 'ignore')) == 15


@dataclasses.dataclass(frozen=True)
class Speller:
  """Whose byte n is that of TEXT, however the row began, and then the end."""

  scale: float = 99.0
  max_length: int | None = None

  def init_cache(self, batch_size, length):
    del length
    return jnp.zeros(batch_size, jnp.int32)

  def apply(self, variables, ids_BT, documents_BT, cache):
    del ids_BT
    real_BT = (documents_BT > 0).astype(jnp.int32)
    seen_BT = cache[:, None] + jnp.cumsum(real_BT, axis=1)
    next_BT = variables['params'][seen_BT - 1]
    logits_BTV = self.scale * jax.nn.one_hot(next_BT, codec.VOCABULARY)
    return logits_BTV, cache + real_BT.sum(axis=1)


@pytest.fixture
def command(monkeypatch, capsys):
  """Runs main with the given flags; what it printed, and each print."""

  def run(model=Speller(), **flags):
    params = jnp.array([*codec.encode(SPELT), codec.EOS])
    config = types.SimpleNamespace(
      model=model,
      data=types.SimpleNamespace(codec=codec.Bytes()),
      sampler=chain.parse('greedy'),
    )
    other = types.SimpleNamespace(
      model=model,
      data=types.SimpleNamespace(codec=tokens.Bpe()),
      sampler=None,
    )

    def find(directory, limit=None):
      del limit
      chosen = other if directory == 'runs/bpe' else config
      return restore.Run(chosen, params, 7)

    monkeypatch.setattr(restore, 'restore', find)
    shown = []
    monkeypatch.setattr(sample, 'show', shown.append)
    with flagsaver.flagsaver(checkpoint='runs/none', **flags):
      sample.main([])
    return ''.join(shown), shown, capsys.readouterr().err

  return run


def test_text_is_streamed_without_splitting_characters(command):
  text, shown, speed = command(num_bytes=100)
  assert text == TEXT + '\n'
  assert shown[:3] == ['', SPELT[:15].decode(), SPELT[15:32].decode()]
  assert speed.startswith(f'{len(SPELT)} bytes, ')
  assert speed.endswith(' bytes/s once compiled\n')


def test_num_bytes_ends_the_text(command):
  text, _, speed = command(num_bytes=5)
  assert (text, speed) == ('fifte\n', '5 bytes\n')


def test_prompts_of_different_lengths_share_a_batch(command):
  text, _, _ = command(prompt=['FIF', '', '\u20ac'], num_bytes=6, num_samples=2)
  blocks = ['FIFteen b', 'fifteen'[:6], '\u20acteen b']
  assert text == ''.join(
    f'--- prompt {i + 1}, sample {j + 1}\n{block}\n'
    for i, block in enumerate(blocks)
    for j in range(2)
  )


def test_prompt_that_is_not_utf8_is_kept_as_bytes(command):
  text, _, _ = command(prompt=['\udcff'], num_bytes=3)
  assert text == '\ufffdift\n'


@pytest.mark.parametrize(
  'flags', [{'draft': 'runs/small'}, {'beams': 3}], ids=str
)
def test_other_ways_to_decode_spell_the_same_text(command, flags):
  text, _, speed = command(num_bytes=100, **flags)
  assert text == TEXT + '\n'
  assert speed.startswith(f'{len(SPELT)} bytes')
  if 'draft' in flags:
    assert '100% of the drafted tokens accepted' in speed


def test_beams_show_the_best_texts_of_every_prompt(command):
  flags = {'prompt': ['', 'FIF'], 'num_bytes': 4, 'num_samples': 2}
  first, second, third, fourth = samples(
    command(Speller(scale=3.0), beams=3, **flags)[0]
  )
  assert (first, third) == ('fift\n', 'FIFteen\n')
  assert len({first, second, third, fourth}) == 4


def test_trace_is_written_beside_its_page(command, tmp_path):
  path = tmp_path / 'new' / 'trace.json'
  _, _, said = command(
    prompt=['', 'FIF'], num_bytes=6, sampler='min_p(0.5)', trace=str(path)
  )
  found = json.loads(path.read_text())
  assert found['sampler'] == 'min_p(0.5)'
  spelt = [
    ''.join(step['text'] for step in sample['steps'])
    for sample in found['samples']
  ]
  assert spelt == ['fiftee', 'teen b']
  step = found['samples'][0]['steps'][0]
  assert (step['kept'], step['p']) == (1, 1.0)
  page = path.with_suffix('.html').read_text()
  assert 'prompt 2, sample 1, 6 tokens' in page
  assert f'trace: {path}' in said


def samples(text):
  return [block.split('\n', 1)[1] for block in text.split('--- prompt')[1:]]


def test_samples_differ_and_stay_when_more_are_asked_for(command):
  flat = Speller(scale=0.0)
  flags = {'prompt': ['', 'x'], 'num_bytes': 9, 'sampler': 'temperature(1)'}
  two = samples(command(flat, num_samples=2, **flags)[0])
  three = samples(command(flat, num_samples=3, **flags)[0])
  other = samples(command(flat, num_samples=2, seed=1, **flags)[0])
  assert len(set(three)) == 6
  assert two == [three[i] for i in (0, 1, 3, 4)]
  assert not set(two) & set(other)


def test_sampler_of_the_checkpoint_is_the_default(command):
  flat = Speller(scale=0.0)
  # Greedy takes the first of equal ids: the end, for padding is never drawn.
  assert command(flat, num_bytes=4)[0] == '\n'


@dataclasses.dataclass(frozen=True)
class Sure(Speller):
  """Leaves one id possible."""

  def apply(self, *arguments):
    logits_BTV, cache = super().apply(*arguments)
    return jnp.where(logits_BTV > 0, 0.0, -jnp.inf), cache


def test_beams_that_no_text_was_found_for_are_left_out(command, tmp_path):
  path = tmp_path / 'trace.json'
  text, _, said = command(
    Sure(), beams=3, num_samples=2, prompt=['', 'FIF'], num_bytes=4,
    trace=str(path),
  )  # fmt: skip
  assert text == (
    '--- prompt 1, sample 1\nfift\n--- prompt 2, sample 1\nFIFteen\n'
  )
  assert '2 of 4 texts are left out, for the search found no more' in said
  assert len(json.loads(path.read_text())['samples']) == 2


def test_a_search_that_finds_nothing_says_so():
  none_B = jnp.zeros(2, bool)
  seen = engines.Seen(None, None, None, none_B)
  assert sample.find_missing(seen) == []
  with pytest.raises(ValueError, match='found no text that its model'):
    sample.find_missing(seen._replace(missing_B=~none_B))


@dataclasses.dataclass(frozen=True)
class Padded(Speller):
  """Finds the ids that stand for nothing likeliest, and all others alike."""

  def apply(self, *arguments):
    logits_BTV, cache = super().apply(*arguments)
    is_silent_V = jnp.isin(jnp.arange(codec.VOCABULARY), jnp.array([0, 1, 3]))
    logits_BTV = jnp.where(is_silent_V[None, None], 9.0, 0.0 * logits_BTV)
    return logits_BTV, cache


@pytest.mark.parametrize('way', [{}, {'draft': 'runs/small'}])
def test_ids_of_no_byte_are_never_made(command, way):
  _, _, said = command(Padded(), num_bytes=9, sampler='deny(2)', **way)
  assert said.startswith('9 bytes')


def test_superposed_settings_reach_the_search(command, monkeypatch, tmp_path):
  found = {}

  def superposes(source, mixer, plan, store, rule, *, shown):
    del source, mixer, plan, shown
    found.update(rule=rule, store=store)
    raise ValueError('enough')

  monkeypatch.setattr(superposition, 'mixing', lambda model: (0, None))
  monkeypatch.setattr(engines, 'superposes', superposes)
  path = tmp_path / 'store.npz'
  store = ngram_tables.build([codec.encode(SPELT)])
  ngram_tables.save(path, store, corpora.vocabulary(codec.Bytes()))
  with pytest.raises(ValueError, match='enough'):
    command(
      superposed=4, ngrams=str(path), reset=0,
      superposed_rule='alpha=0.3, temperature=0.5,candidates=20,'
      'weights=0.1 0.1 0.2 0.2 0.3',
    )  # fmt: skip
  assert found['rule'] == superposed.Superposed(
    4, 0.3, 0.5, 20, (0.1, 0.1, 0.2, 0.2, 0.3), None
  )
  jax.tree.map(np.testing.assert_array_equal, found['store'], store)


def test_text_that_fills_the_window_passes(command):
  model = Speller(max_length=12)
  assert command(model, prompt=['FIF'], num_bytes=8)[0] == 'FIFteen byt\n'


@pytest.mark.parametrize(
  'flags, words',
  [
    (
      {'prompt': ['a', 'FIF'], 'num_bytes': 9},
      'sample.py: --prompt of 3 ids, .*--num_bytes=9 exceed .* window of 12;'
      ' pass --num_bytes=8 or less',
    ),
    ({'prompt': ['x' * 12], 'num_bytes': 1}, 'window of 12; shorten it'),
    ({'sampler': 'topp(0.9)'}, "sample.py: .* did you mean 'top_p'"),
    (
      {'sampler': 'deny(300)', 'num_bytes': 1},
      'Deny ids 300 is no id of a vocabulary of 260',
    ),
    ({'beams': 2, 'draft': 'x'}, '--draft and --beams exclude each other'),
    ({'beams': 1, 'num_samples': 2}, '--beams=1 must be at least --num_samp'),
    ({'beams': 2, 'sampler': 'greedy'}, '--beams draws nothing, so that --sam'),
    ({'contrastive': 2.0}, r'contrastive alpha=2.0 must lie in \[0, 1\]'),
    ({'superposed': 3}, '--superposed needs --ngrams, a file'),
    (
      {'superposed': 1, 'num_samples': 2, 'ngrams': 'a.npz'},
      '--superposed=1 must be at least --num_samples=2',
    ),
    (
      {'superposed': 2, 'ngrams': 'a.npz', 'num_bytes': 1},
      'Speller takes no embeddings in the place of ids',
    ),
    ({'draft_tokens': 2}, '--draft_tokens=2 says how --draft works, which is'),
    ({'length_power': 2.0}, '--length_power=2.0 says how --beams works'),
    ({'candidates': 4}, '--candidates=4 says how --contrastive works'),
    ({'nest_rule': 'span=2'}, '--nest_rule=span=2 says how --nest works'),
    ({'ngrams': 'a.npz'}, '--ngrams=a.npz says how --superposed works'),
    ({'reset': 3, 'beams': 2}, '--reset=3 says how --superposed works'),
    ({'superposed_rule': 'alpha=1'}, '--superposed_rule=.* says how --superp'),
    ({'beams': 2, 'length_power': float('nan')}, 'length_power=nan of beams'),
    ({'beams': 0}, '--beams=0 must be at least --num_samples=1'),
    (
      {'superposed': 2, 'ngrams': 'a.npz', 'superposed_rule': 'alfa=.5'},
      "sample.py: 'alfa=.5' is no setting of superposed; did you mean 'alpha'"
      '.* the names being alpha, temperature, candidates, weights',
    ),
    (
      {'superposed': 2, 'ngrams': 'a.npz', 'superposed_rule': 'weights=1 x'},
      "'weights=1 x' of superposed needs numbers with spaces between them, as",
    ),
    (
      {'superposed': 2, 'ngrams': 'a.npz', 'superposed_rule': 'candidates=x'},
      "'candidates=x' of superposed needs a whole number",
    ),
    (
      {'superposed': 2, 'ngrams': 'a.npz', 'superposed_rule': 'alpha=2'},
      'superposed alpha=2.0 must lie in',
    ),
    (
      {'superposed': 2, 'ngrams': 'a.npz', 'superposed_rule': 'drafts=2'},
      "'drafts=2' is no setting of superposed",
    ),
    ({'trace': 'a.html'}, '--trace=a.html must end in .json'),
    (
      {'draft': 'runs/small', 'num_bytes': 9},
      'start mark, 5 drafted and .* window of 12; pass --num_bytes=6',
    ),
    ({'draft': 'runs/bpe', 'num_bytes': 1}, 'runs/bpe has another vocabulary'),
  ],
)
def test_bad_flags_end_with_one_sentence(command, flags, words):
  with pytest.raises(SystemExit, match=words) as caught:
    command(Speller(max_length=12), **flags)
  assert '\n' not in caught.value.code


def test_missing_checkpoint_is_named(tmp_path):
  with (
    flagsaver.flagsaver(checkpoint=str(tmp_path / 'none')),
    pytest.raises(SystemExit, match=r'sample\.py: .*none'),
  ):
    sample.main([])
