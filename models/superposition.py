"""Several drafts of a text read as one: for Superposed Decoding.

A model reads the mean of the embeddings of the drafts' last ids, weighted by
their probabilities, into one cache for all of them (Shen et al. 2024, arXiv
2405.18400). Where patches end is decided for all drafts together: from the
entropy after the mean, and by the likeliest draft's id where a rule looks at
ids.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import byte_latent
from models import lm
from models import ngram_entropy
from models import ngrams
from models import patched
from models import patching


class _Drafts(NamedTuple):
  """The last ids of M drafts per row, those before them, and weights."""

  recent_BMC: jax.Array
  ids_BM: jax.Array
  weights_BM: jax.Array

  def best(self, x_BM: jax.Array) -> jax.Array:
    """Of the likeliest draft: [B, 1] or [B, 1, C]."""
    place_B = jnp.argmax(self.weights_BM, axis=1)
    return x_BM[jnp.arange(len(place_B)), place_B][:, None]

  def mean(self, x_BM: jax.Array) -> jax.Array:
    """Over the drafts: [B] or [B, D]."""
    return jnp.einsum(
      'BM,BM...->B...', self.weights_BM, x_BM, precision='highest'
    )

  def alone(self, context: int) -> tuple[jax.Array, jax.Array]:
    """Each draft as a row of one id [N, 1] after `context` others at most."""
    first = max(self.recent_BMC.shape[2] - context, 0)
    recent_BMC = self.recent_BMC[:, :, first:]
    ids_N1 = self.ids_BM.reshape(-1, 1)
    return ids_N1, recent_BMC.reshape(len(ids_N1), recent_BMC.shape[2])


@functools.lru_cache
def mixing(model: nn.Module) -> tuple[int, Callable[..., Any]]:
  """What reads a weighted mean of the input embeddings of a model.

  model: a ByteLM, ByteLatent or Patched, or one with their parts.

  Returns the ids before a token that its reading depends on, and (params,
  recent_BMC, ids_BM, weights_BM, cache) -> (logits_BV, cache); recent_BMC are
  these ids, or all that there are, oldest first and 0 for none; weights add up
  to 1.
  """
  context = _context(model)

  def mix(
    params: Any,
    recent_BMC: jax.Array,
    ids_BM: jax.Array,
    weights_BM: jax.Array,
    cache: Any,
  ) -> tuple[jax.Array, Any]:
    drafts = _Drafts(recent_BMC, ids_BM, weights_BM)
    return _read(model, params, drafts, cache)

  return context, mix


def _context(model: Any) -> int:
  """Earlier ids that the reading of one depends on."""
  match model:
    case patched.Patched():
      return max(_context(model.model), _context(model.entropy))
    case lm.ByteLM() | byte_latent.ByteLatent():
      return max(model.ngrams.context, model.recall.context)
    case patched.LMEntropy():
      return _context(model.lm)
    case ngram_entropy.NgramEntropy():
      return max(model.sizes) - 1
    case None:
      return 0
  raise ValueError(
    f'{type(model).__name__} takes no embeddings in the place of ids; use a'
    ' models.lm.ByteLM or a models.patched.Patched'
  )


def _read(
  model: Any, params: Any, drafts: _Drafts, cache: Any, **extra: Any
) -> tuple[jax.Array, Any]:
  """Logits [B, V] after the drafts' last ids, and the cache with their mean."""
  if isinstance(model, patched.Patched):
    entropy_B, state = _read_entropy(
      model.entropy, params.get('entropy'), drafts, cache.entropy
    )
    if entropy_B is not None:
      extra['entropy_BT'] = entropy_B[:, None]
    logits_BV, inner = _read(
      model.model, params['model'], drafts, cache.model, **extra
    )
    return logits_BV, cache._replace(entropy=state, model=inner)
  ids_B1 = drafts.best(drafts.ids_BM)
  logits_B1V, cache = model.apply(
    {'params': params},
    ids_B1,
    jnp.ones_like(ids_B1),
    cache,
    embeds_BTD=_embed(model, params, drafts, cache.length_B)[:, None],
    **extra,
  )
  return logits_B1V[:, 0], cache


def _read_entropy(
  model: Any, params: Any, drafts: _Drafts, cache: Any
) -> tuple[jax.Array | None, Any]:
  """Nats [B] of the next id after all drafts, and the extended cache."""
  if model is None:
    return None, None
  if isinstance(model, patched.LMEntropy):
    logits_BV, cache = _read(model.lm, params['lm'], drafts, cache)
    return patching.entropy(logits_BV), cache
  recent_BC, length_B = cache
  ids_N1, recent_NC = drafts.alone(recent_BC.shape[1])
  length_N = jnp.repeat(length_B, drafts.ids_BM.shape[1])
  entropy_N1, _ = model.apply(
    {'params': params}, ids_N1, None, (recent_NC, length_N)
  )
  ids_B1 = drafts.best(drafts.ids_BM)
  recent_BC = ngrams.latest(recent_BC, ids_B1, jnp.ones_like(length_B))
  entropy_B = drafts.mean(entropy_N1.reshape(drafts.ids_BM.shape))
  return entropy_B, (recent_BC, length_B + 1)


def _embed(
  model: Any, params: Any, drafts: _Drafts, length_B: jax.Array
) -> jax.Array:
  """[B, D]: mean of what the model adds up for each draft."""
  batch_size, count = drafts.ids_BM.shape
  embedding_VD = params['embed']['embedding']
  position_N1 = jnp.repeat(length_B, count)[:, None]
  embeds_BMD = embedding_VD[drafts.ids_BM]
  for name, lookup in (
    ('ngram_embed', model.ngrams),
    ('recall_embed', model.recall),
  ):
    if lookup.sizes:
      ids_N1, recent_NC = drafts.alone(lookup.context)
      added_N1D = lookup.copy(features=embedding_VD.shape[1]).apply(
        {'params': params[name]}, ids_N1, position_N1, recent_NC
      )
      embeds_BMD += added_N1D.reshape(batch_size, count, -1)
  return drafts.mean(embeds_BMD)
