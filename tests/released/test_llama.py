"""Released Llama and Mistral models: transformers' directories and ours."""

import functools
import json

import jax
import numpy as np
import pytest
import torch
import transformers

from models import forward
from models import lm
from models import masks
from models import ngrams
from models import recall
from released import fields
from released import layouts
from released import llama
from released import tensor_files
from tests.released import small_blt

transformers.utils.logging.disable_progress_bar()

SIZES = {
  'vocab_size': 260,
  'hidden_size': 16,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'intermediate_size': 28,
  'rms_norm_eps': 1e-5,
  'rope_parameters': {'rope_type': 'default', 'rope_theta': 70.0},
}
CONFIGS = {
  'plain': transformers.LlamaConfig(**SIZES),
  'grouped, tied': transformers.LlamaConfig(
    **SIZES, num_key_value_heads=2, tie_word_embeddings=True
  ),
  'windowed': transformers.MistralConfig(
    **SIZES, num_key_value_heads=1, sliding_window=5
  ),
  'no window': transformers.MistralConfig(
    **SIZES, num_key_value_heads=4, sliding_window=None
  ),
}


@functools.cache
def make(name):
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
  with torch.no_grad():
    for key, value in model.named_parameters():
      value.normal_(1.0 if 'norm' in key else 0.0, 0.3)
  return model


def logits(model, ids):
  with torch.no_grad():
    return model(torch.tensor(ids, dtype=torch.long)).logits.numpy()


@functools.cache
def make_plan(model):
  return layouts.plan(model, llama.leaves(model))


def load(path):
  model = llama.model(fields.read(path))
  tensors = tensor_files.scan(path)
  plan = make_plan(model)
  return model, layouts.load(plan, tensors, ignored=llama.IGNORED)


def store(path, model, params):
  plan = make_plan(model)
  path.mkdir()
  fields.write(path, llama.describe(model, 'float32'))
  planned = layouts.planned(plan, 'F32')
  tensor_files.write(path, planned, layouts.rows(plan, params, 'F32'))
  return path


@pytest.mark.parametrize('name', CONFIGS)
def test_logits_there_and_back(tmp_path, name):
  theirs = make(name)
  theirs.save_pretrained(tmp_path / 'a')
  model, params = load(tmp_path / 'a')
  ids = np.random.default_rng(0).integers(4, 260, (3, 24)).astype(np.int32)
  expected = logits(theirs, ids)
  assert np.std(expected) > 0.3
  found = jax.jit(forward.pure(model))(params, ids, np.ones_like(ids))
  np.testing.assert_allclose(found, expected, atol=1e-4)
  copy, info = transformers.AutoModelForCausalLM.from_pretrained(
    store(tmp_path / 'b', model, params), output_loading_info=True
  )
  assert not any(info.values()), info
  # Without a window, a Mistral is a Llama.
  if name != 'no window':
    assert type(copy) is type(theirs)
  np.testing.assert_array_equal(logits(copy.eval(), ids), expected)
  assert load(tmp_path / 'b')[0] == model


def test_old_config_and_constants_of_old_checkpoints(tmp_path):
  make('grouped, tied').save_pretrained(tmp_path)
  model, params = load(tmp_path)

  def make_old(tree):
    tree['rope_theta'] = tree.pop('rope_parameters')['rope_theta']
    tree['rope_scaling'] = None

  small_blt.edit_config(tmp_path, make_old)
  tensors = tensor_files.scan(tmp_path)
  constant = 'model.layers.0.self_attn.rotary_emb.inv_freq'
  for name in (constant, 'lm_head.weight'):
    tensors[name] = tensors['model.embed_tokens.weight']
  assert llama.model(fields.read(tmp_path)) == model
  found = layouts.load(make_plan(model), tensors, ignored=llama.IGNORED)
  jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'model_type': 'qwen3'}, 'model_type="qwen3" is not supported, only'),
    ({'rope_scaling': {'rope_type': 'llama3'}}, '"llama3" is not supported'),
    ({'rope_scaling': {'type': 'linear', 'factor': 4.0}}, '"linear" is not'),
    ({'rms_norm_eps': None}, 'rms_norm_eps=1e-06 is not supported'),
    ({'head_dim': 8}, 'head_dim=8 is not supported, only null or 4'),
    ({'attention_bias': True}, 'attention_bias=true is not supported'),
    ({'mlp_bias': True}, 'mlp_bias=true is not supported'),
    ({'hidden_act': 'gelu'}, 'hidden_act="gelu" is not supported'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5 is not'),
  ],
)
def test_config_that_we_cannot_honour(changes, words):
  tree = json.loads(CONFIGS['plain'].to_json_string(use_diff=False))
  with pytest.raises(ValueError) as error:
    llama.model(fields.Fields(tree | changes))
  assert words in str(error.value)


def test_fields_left_out_are_those_of_transformers():
  for kind, config in (
    ('llama', transformers.LlamaConfig()),
    ('mistral', transformers.MistralConfig()),
  ):
    tree = {'model_type': kind, 'rms_norm_eps': 1e-5}
    found = llama.describe(llama.model(fields.Fields(tree)), 'float32')
    expected = config.to_dict()
    assert found['rope_parameters'] == expected['rope_parameters']
    for name, value in found.items():
      if name.startswith(('hidden', 'num', 'inter', 'vocab', 'slid', 'tie')):
        assert value == expected.get(name), (kind, name)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'masks': (masks.Causal(), masks.Causal(4))}, 'model.masks is 2'),
    ({'ngrams': ngrams.NgramEmbedding(sizes=(3,))}, 'model.ngrams.sizes is'),
    ({'recall': recall.RecallEmbedding(sizes=(3,))}, 'model.recall.sizes is'),
    ({'query_key_norm': True}, 'model.query_key_norm is True'),
  ],
)
def test_models_that_transformers_cannot_be(changes, words):
  model = lm.ByteLM(
    width=16, layers=1, heads=2, key_value_heads=1, hidden=16, **changes
  )
  with pytest.raises(ValueError, match=words):
    llama.describe(model, 'float32')
