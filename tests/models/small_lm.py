"""Sizes, random parameters and ids for tests of models.lm.ByteLM."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models import lm
from models import masks
from models import ngrams
from models import recall

SIZES = {
  'width': 32,
  'layers': 2,
  'heads': 4,
  'key_value_heads': 2,
  'hidden': 48,
}
# Patterns that differ by layer, and both kinds of input embeddings.
EXTRAS = {
  'masks': (masks.Causal(window=5), masks.Causal()),
  'ngrams': ngrams.NgramEmbedding(sizes=(2, 4), rows=97),
  'recall': recall.RecallEmbedding(sizes=(1, 3), reach=11),
}


@functools.cache
def draw(model: lm.ByteLM, seed: int = 0) -> Any:
  """Parameters with every array random, so that no layer is silent."""
  ids = np.zeros((1, 4), np.int32)
  params = jax.eval_shape(model.init, jax.random.key(seed), ids)
  leaves, tree = jax.tree.flatten(params['params'])
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(
    tree,
    [
      jnp.asarray(
        (rng.normal(0, 0.3, x.shape) + (x.ndim == 1)).astype(np.float32)
      )
      for x in leaves
    ],
  )


def ids(
  batch: int, length: int, low: int = 4, high: int = 12, seed: int = 0
) -> jax.Array:
  """Random ids of a few bytes, so that recall finds matches."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(low, high, (batch, length)).astype(np.int32))


@functools.partial(jax.jit, static_argnums=0)
def forward(
  model: lm.ByteLM,
  params: Any,
  ids_BT: jax.Array,
  documents_BT: jax.Array | None = None,
) -> jax.Array:
  """Logits of whole rows."""
  return model.apply({'params': params}, ids_BT, documents_BT)[0]


@functools.partial(jax.jit, static_argnums=0)
def step(
  model: lm.ByteLM,
  params: Any,
  ids_BT: jax.Array,
  documents_BT: jax.Array,
  cache: lm.Cache,
) -> tuple[jax.Array, lm.Cache]:
  """Logits of new tokens, and the cache that holds them."""
  return model.apply({'params': params}, ids_BT, documents_BT, cache)


def stack(params: Any, layers: int) -> Any:
  """Parameters of unrolled layers as those of scanned ones."""
  blocks = [params[f'block_{i}'] for i in range(layers)]
  rest = {k: v for k, v in params.items() if not k.startswith('block_')}
  return rest | {'blocks': jax.tree.map(lambda *x: jnp.stack(x), *blocks)}
