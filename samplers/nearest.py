"""The law of a model mixed with what followed the nearest keys of a corpus.

p = share * p_model + (1 - share) * p_nearest, of which p_nearest gives every id
the weights of the nearest keys that predict it, as kNN-LM (Khandelwal et al.
2020, arXiv 1911.00172). The share of the model depends on how much nearer the
nearest key is than the farthest that counts: Li et al. 2024 (arXiv 2405.19325),
whose distances are negative in one place and positive in another; these are
positive.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samplers import passages
from samplers import threshold


@dataclasses.dataclass(frozen=True)
class Nest:
  """How model and corpus are mixed, and what of a span is taken.

  alpha, tau: the share of the model is sigmoid((nearest / farthest distance -
  alpha) / tau); a very negative alpha leaves the model alone. delta: a span is
  looked for where that share is at most delta; 0 is never, 1 always. span:
  tokens drafted at once. gamma: a drafted token is taken if its probability is
  more than gamma / 2 of the largest one; 0 takes all that are possible.
  neighbours: keys that count. temperature: of the model in the mixture.
  near_temperature: times the root of a key's width is the squared distance at
  which a key counts 1/e.

  The values are those of the paper, for tokens and large models. For a small
  model of bytes, of which far more keys are near, alpha=-0.1, tau=0.2,
  near_temperature=0.3 and delta=0.7 were better.
  """

  alpha: float = 0.3
  tau: float = 0.1
  delta: float = 0.5
  span: int = 64
  gamma: float = 0.05
  neighbours: int = 1024
  temperature: float = 1.0
  near_temperature: float = 1.0

  def __post_init__(self) -> None:
    if not (math.isfinite(self.alpha) and 0 < self.tau < math.inf):
      raise ValueError(
        f'nest alpha={self.alpha} must be finite and tau={self.tau} above 0;'
        ' 0.3 and 0.1 are usual'
      )
    if not 0 <= self.delta <= 1:
      raise ValueError(
        f'nest delta={self.delta} must lie in [0, 1]; 0.5 is usual, 0 takes no'
        ' span'
      )
    if not 0 <= self.gamma < 2:
      raise ValueError(
        f'nest gamma={self.gamma} must lie in [0, 2), as half of it is a share'
        ' of the largest probability; 0.05 is usual'
      )
    if self.span < 1 or self.neighbours < 1:
      raise ValueError(
        f'nest span={self.span} and neighbours={self.neighbours} must be at'
        ' least 1; 64 and 1024 are usual'
      )
    temperatures = self.temperature, self.near_temperature
    if not (min(temperatures) > 0 and max(temperatures) < math.inf):
      raise ValueError(
        f'nest temperature={self.temperature} and near_temperature='
        f'{self.near_temperature} must be above 0; 1 is usual, and the sampler'
        ' can be greedy'
      )


class Knobs(NamedTuple):
  """The numbers of `Nest` that no program is compiled for."""

  alpha: Any
  tau: Any
  delta: Any
  gamma: Any
  neighbours: Any
  temperature: Any
  near_temperature: Any


def knobs(rule: Nest) -> Knobs:
  """Those of a rule."""
  fields = [float(getattr(rule, name)) for name in Knobs._fields]
  return Knobs(*fields)._replace(neighbours=rule.neighbours)


class Found(NamedTuple):
  """What the keys near a state say, one row per state.

  p_BV: law of the next id, 0 throughout where no key counts. weight_BC: of the
  keys in it. ratio_B: distance of the nearest over that of the farthest key
  that counts, inf for none.
  """

  p_BV: jax.Array
  weight_BC: jax.Array
  ratio_B: jax.Array


def distances(query_BTD: jax.Array, loaded: passages.Loaded) -> jax.Array:
  """[B, T, C]: squared, in float32."""
  query_BTD = query_BTD.astype(jnp.float32)
  key_BCD = loaded.key_BCD.astype(jnp.float32)
  inner_BTC = jnp.einsum(
    'BTD,BCD->BTC', query_BTD, key_BCD, precision='highest'
  )
  square_BT1 = jnp.sum(query_BTD**2, axis=2, keepdims=True)
  square_B1C = loaded.square_BC[:, None]
  return jnp.maximum(square_BT1 + square_B1C - 2 * inner_BTC, 0.0)


def find(
  query_BTD: jax.Array,
  loaded: passages.Loaded,
  used_BC: jax.Array,
  num_ids: int,
  numbers: Knobs,
) -> Found:
  """For T states of every row, which become rows [B T] of their own.

  used_BC: True for keys that do not count. num_ids: V.
  """
  batch_size, count, width = query_BTD.shape
  usable_BC = loaded.real_BC & ~used_BC
  distance_BTC = jnp.where(
    usable_BC[:, None], distances(query_BTD, loaded), jnp.inf
  )
  # From here on B is B T.
  weight_BC, ratio_B = weigh(
    distance_BTC.reshape(batch_size * count, -1),
    numbers.near_temperature * width**0.5,
    numbers.neighbours,
  )
  id_BC = passages.key_ids(loaded)
  id_BC = jnp.where(id_BC < 0, num_ids, id_BC)
  # The states of a row side by side, so that every key is added once.
  weight_BCT = weight_BC.reshape(batch_size, count, -1).swapaxes(1, 2)
  p_BVT = jnp.zeros((batch_size, num_ids, count), jnp.float32)
  p_BVT = p_BVT.at[jnp.arange(batch_size)[:, None], id_BC].add(
    weight_BCT, mode='drop'
  )
  p_BV = p_BVT.swapaxes(1, 2).reshape(-1, num_ids)
  return Found(p_BV, weight_BC, ratio_B)


def weigh(
  distance_BC: jax.Array,
  scale: float | jax.Array,
  neighbours: int | jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """The weight [B, C] of every key, and the ratio [B] of `Found`.

  Keys as far as the last that counts do so, too.

  distance_BC: squared, inf for keys that do not count. scale: at which a key
  counts 1/e.
  """
  count_11 = jnp.reshape(jnp.asarray(neighbours, jnp.int32), (1, 1))
  is_near_BC = threshold.largest(-distance_BC, count_11)
  is_near_BC &= distance_BC < jnp.inf
  any_B = jnp.any(is_near_BC, axis=1)
  nearest_B = jnp.min(distance_BC, axis=1)
  farthest_B = jnp.max(jnp.where(is_near_BC, distance_BC, -jnp.inf), axis=1)
  # Keys that are all the state itself are as near as each other.
  ratio_B = jnp.where(farthest_B > 0, nearest_B / farthest_B, 1.0)
  nearest_B1 = jnp.where(any_B, nearest_B, 0.0)[:, None]
  weight_BC = jnp.where(
    is_near_BC, jnp.exp((nearest_B1 - distance_BC) / scale), 0.0
  )
  total_B1 = jnp.sum(weight_BC, axis=1, keepdims=True)
  weight_BC /= jnp.where(total_B1 > 0, total_B1, 1.0)
  return weight_BC, jnp.where(any_B, ratio_B, jnp.inf)


def mix(
  logits_BV: jax.Array, found: Found, numbers: Knobs
) -> tuple[jax.Array, jax.Array]:
  """log p [B, V] up to a constant per row, and the share [B] of the model."""
  share_B = jax.nn.sigmoid((found.ratio_B - numbers.alpha) / numbers.tau)
  share_B1 = share_B[:, None]
  logits_BV = logits_BV / numbers.temperature
  mixed_BV = share_B1 * jax.nn.softmax(logits_BV)
  mixed_BV += (1 - share_B1) * found.p_BV
  # Where the model is alone its logits are kept to the last bit.
  return jnp.where(share_B1 >= 1, logits_BV, jnp.log(mixed_BV)), share_B


def accepts(
  log_p_BV: jax.Array, token_B: jax.Array, gamma: float | jax.Array
) -> jax.Array:
  """[B]: is p of the token more than gamma / 2 times the largest p?"""
  own_B = passages.pick(log_p_BV, token_B)
  return own_B - jnp.max(log_p_BV, axis=1) > jnp.log(0.5 * gamma)
