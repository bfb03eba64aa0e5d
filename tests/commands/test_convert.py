"""Runs made of released checkpoints, and released checkpoints made of runs."""

import json

import jax
import numpy as np
import pytest
import transformers

from configs import restore
from models import forward
from models import patching
from tests.commands import running
from tests.released import small_blt
from training import checkpoint

transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  return small_blt.save(tmp_path_factory.mktemp('source') / 'blt')


@pytest.fixture(scope='module')
def imported(folder, source, tmp_path_factory):
  """A run directory made by the command."""
  workdir = tmp_path_factory.mktemp('imported') / 'run'
  module, own = running.load('convert')
  running.parse(
    own, f'--source={source}', f'--workdir={workdir}',
    f'--config={folder}/good.py',
  )  # fmt: skip
  module.main([])
  return workdir


def convert(run, folder, *arguments):
  return run('convert', f'--config={folder}/good.py', *arguments)


def test_imported_run_is_the_released_model(imported):
  config, params, step = restore.restore(imported)
  assert step == 0
  theirs = small_blt.make()
  ids = small_blt.text_ids(1, (1, 200))[:, :48]
  apply = jax.jit(forward.pure(config.model.entropy.lm))
  entropy = patching.entropy(
    apply(params['entropy']['lm'], ids, np.ones_like(ids))
  )
  np.testing.assert_allclose(
    entropy, small_blt.entropies(theirs, ids), atol=1e-5
  )
  apply = jax.jit(forward.pure(config.model))
  found = apply(params, ids, np.ones_like(ids))
  # Their patcher never asks whether the last byte ends a patch.
  np.testing.assert_allclose(
    found[:, :-1], small_blt.logits(theirs, ids)[:, :-1], atol=1e-4
  )


def test_eval_takes_it(run, imported, tmp_path):
  out = tmp_path / 'report.json'
  result = run('eval', f'--checkpoint={imported}', f'--out={out}')
  assert 'model at step 0 ' in result.out
  report = json.loads(out.read_text())
  # Random weights know nothing: about 8 bits, and more for being sure of it.
  assert 7 < report['eval/test/bits_per_byte'] < 20


def test_sample_takes_it(run, imported):
  result = run('sample', f'--checkpoint={imported}', '--num_bytes=8')
  assert result.code == 0, result.err


def test_exported_run_is_the_released_checkpoint(run, imported, tmp_path):
  out = tmp_path / 'deep' / 'out'
  result = run('convert', f'--checkpoint={imported}', f'--out={out}')
  assert result.code == 0, result.err
  assert str(out) in result.out
  assert sorted(p.name for p in out.iterdir()) == [
    'config.json',
    'model.safetensors',
  ]
  theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
  weights = small_blt.weights(small_blt.make())
  for name, array in small_blt.weights(theirs).items():
    np.testing.assert_array_equal(array, weights[name], err_msg=name)
  ids = small_blt.text_ids(3)
  np.testing.assert_array_equal(
    small_blt.logits(theirs, ids), small_blt.logits(small_blt.make(), ids)
  )
  half = tmp_path / 'half'
  arguments = (f'--checkpoint={imported}', f'--out={half}', '--dtype=bfloat16')
  assert run('convert', *arguments).code == 0
  size = [(p / 'model.safetensors').stat().st_size for p in (out, half)]
  assert size[1] < 0.6 * size[0]


def test_set_changes_the_run(run, folder, source, tmp_path):
  result = convert(
    run, folder, f'--source={source}', f'--workdir={tmp_path}/run',
    '--set=model.model.reserve=0.5',
    '--set=model.model.latent.scan_layers=true', '--set=seed=3',
  )  # fmt: skip
  assert result.code == 0, result.err
  loaded = checkpoint.load_params(tmp_path / 'run')
  assert loaded.config['fields']['seed'] == 3
  blocks = loaded.params['model']['latent_transformer']['blocks']
  assert blocks['attention']['query']['kernel'].shape == (2, 24, 24)
  stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert stored == loaded.config


@pytest.mark.parametrize(
  'arguments, words',
  [
    ([], ['got no flags; give --source and --workdir']),
    (['--source=a'], ['got --source; give']),
    (['--source=a', '--out=b'], ['got --out, --source; give']),
    (['--source={tmp}/none', '--workdir={tmp}/run'], ['none is no directory']),
    (['--source={tmp}', '--workdir={tmp}/run'], ['has no config.json']),
    (['--source={source}', '--workdir={source}'], ['--workdir=', 'holds some']),
    (
      ['--source={source}', '--workdir={source}/config.json'],
      ['config.json holds something already; name a new folder'],
    ),
    (
      ['--source={source}', '--workdir={tmp}/run', '--set=model.widht=3'],
      ['--set model.widht: model has no field'],
    ),
    (
      ['--source={source}', '--workdir={tmp}/run', '--set=model.model.slots=3'],
      ['model.local_encoder.patch_embedding_projection.weight [32, 16]'],
    ),
    (
      ['--source={source}', '--workdir=/proc/run'],
      ['/proc/run', 'or name another path'],
    ),
    (['--checkpoint={tmp}/none', '--out={tmp}/out'], ['none does not exist']),
    (
      ['--checkpoint={finished}', '--out={source}'],
      ['--out=', 'holds something already'],
    ),
    (
      ['--checkpoint={imported}', '--out={tmp}/out', '--step=7'],
      ['has no checkpoint 7; choose one of [0]'],
    ),
  ],
)
def test_refuses(
  run, folder, source, imported, finished, tmp_path, arguments, words
):
  before = running.files_below(source)
  arguments = [
    text.format(
      tmp=tmp_path, source=source, imported=imported, finished=finished
    )
    for text in arguments
  ]
  result = convert(run, folder, *arguments)
  running.assert_refused(result, 'convert', *words)
  assert not list(tmp_path.iterdir())
  assert running.files_below(source) == before


