"""How often the most likely class of an image is not its own."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data import codec
from evals import shares


@dataclasses.dataclass(frozen=True)
class ErrorRate:
  """Share of images that are taken for others, and nats of their classes.

  Of images as they are, none cropped or mixed.

  batch_size: images at a time.
  """

  batch_size: int = 500

  def run(
    self,
    apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,
    corpus: Any,
    *,
    max_bytes: int | None = None,
  ) -> dict[str, float]:
    """Means over the images with their standard errors.

    corpus: as data.images.ImageCorpus. max_bytes: of the images that are
    scored, the first; at least two are.
    """
    count = len(corpus)
    if max_bytes is not None:
      count = min(max(max_bytes // int(np.prod(corpus.size)), 2), count)
    batches = self._batches(corpus, count)

    def work(batch: tuple[np.ndarray, np.ndarray]) -> tuple[jax.Array, ...]:
      return score(apply, params, *batch)

    found = [scores for _, scores in shares.shared(work, batches, params)]
    report: dict[str, float] = {}
    for i, name in enumerate(('error', 'nats')):
      x_N = np.concatenate([scores[i] for scores in found])[:count]
      x_N = x_N.astype(np.float64)
      report[name] = float(x_N.mean())
      report[f'{name}_stderr'] = float(x_N.std() / max(count - 1, 1) ** 0.5)
    return report | {'images': count}

  def _batches(
    self, corpus: Any, count: int
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids [B, T] and classes [B]; the last ones are filled up with zeros."""
    size = min(self.batch_size, count)
    for first in range(0, count, size):
      there = slice(first, min(first + size, count))
      pixels_NHWC = corpus.pixels_NHWC[there]
      room = size - len(pixels_NHWC)
      ids_BT = pixels_NHWC.reshape(len(pixels_NHWC), -1).astype(np.int32)
      yield (
        np.pad(ids_BT, [(0, room), (0, 0)]) + codec.OFFSET,
        np.pad(corpus.labels_N[there], (0, room)),
      )


@functools.partial(jax.jit, static_argnames=('apply',))
def score(
  apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
  params: Any,
  ids_BT: jax.Array,
  class_B: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Whether each class is not the most likely one, and its nats."""
  logits_BV = apply(params, ids_BT, jnp.ones_like(ids_BT[:, :1]))[:, 0]
  log_p_BV = jax.nn.log_softmax(logits_BV.astype(jnp.float32))
  nats_B = -jnp.take_along_axis(log_p_BV, class_B[:, None], 1)[:, 0]
  return jnp.argmax(log_p_BV, axis=-1) != class_B, nats_B
