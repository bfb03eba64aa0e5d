"""transformers' Llama and Mistral as our decoder-only transformer.

Llama (arXiv 2302.13971) and Mistral (arXiv 2310.06825), which is a Llama with
a window, are lm.ByteLM over another vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from models import lm
from models import masks
from released import fields as fields_lib
from released import layouts

MODEL_TYPES = ('llama', 'mistral')
# Tensors of checkpoints of all ages that say nothing of a model's own.
IGNORED = ('lm_head.weight',)

# What transformers takes fields for that a config.json leaves out.
_BOTH = {
  'vocab_size': 32_000,
  'hidden_size': 4096,
  'max_position_embeddings': 2048,
  'num_hidden_layers': 32,
  'num_attention_heads': 32,
  'rms_norm_eps': 1e-6,
  'rope_theta': 10_000.0,
  'tie_word_embeddings': False,
  'bos_token_id': 1,
  'eos_token_id': 2,
}
_DEFAULTS = {
  'llama': _BOTH | {'intermediate_size': 11_008},
  'mistral': _BOTH
  | {
    'intermediate_size': 14_336,
    'num_key_value_heads': 8,
    'sliding_window': 4096,
    'max_position_embeddings': 2**17,
  },
}


def model(config: fields_lib.Fields) -> lm.ByteLM:
  """The model that a config.json describes.

  Raises ValueError naming the first field we cannot honour.
  """
  config.require('model_type', *MODEL_TYPES)
  kind = config.get('model_type')
  config = config.with_defaults(_DEFAULTS[kind])
  config.require('pretraining_tp', None, 1)
  config.require('tie_word_embeddings', False, True)
  fields_lib.check_block(config)
  window = None
  if kind == 'mistral':
    window = config.optional_integer('sliding_window')
  return lm.ByteLM(
    masks=(masks.Causal(window),),
    max_length=config.integer('max_position_embeddings'),
    vocabulary_size=config.integer('vocab_size'),
    tie_head=config.get('tie_word_embeddings'),
    norm_epsilon=config.number('rms_norm_eps'),
    **fields_lib.sizes(config),
  )


def marks(config: fields_lib.Fields) -> tuple[int | None, tuple[int, ...]]:
  """The ids that begin and that end a text; none where the config says so."""
  config = config.with_defaults(_BOTH)
  found = {}
  for name in ('bos_token_id', 'eos_token_id'):
    value = None if config.is_null(name) else config.get(name)
    value = value if isinstance(value, list) else [value]
    ids = [i for i in value if i is not None]
    if not all(type(i) is int and i >= 0 for i in ids):
      config.refuse(name, 'must be ids')
    found[name] = tuple(ids)
  begins = found['bos_token_id']
  return (begins[0] if begins else None), found['eos_token_id']


def leaves(model: lm.ByteLM) -> layouts.Leaves:
  """The place of every parameter that a released model has."""
  found = layouts.embedding('embed', 'model.embed_tokens')
  found |= layouts.blocks('', 'model', model, interleaved=False)
  found |= layouts.scale('final_norm', 'model.norm')
  if not model.tie_head:
    found |= layouts.kernel('head', 'lm_head')
  return found


def describe(model: nn.Module, dtype: str) -> dict[str, Any]:
  """The config.json of a model whose weights are stored as `dtype`.

  Raises ValueError naming the first choice that transformers cannot make.
  """
  choices: Mapping[str, tuple[Any, Any]] = {
    'masks': (len(model.masks), 1),
    'masks.0': (type(model.masks[0]).__name__, 'Causal'),
    'position': (type(model.position).__name__, 'Rotary'),
    'ngrams.sizes': (model.ngrams.sizes, ()),
    'recall.sizes': (model.recall.sizes, ()),
    'query_key_norm': (model.query_key_norm, False),
  }
  fields_lib.check_choices(choices)
  window = model.masks[0].window
  kind = 'llama' if window is None else 'mistral'
  return fields_lib.describe(model) | {
    'architectures': [f'{kind.title()}ForCausalLM'],
    'model_type': kind,
    'dtype': dtype,
    'rms_norm_eps': model.norm_epsilon,
    'vocab_size': model.vocabulary_size,
    'sliding_window': window,
    'max_position_embeddings': model.max_length or 2**17,
    'tie_word_embeddings': model.tie_head,
  }
