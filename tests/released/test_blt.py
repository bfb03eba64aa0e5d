"""Released byte latent transformers: transformers' directories and ours."""

import functools
import json
import tracemalloc

import jax
import numpy as np
import pytest
import transformers

from models import forward
from models import masks
from models import patched
from models import patching
from models import recall
from released import blt
from released import fields
from released import layouts
from released import tensor_files
from tests.released import small_blt

transformers.utils.logging.disable_progress_bar()


@functools.cache
def make_plan(model):
  return layouts.plan(model, blt.leaves(model))


def load(path):
  """Our model and parameters of a directory."""
  model = blt.model(fields.read(path))
  return model, layouts.load(make_plan(model), tensor_files.scan(path))


def store(path, model, params, dtype='F32', **options):
  plan = make_plan(model)
  planned = layouts.planned(plan, dtype)
  path.mkdir()
  fields.write(path, blt.describe(model, 'float32'))
  rows = layouts.rows(plan, params, dtype)
  tensor_files.write(path, planned, rows, **options)
  return path


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  """A released checkpoint, and the same as our model and parameters."""
  path = small_blt.save(tmp_path_factory.mktemp('released') / 'blt')
  return path, *load(path)


# With 32, patches need no projection to the latent width.
@pytest.mark.parametrize('latent, layout', [(24, 'new'), (32, 'old')])
def test_logits_with_patches_of_its_own_entropy_model(tmp_path, latent, layout):
  path = small_blt.save(tmp_path / 'blt', latent, layout)
  model, params = load(path)
  assert ('latent_input' in params['model']) == (latent == 24)
  ids = small_blt.text_ids(1, (1, 200))[:, :48]
  theirs = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
  language_model = jax.jit(forward.pure(model.entropy.lm))
  entropy = np.asarray(
    patching.entropy(
      language_model(params['entropy']['lm'], ids, np.ones_like(ids))
    )
  )
  np.testing.assert_allclose(
    entropy, small_blt.entropies(theirs, ids), atol=1e-5
  )
  threshold = model.model.patching.rule.threshold
  assert 0.4 < np.mean(entropy > threshold) < 0.6
  assert np.abs(entropy - threshold).min() > 1e-4, 'take another seed'
  found = jax.jit(forward.pure(model))(params, ids, np.ones_like(ids))
  expected = small_blt.logits(theirs, ids)
  assert np.std(expected) > 0.3
  # Their patcher never asks whether the last byte ends a patch.
  np.testing.assert_allclose(found[:, :-1], expected[:, :-1], atol=1e-4)


def test_reading_and_writing_changes_no_bit(tmp_path, small):
  _, model, params = small
  copies = {
    'one': store(tmp_path / 'one', model, params),
    'many': store(tmp_path / 'many', model, params, max_bytes=9000),
  }
  assert len(list(copies['many'].glob('*.safetensors'))) > 5
  expected = small_blt.weights(small_blt.make())
  for copy in copies.values():
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
      copy, output_loading_info=True
    )
    assert not any(info.values()), info
    found = small_blt.weights(theirs)
    assert found.keys() == expected.keys()
    for name, array in found.items():
      np.testing.assert_array_equal(array, expected[name], err_msg=name)
    again, params_again = load(copy)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, params_again, params)
  ids = small_blt.text_ids(2)
  np.testing.assert_array_equal(
    small_blt.logits(theirs.eval(), ids),
    small_blt.logits(small_blt.make(), ids),
  )
  assert theirs.config.use_cache is False


def unlike(ours, theirs):
  """Fields in which two configs differ, besides those that say nothing."""
  ours, theirs = ours.to_dict(), theirs.to_dict()
  names = {name for name in theirs if ours.get(name) != theirs[name]}
  return names - {'dtype', 'architectures', 'bos_token_id', 'eos_token_id'}