def break_type(path):
  small_blt.edit_config(path, lambda tree: tree.update(model_type='gpt2'))


def break_activation(path):
  small_blt.edit_config(
    path, lambda tree: tree['global_config'].update(hidden_act='gelu')
  )


def break_hash_rows(path):
  small_blt.edit_config(
    path, lambda tree: tree.update(encoder_hash_byte_group_vocab=98)
  )


def lengthen_header(path):
  with open(path / 'model.safetensors', 'r+b') as file:
    file.write((10**15).to_bytes(8, 'little'))


@pytest.mark.parametrize(
  'damage, words',
  [
    (break_type, ['model_type="gpt2" is none of blt, llama, mistral']),
    (break_activation, ['global_config.hidden_act="gelu" is not supported']),
    (break_hash_rows, ['encoder_hash_tok_embedding.weight [194, 16] instead']),
    (lambda p: running.truncate(p / 'model.safetensors'), ['incomplete']),
    (lambda p: (p / 'model.safetensors').unlink(), ['has neither']),
    (lengthen_header, ['claims a header of 1000000000000000 bytes']),
  ],
)
def test_damaged_checkpoint(run, folder, tmp_path, damage, words):
  path = small_blt.save(tmp_path / 'source')
  damage(path)
  before = running.files_below(tmp_path)
  result = convert(
    run, folder, f'--source={path}', f'--workdir={tmp_path}/run'
  )
  running.assert_refused(result, 'convert', *words)
  assert running.files_below(tmp_path) == before
  assert [p.name for p in tmp_path.iterdir()] == ['source']


def test_failing_save_leaves_nothing(
  run, folder, source, imported, tmp_path, monkeypatch
):
  """Also where most is written already, and in an empty folder of the user."""
  (tmp_path / 'run').mkdir()

  def fail(*_, **__):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(checkpoint.Checkpoints, 'wait', fail)
  result = convert(
    run, folder, f'--source={source}', f'--workdir={tmp_path}/run'
  )
  running.assert_refused(result, 'convert', 'No space left')
  module, _ = running.load('convert')
  monkeypatch.setattr(module.fields, 'write', fail)
  result = run('convert', f'--checkpoint={imported}', f'--out={tmp_path}/out')
  running.assert_refused(result, 'convert', 'No space left')
  assert [p.name for p in tmp_path.rglob('*')] == ['run']


def test_byte_language_model_as_llama_and_back(run, folder, finished, tmp_path):
  out = tmp_path / 'out'
  result = run('convert', f'--checkpoint={finished}', f'--out={out}')
  assert result.code == 0, result.err
  theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
  assert theirs.config.max_position_embeddings == 32
  config, params, _ = restore.restore(finished)
  ids = small_blt.text_ids(1)
  found = jax.jit(forward.pure(config.model))(params, ids, np.ones_like(ids))
  np.testing.assert_allclose(found, small_blt.logits(theirs, ids), atol=1e-4)
  workdir = tmp_path / 'run'
  result = convert(run, folder, f'--source={out}', f'--workdir={workdir}')
  assert result.code == 0, result.err
  again = restore.restore(workdir)
  assert again.config.model == config.model
  jax.tree.map(np.testing.assert_array_equal, again.params, params)
  # Rows become as short as the model's; what is asked for is not changed.
  short = {'max_position_embeddings': 12}
  small_blt.edit_config(out, lambda tree: tree.update(short))
  workdir = tmp_path / 'short'
  result = convert(
    run, folder, f'--source={out}', f'--workdir={workdir}',
    '--set=evals.0.window=12', '--set=evals.0.stride=6',
  )  # fmt: skip
  assert result.code == 0, result.err
  again = restore.restore(workdir).config
  assert (again.model.max_length, again.row_length) == (12, 12)
  result = convert(
    run, folder, f'--source={out}', f'--workdir={tmp_path}/long',
    '--set=row_length=13',
  )  # fmt: skip
  running.assert_refused(result, 'convert', 'row_length=13 exceeds model.max')
  small_blt.edit_config(out, lambda tree: tree.update(vocab_size=32_000))
  result = convert(run, folder, f'--source={out}', f'--workdir={tmp_path}/new')
  running.assert_refused(result, 'convert', 'no tokenizer.json', '32000 ids')


def test_run_of_another_model(run, finished, tmp_path, monkeypatch):
  module, _ = running.load('convert')
  monkeypatch.setattr(module, '_CLASSES', {})
  arguments = (f'--checkpoint={finished}', f'--out={tmp_path}/out')
  result = run('convert', *arguments)
  running.assert_refused(result, 'convert', 'holds a ByteLM, for which no')
  assert not list(tmp_path.iterdir())
