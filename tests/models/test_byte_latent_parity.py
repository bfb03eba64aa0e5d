"""The byte latent transformer against the one of transformers."""

import functools

import jax
import numpy as np
import torch
import transformers

from models import byte_latent
from models import lm
from models import masks
from models import ngrams
from models import patching
from models import stacks

WINDOW = masks.Causal(window=8)
ENCODER = stacks.Stack(
  width=16, layers=1, heads=2, hidden=32, masks=(WINDOW,), residual_gain=1.0
)
LATENT = stacks.Stack(width=24, layers=2, heads=2, hidden=40, residual_gain=1.0)
MODEL = byte_latent.ByteLatent(
  encoder=ENCODER,
  latent=LATENT,
  decoder=ENCODER.copy(layers=2),
  patching=patching.Patching(patching.Space(), max_length=6),
  reserve=1.0,
  ngrams=ngrams.NgramEmbedding(sizes=(3, 4), rows=97),
)
BATCH, LENGTH = 4, 32


def text_ids(seed, shape=(BATCH, LENGTH)):
  """Ids of a text with separators, so that patches vary in length."""
  letters = np.frombuffer(b'abcde fg,\n\xc3\xa9', np.uint8).astype(np.int32) + 4
  return np.random.default_rng(seed).choice(letters, shape)


def blt_config(window=8):
  def part(width, layers, hidden, theta=500_000.0, **more):
    return {
      'hidden_size': width,
      'num_hidden_layers': layers,
      'num_attention_heads': 2,
      'intermediate_size': hidden,
      'rope_parameters': {'rope_type': 'default', 'rope_theta': theta},
      **more,
    }

  local = {'cross_attn_k': 2, 'hidden_size_global': 24}
  return transformers.BltConfig(
    use_cache=False,
    cross_attn_k=2,
    local_attention_window_len=window,
    encoder_hash_byte_group_size=[3, 4],
    encoder_hash_byte_group_vocab=97,
    max_patch_length=6,
    patching_threshold=5.3,
    patcher_config=part(16, 2, 32, 10_000.0, sliding_window=window),
    encoder_config=part(16, 1, 32, cross_attn_all_layers=False, **local),
    decoder_config=part(16, 2, 32, cross_attn_all_layers=True, **local),
    global_config=part(24, 2, 40),
  )


def imported(weights, layers):
  """Our parameters from a state_dict; layers: names of (ours, theirs)."""

  def turned(kernel):
    # They rotate pairs (2i, 2i + 1) of a head, we (i, i + K/2).
    by_head = kernel.reshape(kernel.shape[0], 2, -1)
    order = [*range(0, by_head.shape[2], 2), *range(1, by_head.shape[2], 2)]
    return by_head[:, :, order].reshape(kernel.shape)

  def kernel(name, turn=False):
    value = weights[f'{name}.weight'].T
    return {'kernel': turned(value) if turn else value}

  def scale(name):
    return {'scale': weights[f'{name}.weight']}

  def projections(name, turn):
    return {
      'query': kernel(f'{name}.q_proj', turn),
      'key': kernel(f'{name}.k_proj', turn),
      'value': kernel(f'{name}.v_proj'),
      'output': kernel(f'{name}.o_proj'),
    }

  def block(name):
    return {
      'attention': projections(f'{name}.self_attn', turn=True),
      'attention_norm': scale(f'{name}.input_layernorm'),
      'feed_forward': {
        ours: kernel(f'{name}.mlp.{ours}_proj')
        for ours in ('gate', 'up', 'down')
      },
      'feed_forward_norm': scale(f'{name}.post_attention_layernorm'),
    }

  def cross(name):
    return {
      **projections(name, turn=False),
      'query_norm': scale(f'{name}.q_norm'),
      'key_norm': scale(f'{name}.k_norm'),
    }

  kinds = {'block': block, 'cross': cross, 'kernel': kernel, 'scale': scale}
  tree = {}
  for path, kind, name in layers:
    *parents, last = path.split('/')
    node = functools.reduce(lambda n, k: n.setdefault(k, {}), parents, tree)
    node[last] = kinds[kind](name)
  return tree