def test_checkpoint_of_many_files(tmp_path, small):
  _, model, params = small
  path = small_blt.save(tmp_path / 'many', max_shard_size='8KB')
  assert len(list(path.glob('*.safetensors'))) > 5
  found = layouts.load(make_plan(model), tensor_files.scan(path))
  jax.tree.map(np.testing.assert_array_equal, found, params)


def test_description_says_all_that_the_original_says(small):
  ours = transformers.BltConfig(**blt.describe(small[1], 'float32'))
  assert not unlike(ours, small_blt.make().config)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_files(tmp_path, small, dtype):
  _, model, params = small
  short = {'bfloat16': 'BF16', 'float16': 'F16'}[dtype]
  numbers = tensor_files.DTYPES[short]
  half = store(tmp_path / 'half', model, params, short)
  _, found = load(half)

  def check(x, y):
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, y.astype(numbers).astype(np.float32))

  jax.tree.map(check, found, params)
  # What was rounded once stays as it is.
  again = store(tmp_path / 'again', model, found, short)
  name = tensor_files.SINGLE
  assert (half / name).read_bytes() == (again / name).read_bytes()


def test_stacked_parameters_of_scanned_layers(tmp_path, small):
  path, model, params = small
  scanned = model.copy(
    entropy=patched.LMEntropy(lm=model.entropy.lm.copy(scan_layers=True)),
    model=model.model.copy(latent=model.model.latent.copy(scan_layers=True)),
  )
  plan = make_plan(scanned)
  found = layouts.load(plan, tensor_files.scan(path))
  kernel = found['model']['latent_transformer']['blocks']['attention']['query']
  for i in range(2):
    block = params['model']['latent_transformer'][f'block_{i}']
    np.testing.assert_array_equal(
      kernel['kernel'][i], block['attention']['query']['kernel']
    )
  store(tmp_path / 'scanned', scanned, found)
  store(tmp_path / 'plain', model, params)
  stored = [tensor_files.scan(tmp_path / n) for n in ('scanned', 'plain')]
  assert stored[0].keys() == stored[1].keys()
  for name in stored[0]:
    np.testing.assert_array_equal(
      *(tensor_files.read(tensors[name]) for tensors in stored)
    )


def test_memory_stays_near_one_tensor_above_the_result(tmp_path, small):
  # One tensor of 3.8 MB, which becomes two tables, and many small ones.
  tree = json.loads((small[0] / 'config.json').read_text())
  tree['encoder_hash_byte_group_vocab'] = 30_011
  model = blt.model(fields.Fields(tree))
  plan = make_plan(model)
  planned = layouts.planned(plan, 'F32')
  table = 30_011 * 16 * 4
  tensor_files.write(
    tmp_path,
    planned,
    lambda name: [np.ones(planned[name].shape, np.float32)],
  )
  tensors = tensor_files.scan(tmp_path)
  tracemalloc.start()
  params = layouts.load(plan, tensors)
  result, peak = tracemalloc.get_traced_memory()
  assert 2 * table < result < 2.3 * table
  assert peak - result < table / 2
  tracemalloc.reset_peak()
  (tmp_path / 'out').mkdir()
  rows = layouts.rows(plan, params, 'F32')
  tensor_files.write(tmp_path / 'out', planned, rows)
  assert tracemalloc.get_traced_memory()[1] - result < table / 2
  tracemalloc.stop()


def without(*names):
  return lambda tensors: [tensors.pop(name) for name in names]


def reshaped(name, shape):
  return lambda tensors: tensors.update({
    name: tensors[name]._replace(shape=shape)
  })


