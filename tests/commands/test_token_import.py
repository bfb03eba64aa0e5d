"""Released models over tokens: text in, text out, and the same file back.

The model is one of random weights in which some tokens have a successor that
is far likelier than any other: a cycle of words, and of bytes of a character.
"""

import json
import math

import jax
import numpy as np
import pytest
import torch
import transformers

from configs import restore
from models import forward
from tests.commands import running
from tests.released import small_blt
from tests.released import small_tokenizer

transformers.utils.logging.disable_progress_bar()

KINDS = {
  'characters': small_tokenizer.sentencepiece(),
  'bytes': small_tokenizer.byte_level(),
}
CONFIG = {
  'vocab_size': small_tokenizer.VOCABULARY,
  'hidden_size': 32,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'intermediate_size': 40,
  'rms_norm_eps': 1e-5,
}
# Of five ids; 32, after which text is shown, end within the sign.
CYCLE = 'the€ and'
PROMPT = 'then'


def cycle(kind):
  """Ids of which each brings forth the next: those of a text over again."""
  ids = tokens_of(kind)(CYCLE, add_special_tokens=False).input_ids
  assert len(set(ids)) == len(ids)
  return ids


def tokens_of(kind):
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=small_tokenizer.tokenizers.Tokenizer.from_str(KINDS[kind]),
    clean_up_tokenization_spaces=False,
  )


def make(kind):
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    **CONFIG, bos_token_id=None, eos_token_id=319
  )
  model = transformers.LlamaForCausalLM(config).eval()
  ids = cycle(kind)
  last = tokens_of(kind)(PROMPT).input_ids[-1]
  with torch.no_grad():
    for name, value in model.named_parameters():
      value.normal_(1.0 if 'norm' in name else 0.0, 0.08)
    embed, head = model.model.embed_tokens.weight, model.lm_head.weight
    embed.normal_(0.0, 1.0)
    for before, after in zip(
      [*ids, last], [*ids[1:], ids[0], ids[0]],
      strict=True,
    ):
      head[after] += 3 * embed[before] / embed[before].norm()
  return model


def save(kind, path):
  make(kind).save_pretrained(path)
  (path / 'tokenizer.json').write_text(KINDS[kind], 'utf-8')
  return path


@pytest.fixture(
  scope='module',
  params=['characters', pytest.param('bytes', marks=pytest.mark.slow)],
)
def kind(request):
  return request.param


@pytest.fixture(scope='module')
def source(kind, tmp_path_factory):
  return save(kind, tmp_path_factory.mktemp('source') / 'llama')


