"""Ids that stand for nothing, as those of padding, left out of a model's law.

A tokenizer may have fewer ids than its model, and some of those it has are of
no text. What is barred is never drawn nor read, whatever the way to decode.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def silent(lengths_V: np.ndarray, stops: Sequence[int]) -> bytes:
  """One byte per id: 1 if it stands for no byte and ends no text, else 0.

  lengths_V: bytes that every id stands for.
  """
  is_silent_V = np.asarray(lengths_V) == 0
  is_silent_V[list(stops)] = False
  return is_silent_V.astype(np.uint8).tobytes()


def over(call: Callable[..., Any], barred: bytes) -> Callable[..., Any]:
  """What gives logits, or a pair of them and more, and a cache; -inf if barred.

  It is hashable if the call is. barred: as `silent` has it; ids beyond its end
  are barred too, but for an empty one, which bars none.
  """
  return _Barring(call, barred) if barred else call


@dataclasses.dataclass(frozen=True)
class _Barring:
  call: Callable[..., Any]
  barred: bytes

  def __call__(self, *arguments: Any) -> tuple[Any, Any]:
    found, cache = self.call(*arguments)
    if isinstance(found, tuple):
      return (self._bar(found[0]), *found[1:]), cache
    return self._bar(found), cache

  def _bar(self, logits: jax.Array) -> jax.Array:
    size = logits.shape[-1]
    is_barred_V = np.ones(size, bool)
    known_V = np.frombuffer(self.barred, np.uint8)[:size] > 0
    is_barred_V[: len(known_V)] = known_V
    shape = (1,) * (logits.ndim - 1) + (size,)
    return jnp.where(is_barred_V.reshape(shape), -jnp.inf, logits)
