"""Released Llama and Mistral models: transformers' directories and ours."""

import functools
import itertools
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
from models import positions
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
  'scaled by frequency': transformers.LlamaConfig(
    **SIZES
    | {
      'rms_norm_eps': 1e-3,
      'rope_parameters': {
        'rope_type': 'llama3',
        'rope_theta': 70.0,
        'factor': 8.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 24,
      },
    }
  ),
  'scaled': transformers.LlamaConfig(
    **SIZES
    | {
      'rope_parameters': {
        'rope_type': 'linear',
        'rope_theta': 70.0,
        'factor': 2.5,
      },
    }
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


def cached(model, params, ids, prompt=10):
  """Logits of a prompt, then of one id after the other."""
  step = jax.jit(forward.step(model))
  cache, pieces = model.init_cache(*ids.shape), []
  cuts = [0, *range(prompt, ids.shape[1] + 1)]
  for start, stop in itertools.pairwise(cuts):
    part = ids[:, start:stop]
    found, cache = step(params, part, np.ones_like(part), cache)
    pieces.append(found)
  return np.concatenate(pieces, axis=1)


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
  np.testing.assert_allclose(cached(model, params, ids), expected, atol=1e-4)
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
    ({'rope_scaling': {'rope_type': 'yarn'}}, '"yarn" is not supported'),
    ({'rope_scaling': {'type': 'dynamic', 'factor': 4.0}}, '"dynamic" is not'),
    ({'rope_scaling': {'type': 'linear'}}, 'rope_scaling.factor=null must be'),
    ({'rope_scaling': {'type': 'llama3', 'factor': 0}}, 'factor=0 must be'),
    ({'rms_norm_eps': 'x'}, 'rms_norm_eps="x" must be a finite number'),
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
    ({'masks': (masks.Lambda(),)}, 'model.masks.0 is Lambda'),
    ({'position': positions.Alibi()}, 'model.position is Alibi'),
  ],
)
def test_models_that_transformers_cannot_be(changes, words):
  model = lm.ByteLM(
    width=16, layers=1, heads=2, key_value_heads=1, hidden=16, **changes
  )
  with pytest.raises(ValueError, match=words):
    llama.describe(model, 'float32')
