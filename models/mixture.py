"""Mixtures of experts: few of many experts run for every token.

BTT-MoE (arXiv 2410.02117, section 5) puts a mixture into every projection,
`linear=Mixture()`; the usual mixture (arXiv 2101.03961) is that of whole
feed-forward layers, `feed_forward=MixtureFeedForward()`. No token is dropped:
they are sorted by expert and cut into tiles of one expert each, whose number
has a bound, so that shapes are static.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import expert_tiles
from models import linear as linear_lib
from models import pinning
from models import structured

# Rows of a tile at most: enough to reuse the expert's weights.
_MOST_ROWS = 128
# Decides between equal logits and is nothing beside others: a gate of zeros
# would send every token to the same experts.
_TIE = 1e-6


class Routes(NamedTuple):
  """What the gate decides for N tokens, of which each has K experts.

  weight_NK: sums to one. balance: the auxiliary loss.
  """

  expert_NK: jax.Array
  weight_NK: jax.Array
  balance: jax.Array


class Tiles(NamedTuple):
  """Where tokens go: S tiles of R rows.

  token_SR: the token in a row, N in rows without. expert_S: of a tile.
  place_NK: the row, in S R, of a token's k-th expert. used: tiles with tokens.
  """

  token_SR: jax.Array
  expert_S: jax.Array
  place_NK: jax.Array
  used: jax.Array


def route(x_ND: jax.Array, gate_DE: jax.Array, active: int) -> Routes:
  """The `active` experts of highest logit, weighted by a softmax over these.

  balance: E sum(p f) + 0.1 mean(logsumexp^2) with p the mean probability of
  an expert and f its share of the choices; 1 where both are even.
  """
  experts = gate_DE.shape[1]
  ties_DE = jax.random.normal(jax.random.key(0), gate_DE.shape)
  logits_NE = x_ND.astype(jnp.float32) @ (gate_DE + _TIE * ties_DE)
  logits_NK, expert_NK = jax.lax.top_k(logits_NE, active)
  chosen_E = jnp.bincount(expert_NK.reshape(-1), length=experts)
  share_E = chosen_E / expert_NK.size
  probability_E = jnp.mean(jax.nn.softmax(logits_NE), axis=0)
  z_N = jax.nn.logsumexp(logits_NE, axis=-1)
  balance = experts * jnp.sum(probability_E * share_E)
  balance += 0.1 * jnp.mean(jnp.square(z_N))
  return Routes(expert_NK, jax.nn.softmax(logits_NK), balance)


def rows_per_tile(tokens: int, experts: int, active: int) -> int:
  """The power of two below half the mean number of tokens of an expert."""
  half = max(tokens * active // (2 * experts), 1)
  return min(2 ** (half.bit_length() - 1), _MOST_ROWS)


def tiles_of(tokens: int, experts: int, active: int) -> tuple[int, int]:
  """How many tiles there are, however tokens choose, and rows of each."""
  rows = rows_per_tile(tokens, experts, active)
  most = (tokens * active + experts * (rows - 1)) // rows
  return most + -most % expert_tiles.AT_ONCE, rows


def computed_share(tokens: int | None, experts: int, active: int) -> float:
  """Rows that experts compute per token; with padding if `tokens` is given."""
  if tokens is None:
    return active
  return math.prod(tiles_of(tokens, experts, active)) / tokens


def tile(expert_NK: jax.Array, experts: int) -> Tiles:
  """Sorts tokens by expert, each expert's padded to whole tiles."""
  tokens, active = expert_NK.shape
  number, rows = tiles_of(tokens, experts, active)
  expert_M = expert_NK.reshape(-1)
  order_M = jnp.argsort(expert_M, stable=True)
  sorted_M = expert_M[order_M]
  count_E = jnp.bincount(expert_M, length=experts)
  tiles_E = -(-count_E // rows)
  end_E = jnp.cumsum(tiles_E)
  first_E = rows * (end_E - tiles_E) - (jnp.cumsum(count_E) - count_E)
  row_M = jnp.arange(expert_M.size) + first_E[sorted_M]
  token_SR = jnp.full((number * rows,), tokens).at[row_M].set(order_M // active)
  place_M = jnp.zeros_like(row_M).at[order_M].set(row_M)
  expert_S = jnp.searchsorted(end_E, jnp.arange(number), side='right')
  return Tiles(
    token_SR.reshape(number, rows),
    # Tiles beyond the last are empty; any expert will do.
    jnp.minimum(expert_S, experts - 1),
    place_M.reshape(tokens, active),
    end_E[-1],
  )


class _Experts(nn.Module):
  """Experts of one structure, kernels [experts, blocks, fan-in, fan-out]."""

  expert: structured.Structured
  experts: int
  features: int
  gain: float
  dtype: str

  @nn.compact
  def __call__(self, x_SRD: jax.Array, tiles: Tiles) -> jax.Array:
    """Every tile by its expert."""
    chain = self.expert.chain(x_SRD.shape[-1], self.features)
    kernels = []
    for i, shape in enumerate(chain.shapes):
      size = structured.deviation(shape)
      if i == len(chain.shapes) - 1:
        size *= self.gain
      kernel = self.param(
        structured.kernel_name(i),
        nn.initializers.normal(size),
        (self.experts, *shape),
        jnp.float32,
      )
      if self.expert.cap:
        name = structured.gain_name(i)
        gain = self.param(name, nn.initializers.ones, (), jnp.float32)
        kernel = structured.capped(kernel, gain, shape)
      kernels.append(kernel.astype(self.dtype))
    return expert_tiles.contract(
      chain,
      kernels,
      x_SRD.astype(self.dtype),
      tiles.expert_S,
      tiles.used,
    )


class _Gate(nn.Module):
  """Logits of the experts; zeros at first."""

  experts: int
  active: int

  @nn.compact
  def __call__(self, x_ND: jax.Array) -> Routes:
    gate_DE = self.param(
      'kernel', nn.initializers.zeros, (x_ND.shape[1], self.experts)
    )
    routes = route(x_ND, gate_DE, self.active)
    tokens = jnp.asarray(x_ND.shape[0], jnp.float32)
    self.sow('counts', 'balance', routes.balance * tokens)
    self.sow('counts', 'balanced', tokens)
    return routes


class Mixture(nn.Module, kw_only=True):
  """A projection by experts: the prototype of BTT-MoE and its kind.

  expert: structure of an expert, structured.Full for dense ones.
  experts, active: how many there are, and how many of them a token has.
  features, gain, dtype: as linear.Dense.

  Sows the auxiliary loss into 'counts', as its sum over tokens `balance` and
  their number `balanced` (objectives.NextToken.balance).
  """

  expert: structured.Structured = structured.BlockTensorTrain()
  experts: int = 8
  active: int = 2
  features: int = 0
  gain: float = 1.0
  dtype: str = 'float32'

  def __post_init__(self) -> None:
    super().__post_init__()
    _check(self)

  def macs(
    self, d_in: int, d_out: int, tokens: int | None = None
  ) -> float:
    """Multiply-adds per token, those of the gate included.

    tokens: given at once, to count the padding of tiles too.
    """
    rows = computed_share(tokens, self.experts, self.active)
    return rows * self.expert.chain(d_in, d_out).macs + self.experts * d_in

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x_ND = x.reshape(-1, x.shape[-1])
    routes = _Gate(self.experts, self.active, name='router')(x_ND)
    tiles = tile(routes.expert_NK, self.experts)
    experts = _Experts(
      self.expert.clone(parent=None),
      self.experts,
      self.features,
      self.gain,
      self.dtype,
      name='experts',
    )
    y_ND = _moved(experts, x_ND, routes, tiles)
    return y_ND.reshape(*x.shape[:-1], self.features)


class MixtureFeedForward(nn.Module):
  """blocks.FeedForward by experts, whose every projection is `linear`.

  linear.Dense stands for dense experts, which are structured.Full. Sows the
  auxiliary loss as Mixture does.
  """

  experts: int = 8
  active: int = 2
  hidden: int = 0
  dtype: str = 'float32'
  residual_gain: float = 0.0
  linear: nn.Module = linear_lib.Dense()

  def __post_init__(self) -> None:
    super().__post_init__()
    _check(self)

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    width = x_BTD.shape[-1]
    x_ND = x_BTD.reshape(-1, width)
    routes = _Gate(self.experts, self.active, name='router')(x_ND)
    tiles = tile(routes.expert_NK, self.experts)

    def project(name: str, features: int, gain: float, x: jax.Array) -> Any:
      expert = expert_of(self.linear)
      layer = _Experts(
        expert, self.experts, features, gain, self.dtype, name=name
      )
      return layer(x, tiles)

    def run(x_SRD: jax.Array, _: Tiles) -> jax.Array:
      hidden = nn.silu(project('gate', self.hidden, 1.0, x_SRD))
      hidden *= project('up', self.hidden, 1.0, x_SRD)
      return project('down', width, self.residual_gain, hidden)

    return _moved(run, x_ND, routes, tiles).reshape(x_BTD.shape)


def _moved(
  run: Callable[[jax.Array, Tiles], jax.Array],
  x_ND: jax.Array,
  routes: Routes,
  tiles: Tiles,
) -> jax.Array:
  """What `run` makes of the tiles, weighted and back in the order of x."""
  places = tiles.token_SR, tiles.place_NK
  x_SRD = pinning.pin_tiles(expert_tiles.gather(x_ND, *places))
  y_SRD = pinning.pin_tiles(run(x_SRD, tiles))
  return expert_tiles.combine(y_SRD, routes.weight_NK, *places)


def expert_of(layer: nn.Module) -> structured.Structured:
  """The structure of an expert that a projection's prototype stands for."""
  if isinstance(layer, linear_lib.Dense):
    return structured.Full(parent=None)
  if isinstance(layer, structured.Structured):
    return layer.clone(parent=None, name=None)
  raise ValueError(
    f'linear={type(layer).__name__} can be no expert of MixtureFeedForward;'
    ' use linear.Dense or a class of models.structured.'
  )


def _check(layer: Mixture | MixtureFeedForward) -> None:
  if not 1 <= layer.active <= layer.experts:
    raise ValueError(
      f'{type(layer).__name__} active={layer.active} must be at least 1 and at'
      f' most experts={layer.experts}.'
    )
