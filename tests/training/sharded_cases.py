"""Small models of every kind, with a batch and the rules that shard them."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import byte_latent
from models import event_judge
from models import event_lm
from models import forward
from models import image_mlp
from models import linear
from models import lm
from models import masks
from models import mixture
from models import ngrams
from models import patched
from models import patching
from models import positions
from models import recall
from models import stacks
from models import structured
from released import fields
from released import llama
from training import column_nats
from training import objectives
from training import sharding
from training import soft_labels
from training import step as step_lib

ROWS, LENGTH = 16, 16
# Where blocks of queries, of at least 32, meet their windows one by one.
LONG, WINDOW = 96, 24
COLUMNS = (5, 6, 4, 3)
# One of them with more ids than are multiplied.
WIDE_COLUMNS = (5, 70, 4, 3)
PIXELS = 64
BTT = structured.BlockTensorTrain
_DENSE = linear.Dense()
_NGRAMS = ngrams.NgramEmbedding(sizes=(3,), rows=64)
_RECALL = recall.RecallEmbedding(sizes=(2,), reach=8)


class Case(NamedTuple):
  """A model, what it minimises, and where its parameters go.

  still: beginnings of the paths of parameters that have no gradient.
  length: ids of a row, or its events.
  """

  model: nn.Module
  rules: sharding.Rules
  objective: object = objectives.NextToken(z_loss=1e-3)
  still: tuple[str, ...] = ()
  length: int = LENGTH


def _byte_lm(**fields):
  given = {'width': 16, 'layers': 2, 'heads': 4, 'key_value_heads': 2}
  return lm.ByteLM(**{**given, 'hidden': 24, **fields})


def _structured(layer, **fields):
  """Widths of eight by eight, so that factors divide over eight devices."""
  wide = {'width': 64, 'hidden': 64, 'key_value_heads': 4}
  return _byte_lm(linear=layer, **wide, **fields)


def _byte_latent():
  """The layout of the presets, with a projection at every seam."""
  local = stacks.Stack(
    16,
    1,
    2,
    32,
    masks=(masks.Causal(window=WINDOW),),
    residual_gain=1.0,
    remat=True,
  )
  latent = stacks.Stack(
    24, 2, 2, 32, residual_gain=1.0, scan_layers=True, remat=True
  )
  entropy = _byte_lm(layers=1)
  return patched.Patched(
    entropy=patched.LMEntropy(lm=entropy),
    model=byte_latent.ByteLatent(
      encoder=local,
      latent=latent,
      decoder=local,
      patching=patching.Patching(patching.Entropy(1.0), max_length=4),
      reserve=1.0,
      rows=2,
      slots=2,
      ngrams=ngrams.NgramEmbedding(sizes=(3, 4), rows=47, multiple=8),
    ),
  )


def _events(width=16, cell_width=8, layer=_DENSE):
  trunk = stacks.Stack(
    width=width,
    layers=2,
    heads=2,
    hidden=width,
    masks=(masks.Causal(window=4),),
    position=positions.Alibi(),
  )
  return event_lm.EventLM(
    trunk=trunk,
    columns=COLUMNS,
    numbers=(1, 2),
    stride=2,
    cell_width=cell_width,
    cell_hidden=cell_width,
    waves=2,
    reach=2,
    linear=layer,
  )


def _event_case(model, rules, length=8, **fields):
  objective = column_nats.ColumnNats(label_weight=3.0)
  return Case(model, rules, objective, length=length, **fields)


def _card_events():
  """The layout of configs/events_card.py."""
  masked = {
    'masks': (masks.Causal(window=WINDOW),),
    'position': positions.Alibi(),
  }
  return event_lm.EventLM(
    trunk=stacks.Stack(width=16, layers=1, heads=2, hidden=16, **masked),
    columns=WIDE_COLUMNS,
    numbers=(1, 2),
    cell_width=8,
    cell_hidden=8,
    waves=2,
    reach=2,
    copies=True,
    judge=event_judge.Judge(
      stack=stacks.Stack(width=8, layers=1, heads=2, hidden=16, **masked),
      hidden=16,
      alone=True,
    ),
  )


def _judged_events():
  """A judge of which all others learn, too."""
  stack = stacks.Stack(width=16, layers=1, heads=2, hidden=16)
  judge = event_judge.Judge(stack=stack, hidden=16)
  return _events().clone(copies=True, judge=judge)


def _image(width, layer):
  return image_mlp.ImageMLP(
    width=width,
    layers=2,
    pixels=PIXELS,
    linear=linear.Roles(layer, head=_DENSE),
  )


def _lambda(**fields):
  return masks.Lambda(n_global=4, n_local=WINDOW, **fields)


def _llama():
  """As convert.py makes it of a config.json."""
  return llama.model(
    fields.Fields(
      {
        'model_type': 'llama',
        'vocab_size': 264,
        'hidden_size': 16,
        'num_hidden_layers': 2,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'intermediate_size': 24,
        'max_position_embeddings': 64,
      }
    )
  )


CASES = {
  'unrolled': Case(
    _byte_lm(
      key_value_heads=1,
      masks=(masks.Causal(window=4), masks.Causal()),
      ngrams=_NGRAMS,
      recall=_RECALL,
      query_key_norm=True,
    ),
    sharding.TRANSFORMER,
  ),
  'scanned': Case(
    _byte_lm(
      ngrams=_NGRAMS,
      recall=_RECALL,
      tie_head=True,
      scan_layers=True,
      remat=True,
    ),
    sharding.TRANSFORMER,
  ),
  'windowed': Case(
    _byte_lm(
      masks=(masks.Causal(window=WINDOW),), scan_layers=True, remat=True
    ),
    sharding.TRANSFORMER,
    length=LONG,
  ),
  'lambda_rotary': Case(
    _byte_lm(masks=(_lambda(), _lambda(sinks='cache'))),
    sharding.TRANSFORMER,
    length=LONG,
  ),
  'lambda_alibi': Case(
    _byte_lm(
      masks=(_lambda(), _lambda(top_k=2)), position=positions.Alibi()
    ),
    sharding.TRANSFORMER,
    length=LONG,
  ),
  'byte_latent': Case(
    _byte_latent(), sharding.BYTE_LATENT, still=('entropy/',), length=LONG
  ),
  'events': _event_case(_events(), sharding.EVENTS),
  'judged_events': _event_case(_judged_events(), sharding.EVENTS),
  # The judge alone says what the last column is.
  'card_events': _event_case(
    _card_events(), sharding.EVENTS, still=('head_3/',), length=LONG
  ),
  'structured_events': _event_case(
    _events(64, 64, BTT()), (*sharding.CORES, *sharding.EVENTS)
  ),
  'image': Case(
    _image(16, _DENSE), sharding.TRANSFORMER, soft_labels.SoftLabels()
  ),
  'structured_image': Case(
    _image(64, BTT()), sharding.STRUCTURED, soft_labels.SoftLabels()
  ),
  'llama': Case(_llama(), sharding.TRANSFORMER),
  'block_train': Case(
    _structured(BTT(rank=2), scan_layers=True), sharding.BLOCK_TRAIN
  ),
  'monarch': Case(
    _structured(
      linear.Roles(
        linear.Dense(),
        attention=structured.TensorTrain(rank=2),
        feed_forward=structured.Monarch(blocks=8),
      )
    ),
    sharding.STRUCTURED,
  ),
  'low_rank': Case(
    _structured(
      linear.Roles(
        linear.Dense(),
        attention=structured.Kronecker(),
        feed_forward=structured.LowRank(rank=8, cap=True),
      )
    ),
    sharding.STRUCTURED,
  ),
  'expert_layers': Case(
    _byte_lm(layers=1, feed_forward=mixture.MixtureFeedForward(experts=4)),
    sharding.EXPERTS,
    objectives.NextToken(balance=0.01),
  ),
  'expert_projections': Case(
    _structured(
      linear.Roles(
        linear.Dense(), feed_forward=mixture.Mixture(expert=BTT(), experts=4)
      ),
      layers=1,
    ),
    sharding.EXPERTS,
    objectives.NextToken(balance=0.01),
  ),
}


def make_params(model, seed=0):
  """Random parameters, none at the zeros whose gradients would hide errors."""
  ids_BT = jnp.zeros((1, 8), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), ids_BT)['params']
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if 'scale' in sharding.name(path) or leaf.ndim == 0:
      return rng.normal(1.0, 0.2, leaf.shape).astype(np.float32)
    deviation = leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 0.2
    return rng.normal(0.0, deviation, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def make_batch(name):
  """Words that recur, several documents per row, padding, uneven masks."""
  rng = np.random.default_rng(1)
  case = CASES[name]
  if isinstance(case.model, event_lm.EventLM):
    return _event_batch(rng, case.model.columns, case.length)
  if isinstance(case.model, image_mlp.ImageMLP):
    return _image_batch(rng, case.model)
  length = case.length
  ids_BT = rng.integers(4, 8, (ROWS, length + 1)).astype(np.int32)
  starts_BT = rng.random((ROWS, length)) < 3.2 / length
  documents_BT = 1 + np.cumsum(starts_BT, axis=1, dtype=np.int32)
  documents_BT[::5, -3:] = 0
  mask_BT = rng.random((ROWS, length)) < np.linspace(0.1, 1, ROWS)[:, None]
  batch = {
    'ids': ids_BT[:, :-1],
    'targets': ids_BT[:, 1:],
    'documents': documents_BT,
    'mask': (mask_BT & (documents_BT > 0)).astype(np.float32),
  }
  if name == 'byte_latent':
    # Stored, so that rounding moves the end of no patch.
    entropy_BT = rng.uniform(0, 2, ids_BT[:, 1:].shape)
    batch['entropy'] = entropy_BT.astype(np.float16)
  return batch


def _image_batch(rng, model):
  """Sums of two images, a class of each."""
  targets, other = rng.integers(0, model.classes, (2, ROWS, 1), np.int32)
  return {
    'ids': rng.integers(4, 260, (ROWS, model.pixels), np.int32),
    'targets': targets,
    'other': other,
    'share': rng.random((ROWS, 1), np.float32),
    'documents': np.ones((ROWS, 1), np.int32),
    'mask': np.ones((ROWS, 1), np.float32),
  }


def _event_batch(rng, columns, events):
  """Whole events of random cells, labels in the last column."""
  count = len(columns)
  shape = (ROWS, events, count)
  first_C = np.cumsum((0, *columns[:-1]))
  ids = (rng.integers(0, columns, shape) + first_C).astype(np.int32)
  value = rng.normal(size=shape).astype(np.float32)
  value[rng.random(shape) < 0.3] = np.nan
  starts_BE = rng.random((ROWS, events)) < 2.4 / events
  documents = np.repeat(1 + np.cumsum(starts_BE, 1), count, axis=1)
  documents[::5, -count:] = 0
  label = np.broadcast_to(np.arange(count) == count - 1, shape)
  rank = np.argsort(rng.random(shape), axis=-1)
  batch = {
    'ids': ids,
    'targets': ids,
    'documents': documents.astype(np.int32),
    'mask': (documents > 0).astype(np.float32),
    'label': label.astype(np.float32),
    'value': value,
    'rank': rank.astype(np.int32),
  }
  return {key: x.reshape(ROWS, -1) for key, x in batch.items()}


def gradient(name, accumulate=1):
  """(params, batch) -> (loss, gradients), to be compiled."""
  case = CASES[name]

  def compute(params, batch):
    sums, grads = step_lib.gradients(
      case.objective, forward.counted(case.model), params, batch, accumulate
    )
    return sums.loss, grads

  return compute


@functools.cache
def params(name):
  """The parameters of a case."""
  return make_params(CASES[name].model)