@pytest.mark.parametrize(
  'change, words',
  [
    (
      without('lm_head.weight', 'model.patcher.norm.weight'),
      ['lacks the tensors model.patcher.norm.weight, lm_head.weight;'],
    ),
    (
      lambda tensors: [tensors.pop(n) for n in list(tensors) if 'layers' in n],
      ['lacks the tensors model.patcher.layers.0.', ' more; copy all'],
    ),
    (
      lambda tensors: tensors.update(extra=tensors['lm_head.weight']),
      ['unexpected tensors extra;'],
    ),
    (
      reshaped('lm_head.weight', (16, 260)),
      ['lm_head.weight [16, 260] instead of [260, 16];', 'denies'],
    ),
    (
      lambda tensors: tensors.update(
        {'lm_head.weight': tensors['lm_head.weight']._replace(dtype='F64')}
      ),
      ['must be F32, F16, BF16, but the checkpoint has lm_head.weight F64'],
    ),
  ],
)
def test_tensors_that_do_not_fit(small, change, words):
  path, model, _ = small
  plan = make_plan(model)
  tensors = tensor_files.scan(path)
  change(tensors)
  with pytest.raises(ValueError) as error:
    layouts.load(plan, tensors)
  assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
  'section, field, value, words',
  [
    (None, 'vocab_size', 300, 'only 260 is'),
    (None, 'patching_mode', 'space', 'only "entropy" is'),
    (None, 'patching_threshold', None, 'entropy threshold'),
    (None, 'patching_threshold', 'high', 'finite number'),
    (None, 'patching_threshold', float('nan'), 'finite number'),
    (None, 'patching_threshold', 10**400, 'finite number'),
    (None, 'patch_size', None, 'entropy threshold'),
    (None, 'patch_in_forward', False, 'only true is'),
    (None, 'max_patch_length', 0, 'an integer in 1..'),
    (None, 'tie_word_embeddings', True, 'only null or false is'),
    (None, 'encoder_hash_byte_group_nb_functions', 2, 'only 1 is'),
    (None, 'encoder_hash_byte_group_vocab', 2**24, 'in 1..16777215'),
    (None, 'encoder_hash_byte_group_size', [3, 3], 'different integers'),
    (None, 'encoder_hash_byte_group_size', [9], 'different integers'),
    (None, 'encoder_hash_byte_group_size', [[3]], 'different integers'),
    (None, 'cross_attn_k', '2', 'an integer in 1..'),
    (None, 'encoder_config', 3, 'must be an object'),
    ('patcher', 'vocab_size', 256, 'only null or 260 is'),
    ('patcher', 'hidden_act', 'gelu', 'only null or "silu" is'),
    ('patcher', 'sliding_window', 0, 'an integer in 1..'),
    ('encoder', 'num_key_value_heads', 1, 'only null or 2 is'),
    ('encoder', 'num_attention_heads', 16, 'heads of even width'),
    ('encoder', 'cross_attn_k', 3, 'only null or 2 is'),
    ('encoder', 'rms_norm_eps', 1e-6, 'only null or 1e-05 is'),
    ('encoder', 'norm_eps', 1e-6, 'only null or 1e-05 is'),
    ('decoder', 'cross_attn_all_layers', False, 'only true is'),
    ('decoder', 'hidden_size_global', 32, 'only 24 is'),
    ('decoder', 'dropout', 0.1, 'only null or 0'),
    ('decoder', 'head_dim', 4, 'only null or 8 is'),
    ('global', 'num_hidden_layers', 10**9, 'an integer in 1..1000'),
    ('global', 'hidden_size', True, 'an integer in 1..'),
    ('global', 'rope_scaling', {'type': 'dynamic'}, '.type="dynamic"'),
    ('global', 'rope_parameters', {'rope_type': 'yarn'}, '.rope_type="yarn"'),
    ('global', 'rope_parameters', {'rope_theta': -1}, 'must be positive'),
    ('global', 'rope_parameters', [1], 'must be an object'),
  ],
)
def test_config_that_we_cannot_honour(small, section, field, value, words):
  tree = json.loads((small[0] / 'config.json').read_text())
  (tree if section is None else tree[f'{section}_config'])[field] = value
  with pytest.raises(ValueError) as error:
    blt.model(fields.Fields(tree))
  where = field if section is None else f'{section}_config.{field}'
  assert str(error.value).startswith(f'config.json: {where}')
  assert words in str(error.value)


