"""The command sample.py, over a stand-in model that spells a known text."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest
from absl.testing import flagsaver

import sample
from configs import restore
from data import codec
from samplers import chain

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
    monkeypatch.setattr(
      restore, 'restore', lambda directory: restore.Run(config, params, 7)
    )
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
  # Greedy takes the first of equal ids: padding, which is no text.
  assert command(flat, num_bytes=4)[0] == '\n'


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