@pytest.fixture(scope='module')
def imported(folder, source, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('imported') / 'run'
  module, own = running.load('convert')
  running.parse(
    own, f'--source={source}', f'--workdir={workdir}',
    f'--config={folder}/good.py', '--set=evals.0.window=1024',
    '--set=evals.0.stride=1024', '--set=evals.0.batch_size=1',
  )  # fmt: skip
  module.main([])
  return workdir


@pytest.fixture(scope='module')
def theirs(source):
  return transformers.AutoModelForCausalLM.from_pretrained(source).eval()


def test_logits_of_text(kind, imported, theirs):
  config, params, _ = restore.restore(imported)
  text = 'the alpha été 日本\n'
  ids = np.array(tokens_of(kind)(text).input_ids)[None]
  assert config.data.codec.prompt(text.encode()).tolist() == ids[0].tolist()
  found = jax.jit(forward.pure(config.model))(params, ids, np.ones_like(ids))
  with torch.no_grad():
    expected = theirs(torch.tensor(ids)).logits.numpy()
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_text_goes_on_as_that_of_transformers(kind, imported, theirs, run):
  tokenizer = tokens_of(kind)
  ids = tokenizer(PROMPT, return_tensors='pt').input_ids
  with torch.no_grad():
    made = theirs.generate(
      ids, attention_mask=torch.ones_like(ids), do_sample=False,
      max_new_tokens=50, pad_token_id=0,
    )  # fmt: skip
  text = tokenizer.decode(made[0], skip_special_tokens=True)
  assert text.count('€') > 7
  flags = ['--sampler=greedy', '--num_bytes=90', f'--prompt={PROMPT}']
  result = run('sample', f'--checkpoint={imported}', *flags)
  assert result.code == 0, result.err
  size = len(PROMPT) + 90
  shown = text.encode()[:size].decode('utf-8', 'replace')
  assert result.out == shown + '\n'


def nats(model, ids):
  with torch.no_grad():
    log_p = model(torch.tensor(ids)[None]).logits[0].log_softmax(-1)
  return -sum(float(log_p[i, ids[i + 1]]) for i in range(len(ids) - 1))


def test_score_is_that_of_the_tokens_over_bytes(
  kind, imported, theirs, run, tmp_path
):
  out = tmp_path / 'report.json'
  result = run('eval', f'--checkpoint={imported}', f'--out={out}')
  assert result.code == 0, result.err
  report = json.loads(out.read_text())
  corpus = restore.restore(imported).config.data.open('test')
  tokenizer = tokens_of(kind)
  ids = [tokenizer(bytes(document).decode()).input_ids for document in corpus]
  bits = sum(nats(theirs, row) for row in ids) / math.log(2)
  tokens = sum(map(len, ids)) - len(ids)
  size = len(corpus.bytes)
  assert report['eval/test/bits_per_byte'] == pytest.approx(bits / size, 1e-5)
  assert report['eval/test/bits_per_token'] == pytest.approx(
    bits / tokens, 1e-5
  )
  assert report['eval/test/tokens'] == tokens < size
  assert f'{tokens} tokens, {bits / tokens:.3f} bits per token' in result.out


def test_file_comes_back_byte_for_byte(kind, source, imported, run, tmp_path):
  out = tmp_path / 'out'
  result = run('convert', f'--checkpoint={imported}', f'--out={out}')
  assert result.code == 0, result.err
  assert (out / 'tokenizer.json').read_bytes() == (
    source / 'tokenizer.json'
  ).read_bytes()
  config = json.loads((out / 'config.json').read_text())
  begin = {'characters': 1, 'bytes': 300}[kind]
  assert (config['bos_token_id'], config['eos_token_id']) == (begin, 319)
  again = transformers.AutoModelForCausalLM.from_pretrained(out)
  weights = make(kind).state_dict()
  for name, value in again.state_dict().items():
    assert torch.equal(value, weights[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(
  'flags',
  [
    ['--lambda=2,6', '--sampler=greedy'],
    ['--sampler=temperature(0.7)|top_p(0.9)|min_p(0.05)'],
    ['--beams=3'],
    ['--contrastive=0.2'],
    ['--superposed=2', '--ngrams={tmp}/ngrams.npz'],
    ['--draft={run}'],
    ['--trace={tmp}/trace.json'],
  ],
)
def test_every_way_to_decode(imported, run, tmp_path, flags):
  flags = [flag.format(tmp=tmp_path, run=imported) for flag in flags]
  result = run(
    'sample', f'--checkpoint={imported}', f'--prompt={PROMPT}',
    '--num_bytes=40', *flags,
  )  # fmt: skip
  assert result.code == 0, result.err
  assert result.out.startswith(PROMPT)
  assert result.out.removeprefix(PROMPT).lstrip().startswith('the€')


@pytest.mark.slow
def test_lambda_wide_enough_changes_nothing(imported, run, tmp_path):
  bits = []
  for flags in ([], ['--lambda=4,1024'], ['--lambda=1,2']):
    out = tmp_path / 'report.json'
    result = run('eval', f'--checkpoint={imported}', f'--out={out}', *flags)
    assert result.code == 0, result.err
    bits.append(json.loads(out.read_text())['eval/test/bits_per_byte'])
  assert bits[1] == pytest.approx(bits[0], rel=1e-5)
  assert abs(bits[2] - bits[0]) > 1e-3


def remove_tokenizer(path):
  (path / 'tokenizer.json').unlink()


def scale(path):
  scaling = {'rope_type': 'dynamic', 'factor': 2.0}
  small_blt.edit_config(path, lambda tree: tree.update(rope_scaling=scaling))


def break_marks(path):
  small_blt.edit_config(path, lambda tree: tree.update(eos_token_id='</s>'))


def break_tokenizer(path):
  running.truncate(path / 'tokenizer.json')


@pytest.mark.parametrize(
  ('damage', 'words'),
  [
    (remove_tokenizer, ['has no tokenizer.json, without which', '320 ids']),
    (scale, ['rope_scaling.rope_type="dynamic" is not supported']),
    (break_marks, ['eos_token_id="</s>" must be ids']),
    (break_tokenizer, ['tokenizer.json is none that the package']),
  ],
)
def test_what_cannot_be_imported(run, folder, tmp_path, damage, words):
  source = save('characters', tmp_path / 'source')
  damage(source)
  result = run(
    'convert', f'--config={folder}/good.py', f'--source={source}',
    f'--workdir={tmp_path}/run',
  )  # fmt: skip
  running.assert_refused(result, 'convert', *words)
  assert [path.name for path in tmp_path.iterdir()] == ['source']
