"""Random little models of transformers' BLT, as directories.

Their thresholds suit the first 48 ids of `text_ids(1, (1, 200))`.
"""

import functools
import json
import pathlib

import numpy as np
import torch
import transformers


def part(width, layers, hidden, theta, **more):
  return {
    'hidden_size': width,
    'num_hidden_layers': layers,
    'num_attention_heads': 2,
    'intermediate_size': hidden,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': theta},
    **more,
  }


def make_config(latent=24, **changes):
  """Sizes, windows and angles that differ wherever they may."""
  local = {'cross_attn_k': 2, 'hidden_size_global': latent}
  fields = {
    'use_cache': False,
    'cross_attn_k': 2,
    'local_attention_window_len': 9,
    'encoder_hash_byte_group_size': [4, 3],
    'encoder_hash_byte_group_vocab': 97,
    'max_patch_length': 6,
    'patcher_config': part(12, 2, 20, 50.0, sliding_window=7),
    'encoder_config': part(16, 1, 32, 300.0, **local),
    'decoder_config': part(16, 2, 28, 900.0, **local),
    'global_config': part(latent, 2, 40, 70.0, num_key_value_heads=1),
  }
  return transformers.BltConfig(**fields | changes)


@functools.cache
def make(latent=24):
  """A model none of whose weights is special."""
  torch.manual_seed(latent)
  model = transformers.BltForCausalLM(make_config(latent)).eval()
  with torch.no_grad():
    for name, value in model.named_parameters():
      # Norms of ones and zeroed padding rows would hide mistakes.
      value.normal_(1.0 if 'norm' in name else 0.0, 0.3)
  # Half of the entropies are above it, and none is near.
  ordered = np.sort(entropies(model, text_ids(1, (1, 200)))[0, :48])
  gap = 20 + int(np.argmax(np.diff(ordered[20:28])))
  model.config.patching_threshold = float(ordered[gap : gap + 2].mean())
  return model


def save(directory, latent=24, layout='new', **options):
  """Writes a random checkpoint; layout 'old' has the fields of old ones."""
  path = pathlib.Path(directory)
  make(latent).save_pretrained(path, **options)
  if layout == 'old':
    edit_config(path, lambda tree: make_old(tree))
  return path


def make_old(tree):
  tree.pop('rope_parameters', None)
  for name in ('patcher', 'encoder', 'decoder', 'global'):
    section = tree[f'{name}_config']
    section['rope_theta'] = section.pop('rope_parameters')['rope_theta']
    section['rope_scaling'] = None
    section['norm_eps'] = section.pop('rms_norm_eps')


def edit_config(path, change):
  file = path / 'config.json'
  tree = json.loads(file.read_text())
  change(tree)
  file.write_text(json.dumps(tree))


def text_ids(seed, shape=(3, 32)):
  """Ids of a text with separators, so that patches vary in length."""
  letters = np.frombuffer(b'abcde fg,\n\xc3\xa9', np.uint8).astype(np.int32) + 4
  return np.random.default_rng(seed).choice(letters, shape)


def logits(model, ids, **more):
  with torch.no_grad():
    ids = torch.tensor(ids, dtype=torch.long)
    return model(input_ids=ids, use_cache=False, **more).logits.numpy()


def entropies(model, ids):
  """Of the model's own patcher, in nats."""
  with torch.no_grad():
    return model.model.patcher(
      torch.tensor(ids, dtype=torch.long),
      patch_size=4,
      threshold=model.config.patching_threshold,
      max_patch_length=model.config.max_patch_length,
    )[0].numpy()


def weights(model):
  return {name: x.numpy() for name, x in model.state_dict().items()}