def imported_model(weights):
  encoder, decoder = 'model.local_encoder', 'model.local_decoder'
  latent = 'model.global_transformer'
  layers = [
    ('local_encoder/block_0', 'block', f'{encoder}.layers.0'),
    ('encoder_cross', 'cross', f'{encoder}.cross_attn_layers.0'),
    ('patch_query', 'kernel', f'{encoder}.patch_embedding_projection'),
    ('latent_input', 'kernel', f'{latent}.token_embedding_projection'),
    ('patch_slots', 'kernel', f'{decoder}.patch_embedding_projection'),
    ('final_norm', 'scale', f'{decoder}.norm'),
    ('head', 'kernel', 'lm_head'),
  ]
  for i in range(2):
    layers += [
      (f'latent_transformer/block_{i}', 'block', f'{latent}.layers.{i}'),
      (f'local_decoder/block_{i}', 'block', f'{decoder}.layers.{i}'),
      (f'decoder_cross_{i}', 'cross', f'{decoder}.cross_attn_layers.{i}'),
    ]
  tables = weights['model.encoder_hash_tok_embedding.weight']
  return imported(weights, layers) | {
    'embed': {'embedding': weights[f'{encoder}.embed_tokens.weight']},
    'ngram_embed': {'table_3': tables[:97], 'table_4': tables[97:]},
  }


def imported_entropy_model(weights):
  layers = [
    ('final_norm', 'scale', 'model.patcher.norm'),
    ('head', 'kernel', 'model.patcher.lm_head'),
    ('block_0', 'block', 'model.patcher.layers.0'),
    ('block_1', 'block', 'model.patcher.layers.1'),
  ]
  return imported(weights, layers) | {
    'embed': {'embedding': weights['model.patcher.embed_tokens.weight']}
  }


@functools.cache
def reference():
  """A random transformers BLT and its weights."""
  torch.manual_seed(0)
  model = transformers.BltForCausalLM(blt_config()).eval()
  with torch.no_grad():
    for name, value in model.named_parameters():
      # Norms of ones and zeroed padding rows would hide mistakes.
      value.normal_(1.0 if 'norm' in name else 0.0, 0.3)
  return model, {k: v.numpy() for k, v in model.state_dict().items()}


def padded_lengths(starts):
  """Patch lengths of rows of starts, zeros at the right."""
  rows = [np.diff([*np.flatnonzero(row), len(row)]) for row in starts]
  longest = max(map(len, rows))
  return np.stack([np.pad(row, (0, longest - len(row))) for row in rows])


def test_logits_are_those_of_transformers():
  model, weights = reference()
  ids = text_ids(1)
  starts = jax.jit(MODEL.patching.starts)(ids, np.ones_like(ids))
  with torch.no_grad():
    expected = model(
      input_ids=torch.tensor(ids, dtype=torch.long),
      patch_lengths=torch.tensor(padded_lengths(starts)),
      use_cache=False,
    ).logits.numpy()
  params = imported_model(weights)
  own = jax.eval_shape(MODEL.init, jax.random.key(0), ids)['params']
  shapes = [jax.tree.map(np.shape, tree) for tree in (params, own)]
  assert shapes[0] == shapes[1]
  logits, _ = jax.jit(MODEL.apply)({'params': params}, ids)
  assert np.std(expected) > 0.3
  np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_entropies_and_their_patches_are_those_of_transformers():
  model, weights = reference()
  entropy_model = lm.ByteLM(
    width=16, layers=2, heads=2, key_value_heads=2, hidden=32, masks=(WINDOW,)
  )
  ids = text_ids(2)
  params = imported_entropy_model(weights)
  logits, _ = jax.jit(entropy_model.apply)({'params': params}, ids)
  ours = np.asarray(patching.entropy(logits))
  ordered = np.sort(ours[:, 1:].ravel())
  gap = np.argmax(np.diff(ordered[40:80])) + 40
  threshold = float(ordered[gap : gap + 2].mean())
  with torch.no_grad():
    theirs, lengths, _ = model.model.patcher(
      torch.tensor(ids, dtype=torch.long),
      patch_size=4,
      threshold=threshold,
      max_patch_length=6,
    )
  np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
  rule = patching.Patching(patching.Entropy(threshold), max_length=6)
  starts = jax.jit(rule.starts)(ids, np.ones_like(ids), ours)
  # Theirs drop the patch of the byte to come in the row with most patches.
  width = lengths.shape[1]
  found = padded_lengths(starts)
  np.testing.assert_array_equal(found[:, :width], lengths.numpy())
  assert found[:, width:].sum() <= 1