def test_widths_of_encoder_and_decoder_must_agree(small):
  tree = json.loads((small[0] / 'config.json').read_text())
  tree['decoder_config'] |= {'hidden_size': 32, 'head_dim': 16}
  with pytest.raises(ValueError, match=r'decoder_config\.hidden_size=32 is'):
    blt.model(fields.Fields(tree))


def test_fields_left_out_are_those_of_transformers():
  """An empty config.json means the released 1B model, here and there."""
  model = blt.model(fields.Fields({'model_type': 'blt'}))
  theirs = transformers.BltConfig()
  ours = transformers.BltConfig(**blt.describe(model, 'float32'))
  assert unlike(ours, theirs) == {'use_cache'}
  assert theirs.encoder_config.intermediate_size == 2730


def test_no_window_and_no_longest_patch(small):
  tree = json.loads((small[0] / 'config.json').read_text())
  tree['local_attention_window_len'] = tree['max_patch_length'] = None
  tree['patcher_config']['sliding_window'] = None
  model = blt.model(fields.Fields(tree))
  assert model.model.encoder.masks == model.model.decoder.masks
  assert model.model.encoder.masks == (masks.Causal(),)
  assert model.entropy.lm.masks == (masks.Causal(),)
  assert model.model.patching.max_length is None
  assert blt.model(fields.Fields(blt.describe(model, 'float32'))) == model


def change_parts(model, **changes):
  return model.copy(model=model.model.copy(**changes))


def change_entropy(model, **changes):
  return model.copy(
    entropy=patched.LMEntropy(lm=model.entropy.lm.copy(**changes))
  )


@pytest.mark.parametrize(
  'change, words',
  [
    (
      lambda m: change_parts(m, patching=patching.Patching(patching.Space())),
      'model.model.patching.rule is',
    ),
    (
      lambda m: change_parts(m, latent=m.model.latent.copy(
        masks=(masks.Causal(3),)
      )),
      'model.model.latent.masks is',
    ),
    (
      lambda m: change_parts(m, decoder=m.model.decoder.copy(
        masks=(masks.Causal(3),)
      )),
      'model.model.decoder.masks is',
    ),
    (
      lambda m: change_parts(m, ngrams=m.model.ngrams.copy(sizes=())),
      'model.model.ngrams is',
    ),
    (
      lambda m: change_entropy(m, masks=(masks.Causal(3), masks.Causal())),
      'model.entropy.lm.masks is',
    ),
    (
      lambda m: change_parts(m, recall=recall.RecallEmbedding(sizes=(3,))),
      'has no place for the parameters model/recall_embed/table_3;',
    ),
    (
      lambda m: change_entropy(m, query_key_norm=True),
      'entropy/lm/block_0/attention/key_norm/scale',
    ),
    (
      lambda m: change_entropy(m, tie_head=True),
      'lacks the parameters entropy/lm/head/kernel;',
    ),
    (lambda m: m.model, 'ByteLatent is no byte latent transformer with an'),
    (lambda m: m.entropy.lm, 'ByteLM is no byte latent transformer'),
  ],
)  # fmt: skip
def test_models_that_transformers_cannot_be(small, change, words):
  model = change(small[1])
  with pytest.raises(ValueError) as error:
    blt.describe(model, 'float32')
    make_plan(model)
  assert words in str(error.value)


def test_parameters_of_another_model(small):
  _, model, params = small
  other = change_entropy(model, layers=1)
  plan = make_plan(other)
  with pytest.raises(ValueError, match='parameters of its own config: entropy'):
    layouts.rows(plan, params, 'F32')


def test_numbers_beyond_half_precision(small):
  _, model, params = small
  large = jax.tree.map(lambda x: x * 1e6, params)
  rows = layouts.rows(make_plan(model), large, 'F16')
  with pytest.raises(ValueError, match='embed/embedding has numbers beyond'):
    list(rows('model.patcher.embed_tokens.weight'))
