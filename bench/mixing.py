"""What mixing a model's law with the keys of a corpus is worth, near and far.

Of documents that training never saw, those of packages with several files are
cut in two halves: one becomes the key store, the other is near it. All others
are far from it.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench import quality
from configs import neighbours
from configs import restore
from models import key_states
from samplers import nearest
from samplers import passages
from samplers import retrieval

_LEAST = 4  # files of a package that is cut in two
# near_temperature, tau and alphas: those of the paper, and what suits bytes.
_GRID = (
  (1.0, 0.1, (0.3, 0.2, 0.1, 0.0, -0.1)),
  (0.3, 0.2, (0.3, 0.1, 0.0, -0.1, -0.2)),
)


class Sides(NamedTuple):
  """Documents (name, bytes): in the store, near it and far from it."""

  stored: list[tuple[str, bytes]]
  near: list[tuple[str, bytes]]
  far: list[tuple[str, bytes]]


class Scores(NamedTuple):
  """Of the ids of one tail: p of the model and of the keys; as nearest.Found.

  near_p_GN: one row per near_temperature. size: bytes of the tail.
  """

  p_N: np.ndarray
  near_p_GN: np.ndarray
  ratio_N: np.ndarray
  size: int


def divide(documents: Sequence[tuple[str, bytes]]) -> Sides:
  """Every second document of a package with several is stored."""
  packages: dict[str, list[tuple[str, bytes]]] = {}
  for name, text in sorted(documents):
    if text:
      packages.setdefault(name.split('/')[0], []).append((name, text))
  several = [d for d in packages.values() if len(d) >= _LEAST]
  if not several or len(several) == len(packages):
    raise ValueError(
      f'the documents are of {len(packages)} packages, of which {len(several)}'
      f' have {_LEAST} or more; some and not all must, so take other --splits'
    )
  return Sides(
    [d for part in several for d in part[::2]],
    [d for part in several for d in part[1::2]],
    [d for part in packages.values() if len(part) < _LEAST for d in part],
  )


def cut(
  documents: Sequence[tuple[str, bytes]], count: int, head: int, tail: int
) -> quality.Begun:
  """So many pieces, evenly spaced; fewer if there are not as many."""
  places = [
    (text, start)
    for _, text in documents
    for start in range(0, len(text) - head - tail + 1, head + tail)
  ]
  if not places:
    raise ValueError(
      f'no document has {head + tail} bytes; take a smaller --new'
    )
  chosen = np.unique(np.linspace(0, len(places) - 1, count).astype(int))
  pieces = [places[i] for i in chosen]
  return quality.Begun(
    [text[start : start + head] for text, start in pieces],
    [text[start + head : start + head + tail] for text, start in pieces],
  )


def mixtures(
  run: restore.Run,
  corpus: neighbours.Corpus,
  named: Mapping[str, quality.Begun],
) -> Iterator[dict[str, object]]:
  """Bits per byte of every side, by the model alone and mixed."""
  scores = {name: score(run, corpus, begun) for name, begun in named.items()}
  settings = [
    (g, near, tau, alpha)
    for g, (near, tau, alphas) in enumerate(_GRID)
    for alpha in alphas
  ]
  for place, near, tau, alpha in [(0, '-', 1.0, -math.inf), *settings]:
    row: dict[str, object] = {'near_temperature': near, 'tau': tau}
    row['alpha'] = 'model alone' if alpha == -math.inf else alpha
    for name, parts in scores.items():
      plain_N, mixed_N, mass = bits(parts, place, alpha, tau)
      sizes_N = np.array([part.size for part in parts])
      row[name] = f'{mixed_N.sum() / sizes_N.sum():.3f}'
      gain, error = _mean((plain_N - mixed_N) / sizes_N)
      row[f'{name}: bits saved'] = f'{gain:.3f} +- {error:.3f}'
      row[f'{name}: mass of keys'] = f'{mass:.2f}'
    yield row


def bits(
  parts: Sequence[Scores], place: int, alpha: float, tau: float
) -> tuple[np.ndarray, np.ndarray, float]:
  """Bits of every tail by the model and mixed, and the keys' mean mass.

  place: of the near_temperature.
  """
  plain, mixed, masses = [], [], []
  for part in parts:
    p_N = part.p_N.astype(np.float64)
    share_N = 1 / (1 + np.exp((alpha - part.ratio_N) / tau))
    plain.append(-np.log2(p_N).sum())
    both_N = share_N * p_N + (1 - share_N) * part.near_p_GN[place]
    mixed.append(-np.log2(both_N).sum())
    masses.append(1 - share_N)
  return np.array(plain), np.array(mixed), float(np.concatenate(masses).mean())


def _mean(values: np.ndarray) -> tuple[float, float]:
  """And its standard error."""
  count = len(values)
  error = values.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
  return float(values.mean()), float(error)


def score(
  run: restore.Run, corpus: neighbours.Corpus, begun: quality.Begun
) -> list[Scores]:
  """What model and keys make of every tail."""
  spelling, store = run.config.data.codec, corpus.store
  step = key_states.step(key_states.for_rows(run.config.model))
  find = retrieval.finder(store, corpus.search, 1)
  found = []
  for head, tail in zip(begun.prompts, begun.ends, strict=True):
    first, rest = spelling.prompt(head), spelling.encode(tail)
    ids_1T = np.concatenate([first, rest]).astype(np.int32)[None]
    read = _read(step, run.params, ids_1T)
    recent = slice(-len(rest) - store.settings.passage, -len(rest))
    mean_1D = np.asarray(read.key_1TD)[:, recent].mean(axis=1)
    scores = _score(
      read,
      ids_1T,
      find([head], mean_1D),
      [
        nearest.knobs(corpus.rule)._replace(near_temperature=near)
        for near, *_ in _GRID
      ],
      count=len(rest),
    )
    found.append(Scores(*map(np.asarray, scores), len(tail)))
  return found


class _Read(NamedTuple):
  logits_1TV: jax.Array
  key_1TD: jax.Array


@functools.partial(jax.jit, static_argnames=('step',))
def _read(step: Any, params: Any, ids_1T: jax.Array) -> _Read:
  (logits_1TV, key_1TD), _ = step(params, ids_1T, jnp.ones_like(ids_1T))
  return _Read(logits_1TV.astype(jnp.float32), key_1TD.astype(jnp.float32))


@functools.partial(jax.jit, static_argnames=('count',))
def _score(
  read: _Read,
  ids_1T: jax.Array,
  loaded: passages.Loaded,
  knobs: Sequence[nearest.Knobs],
  *,
  count: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Of the last `count` ids: p of the model, of the keys, and the ratio."""
  logits_NV = read.logits_1TV[0, -count - 1 : -1]
  found = [
    nearest.find(
      read.key_1TD[:, -count - 1 : -1],
      loaded,
      jnp.zeros(loaded.real_BC.shape, bool),
      logits_NV.shape[1],
      numbers,
    )
    for numbers in knobs
  ]
  own_N = ids_1T[0, -count:]
  p_N = passages.pick(jax.nn.softmax(logits_NV), own_N)
  near_p_GN = jnp.stack([passages.pick(f.p_BV, own_N) for f in found])
  return p_N, near_p_GN, found[0].ratio_B
