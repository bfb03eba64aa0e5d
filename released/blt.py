"""The Byte Latent Transformer of transformers and ours, weights and config.

Names and fields are those of BltForCausalLM; the checkpoints that Meta
released for arXiv 2412.09871 have this form. Its entropy model comes along.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from models import byte_latent
from models import lm
from models import masks
from models import ngrams
from models import patched
from models import patching
from models import stacks
from released import fields as fields_lib
from released import layouts

MODEL_TYPES = ('blt',)
IGNORED = ()
VOCABULARY = 260  # 4 marks and 256 bytes: data.codec

# What transformers takes fields for that a config.json leaves out.
_TOP = {
  'vocab_size': VOCABULARY,
  'cross_attn_k': 2,
  'patch_in_forward': True,
  'patch_size': 4,
  'patching_mode': 'entropy',
  'patching_threshold': patching.RELEASED_THRESHOLD,
  'local_attention_window_len': 512,
  'encoder_hash_byte_group_size': [3, 4, 5, 6, 7, 8],
  'encoder_hash_byte_group_vocab': 500_002,
  'encoder_hash_byte_group_nb_functions': 1,
}
_LOCAL = {
  'hidden_size': 1024,
  'num_attention_heads': 16,
  'rope_theta': 500_000.0,
}
_PARTS = {
  'patcher_config': {
    'hidden_size': 768,
    'num_attention_heads': 12,
    'num_hidden_layers': 14,
    'intermediate_size': 2048,
    'rope_theta': 10_000.0,
    'sliding_window': 512,
  },
  'encoder_config': _LOCAL
  | {'num_hidden_layers': 1, 'cross_attn_all_layers': False},
  'decoder_config': _LOCAL
  | {
    'num_hidden_layers': 9,
    'intermediate_size': 2816,
    'cross_attn_all_layers': True,
    'hidden_size_global': 2048,
  },
  'global_config': {
    'hidden_size': 2048,
    'num_attention_heads': 16,
    'num_hidden_layers': 25,
    'intermediate_size': 5632,
    'rope_theta': 500_000.0,
  },
}


def model(config: fields_lib.Fields) -> patched.Patched:
  """The model that a config.json describes.

  Its latent transformer has room for one patch per byte, so that no text
  overflows it. Raises ValueError naming the first field we cannot honour.
  """
  config = config.with_defaults(_TOP)
  _check(config)
  entropy, encoder, decoder, latent = (
    config.section(name, defaults) for name, defaults in _PARTS.items()
  )
  _check_parts(config, entropy, encoder, decoder, latent)
  local = (
    masks.Causal(config.optional_integer('local_attention_window_len')),
  )
  return patched.Patched(
    entropy=patched.LMEntropy(
      lm=lm.ByteLM(
        masks=(masks.Causal(entropy.optional_integer('sliding_window')),),
        **fields_lib.sizes(entropy),
      )
    ),
    model=byte_latent.ByteLatent(
      encoder=stacks.Stack(masks=local, **fields_lib.sizes(encoder)),
      latent=stacks.Stack(**fields_lib.sizes(latent)),
      decoder=stacks.Stack(masks=local, **fields_lib.sizes(decoder)),
      patching=patching.Patching(
        patching.Entropy(config.number('patching_threshold')),
        max_length=config.optional_integer('max_patch_length'),
      ),
      slots=config.integer('cross_attn_k'),
      reserve=1.0,
      ngrams=ngrams.NgramEmbedding(
        sizes=_ngram_sizes(config),
        rows=config.integer(
          'encoder_hash_byte_group_vocab', largest=2**24 - 1
        ),
      ),
    ),
  )


def leaves(model: patched.Patched) -> layouts.Leaves:
  """The place of every parameter that a released model has."""
  entropy, parts = model.entropy.lm, model.model
  theirs = 'model.patcher'
  found = layouts.embedding('entropy/lm/embed', f'{theirs}.embed_tokens')
  found |= _stack('entropy/lm', theirs, entropy)
  found |= layouts.scale('entropy/lm/final_norm', f'{theirs}.norm')
  found |= layouts.kernel('entropy/lm/head', f'{theirs}.lm_head')
  theirs = 'model.local_encoder'
  found |= layouts.embedding('model/embed', f'{theirs}.embed_tokens')
  found |= layouts.tables(
    [f'model/ngram_embed/table_{n}' for n in parts.ngrams.sizes],
    'model.encoder_hash_tok_embedding',
  )
  found |= _stack('model/local_encoder', theirs, parts.encoder)
  found |= layouts.kernel(
    'model/patch_query', f'{theirs}.patch_embedding_projection'
  )
  found |= _cross('model/encoder_cross', f'{theirs}.cross_attn_layers.0')
  theirs = 'model.global_transformer'
  if parts.slots * parts.encoder.width != parts.latent.width:
    found |= layouts.kernel(
      'model/latent_input', f'{theirs}.token_embedding_projection'
    )
  found |= _stack('model/latent_transformer', theirs, parts.latent)
  theirs = 'model.local_decoder'
  found |= layouts.kernel(
    'model/patch_slots', f'{theirs}.patch_embedding_projection'
  )
  for i in range(parts.decoder.layers):
    found |= _cross(
      f'model/decoder_cross_{i}', f'{theirs}.cross_attn_layers.{i}'
    )
  found |= _stack('model/local_decoder', theirs, parts.decoder)
  found |= layouts.scale('model/final_norm', f'{theirs}.norm')
  return found | layouts.kernel('model/head', 'lm_head')


def describe(model: patched.Patched, dtype: str) -> dict[str, Any]:
  """The config.json of a model whose weights are stored as `dtype`.

  Raises ValueError naming the first choice that transformers cannot make.
  """
  _check_model(model)
  parts = model.model
  encoder = fields_lib.describe(parts.encoder)
  decoder = fields_lib.describe(parts.decoder)
  for local, every_layer in ((encoder, False), (decoder, True)):
    local |= {
      'cross_attn_all_layers': every_layer,
      'cross_attn_k': parts.slots,
      'hidden_size_global': parts.latent.width,
      'vocab_size': VOCABULARY,
    }
  window = parts.encoder.masks[0].window
  entropy = fields_lib.describe(model.entropy.lm) | {
    'sliding_window': model.entropy.lm.masks[0].window,
    'vocab_size': VOCABULARY,
  }
  return {
    'architectures': ['BltForCausalLM'],
    'model_type': 'blt',
    'dtype': dtype,
    'vocab_size': VOCABULARY,
    'cross_attn_k': parts.slots,
    'patch_in_forward': True,
    'patch_size': 4,
    'patching_mode': 'entropy',
    'patching_threshold': parts.patching.rule.threshold,
    'max_patch_length': parts.patching.max_length,
    'local_attention_window_len': window,
    'encoder_hash_byte_group_size': list(parts.ngrams.sizes),
    'encoder_hash_byte_group_vocab': parts.ngrams.rows,
    'encoder_hash_byte_group_nb_functions': 1,
    'tie_word_embeddings': False,
    # Decoding with its cache gives other results than without.
    'use_cache': False,
    'patcher_config': entropy,
    'encoder_config': encoder | {'sliding_window': window},
    'decoder_config': decoder,
    'global_config': fields_lib.describe(parts.latent),
  }


def _stack(
  path: str, name: str, stack: lm.ByteLM | stacks.Stack
) -> layouts.Leaves:
  return layouts.blocks(f'{path}/', name, stack, interleaved=True)


def _cross(path: str, name: str) -> layouts.Leaves:
  """A cross-attention, which rotates nothing."""
  found = layouts.scale(f'{path}/query_norm', f'{name}.q_norm')
  found |= layouts.scale(f'{path}/key_norm', f'{name}.k_norm')
  for ours, theirs in layouts.ATTENTION.items():
    found |= layouts.kernel(f'{path}/{ours}', f'{name}.{theirs}')
  return found


def _ngram_sizes(config: fields_lib.Fields) -> tuple[int, ...]:
  name = 'encoder_hash_byte_group_size'
  sizes = config.get(name) or _TOP[name]
  is_list = isinstance(sizes, list) and len(set(map(str, sizes))) == len(sizes)
  if not is_list or not all(type(n) is int and 1 <= n <= 8 for n in sizes):
    config.refuse(name, 'must be different integers in 1..8')
  return tuple(sizes)


def _check(config: fields_lib.Fields) -> None:
  """Raises ValueError for fields of the whole that we cannot honour."""
  config.require('vocab_size', VOCABULARY)
  config.require('patch_in_forward', True)
  config.require('patching_mode', 'entropy')
  config.require('encoder_hash_byte_group_nb_functions', 1)
  config.require('tie_word_embeddings', None, False)
  for name in ('patch_size', 'patching_threshold'):
    if config.is_null(name):
      config.refuse(name, 'does not patch by an entropy threshold')


def _check_parts(
  config: fields_lib.Fields,
  entropy: fields_lib.Fields,
  encoder: fields_lib.Fields,
  decoder: fields_lib.Fields,
  latent: fields_lib.Fields,
) -> None:
  """Raises ValueError for fields of the parts that we cannot honour."""
  for part in (entropy, encoder, decoder, latent):
    fields_lib.check_block(part)
    fields_lib.check_epsilon(part)
  for part in (entropy, encoder, decoder):
    part.require('vocab_size', None, VOCABULARY)
  decoder.require('hidden_size', encoder.get('hidden_size'))
  decoder.require('hidden_size_global', latent.get('hidden_size'))
  for part, every_layer in ((encoder, False), (decoder, True)):
    part.require('cross_attn_k', None, config.integer('cross_attn_k'))
    part.require('num_key_value_heads', None, part.get('num_attention_heads'))
    if part.integer('num_hidden_layers') > 1:
      part.require('cross_attn_all_layers', every_layer)


def _check_model(model: nn.Module) -> None:
  """Raises ValueError for a model that BltForCausalLM cannot be."""
  is_known = isinstance(model, patched.Patched) and isinstance(
    model.entropy, patched.LMEntropy
  )
  if not is_known:
    raise ValueError(
      f'{type(model).__name__} is no byte latent transformer with an entropy'
      ' language model; export a models.patched.Patched over an LMEntropy.'
    )
  parts, entropy = model.model, model.entropy.lm
  choices: Mapping[str, tuple[Any, Any]] = {
    'model.vocabulary_size': (parts.vocabulary_size, VOCABULARY),
    'entropy.lm.vocabulary_size': (entropy.vocabulary_size, VOCABULARY),
    'model.encoder.masks': (len(parts.encoder.masks), 1),
    'model.decoder.masks': (parts.decoder.masks, parts.encoder.masks),
    'model.latent.masks': (parts.latent.masks, (masks.Causal(),)),
    'entropy.lm.masks': (len(entropy.masks), 1),
    'model.patching.rule': (type(parts.patching.rule), patching.Entropy),
    'model.ngrams': (bool(parts.ngrams.sizes), True),
  }
  fields_lib.check_choices(choices)
