"""Attention under masks.Lambda by its definition, all pairs in float64."""

import itertools

import numpy as np

from models import positions

HEADS, WIDTH = 4, 8


def draw(seed, batch, length, groups):
  """Queries, keys and values."""
  rng = np.random.default_rng(seed)
  query = rng.normal(size=(batch, length, HEADS, WIDTH)) * 2
  key, value = rng.normal(size=(2, batch, length, groups, WIDTH))
  return tuple(x.astype(np.float32) for x in (query, key, value))


def draw_documents(rng, batch, length, runs):
  """Up to `runs` documents per row, with padding anywhere."""
  cuts = np.sort(rng.integers(0, length + 1, (batch, runs - 1)), axis=1)
  run = (np.arange(length)[None, :, None] >= cuts[:, None]).sum(-1)
  names = np.array([rng.permutation(runs + 1)[:runs] for _ in range(batch)])
  return np.take_along_axis(names, run, axis=1).astype(np.int32)


def slopes(heads):
  return 2.0 ** (-8 * np.arange(1, heads + 1) / heads)


def gaps(position, n_local, mask):
  """Distance to every key of one document, and which kind of pair it is."""
  query, key = position[:, None], position[None]
  real = query - key
  if mask.sinks == 'cache':
    far = np.minimum(query, mask.n_global + n_local - 1) - key
  else:
    far = np.full_like(real, n_local - 1 if mask.limit is None else mask.limit)
  recent = (real >= 0) & (real < n_local)
  sink = (real >= n_local) & (key < mask.n_global)
  between = (real >= n_local) & (key >= mask.n_global)
  middle = mask.top_k_distance
  middle = n_local // 2 if middle is None else middle
  distance = np.where(recent, real, np.where(sink, far, middle))
  return distance, recent | sink, between


def one_document(query, key, value, mask, position, cotangent):
  """Outputs [T, H, K] of a document on its own, and the gradients."""
  length, heads, width = query.shape
  shared = heads // key.shape[1]
  distance, seen, between = gaps(np.arange(length), mask.n_local, mask)
  key, value = (np.repeat(x, shared, 1) for x in (key, value))
  if isinstance(position, positions.Rotary):
    half = width // 2
    angle = position.theta ** (-np.arange(half) / half) * distance[..., None]
    wave, fall = np.exp(1j * angle), 0.0
  else:
    half, wave = width, np.ones((length, length, 1))
    fall = slopes(heads)[:, None, None] * distance
  q, k = (
    x[..., :half] + 1j * x[..., half:] if half < width else x
    for x in (query / np.sqrt(width), key)
  )
  logits = np.einsum('ihf,ijf,jhf->hij', q, wave, np.conj(k)).real - fall
  allowed = np.broadcast_to(seen, logits.shape)
  if mask.top_k:
    scores = np.where(between, logits, -np.inf)
    order = np.argsort(np.argsort(-scores, axis=-1), axis=-1)
    allowed = allowed | (between & (order < mask.top_k))
  weights = np.where(allowed, np.exp(logits), 0)
  weights /= weights.sum(-1, keepdims=True)
  out = np.einsum('hij,jhf->ihf', weights, value)
  pull = np.einsum('ihf,jhf->hij', cotangent, value)
  pull = weights * (pull - (weights * pull).sum(-1, keepdims=True))
  q_pull = np.einsum('hij,ijf,jhf->ihf', pull, np.conj(wave), k)
  k_pull = np.einsum('hij,ihf,ijf->jhf', pull, q, wave)
  v_pull = np.einsum('hij,ihf->jhf', weights, cotangent)
  if half < width:
    q_pull, k_pull = (
      np.concatenate([x.real, x.imag], -1) for x in (q_pull, k_pull)
    )

  def summed(x):
    return x.reshape(length, -1, shared, width).sum(2)

  return out, q_pull / np.sqrt(width), summed(k_pull), summed(v_pull)


def rows(arrays, documents, mask, position, cotangent=None):
  """Outputs and gradients of rows; a run of a document's id is a document."""
  arrays = tuple(np.asarray(x, np.float64) for x in arrays)
  if cotangent is None:
    cotangent = np.zeros(arrays[0].shape)
  found = tuple(np.zeros(x.shape) for x in (arrays[0], *arrays))
  for row, ids in enumerate(np.asarray(documents)):
    cuts = [0, *(np.flatnonzero(np.diff(ids)) + 1), len(ids)]
    for start, stop in itertools.pairwise(cuts):
      if ids[start]:
        part = (x[row, start:stop] for x in arrays)
        of_part = one_document(
          *part, mask, position, cotangent[row, start:stop]
        )
        for whole, x in zip(found, of_part, strict=True):
          whole[row, start:stop] = x
  return found
