"""Mixtures of experts: few of many experts run for every token.

BTT-MoE (arXiv 2410.02117, section 5) puts a mixture into every projection,
`linear=Mixture()`; the usual mixture (arXiv 2101.03961) is that of whole
feed-forward layers, `feed_forward=MixtureFeedForward()`. No token is dropped:
they are sorted by expert and cut into tiles of one expert each, whose number
has a bound, so that shapes are static.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import core_chain
from models import execution
from models import expert_tiles
from models import linear as linear_lib
from models import structured

# Rows of a tile at most: enough to reuse the expert's weights, and few enough
# for what a CPU makes of them to stay in its caches.
_MOST_ROWS, _MOST_ROWS_IN_TURN = 128, 280
# Tokens of an expert, on average, from which it has tiles of its own size.
_LEAST_MEAN = 64
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


def route(x_ND: jax.Array, gate_DE: jax.Array, active: int) -> Routes:
  """The `active` experts of highest logit, weighted by a softmax over these.

  balance: E sum(p f) + 0.1 mean(logsumexp^2) with p the mean probability of
  an expert and f its share of the choices; 1 where both are even.
  """
  experts = gate_DE.shape[1]
  ties_DE = jax.random.normal(jax.random.key(0), gate_DE.shape)
  # The gradient of the gate is a product of few rows, not of few columns: on a
  # CPU a tenth of the time. XLA would put the transposition into the product.
  gate_ED = jax.lax.optimization_barrier((gate_DE + _TIE * ties_DE).T)
  logits_NE = x_ND.astype(jnp.float32) @ gate_ED.T
  logits_NK, expert_NK = jax.lax.top_k(logits_NE, active)
  chosen_E = jnp.bincount(expert_NK.reshape(-1), length=experts)
  share_E = chosen_E / expert_NK.size
  probability_E = jnp.mean(jax.nn.softmax(logits_NE), axis=0)
  z_N = jax.nn.logsumexp(logits_NE, axis=-1)
  balance = experts * jnp.sum(probability_E * share_E)
  balance += 0.1 * jnp.mean(jnp.square(z_N))
  return Routes(expert_NK, jax.nn.softmax(logits_NK), balance)


def rows_per_tile(tokens: int, experts: int, active: int) -> int:
  """Half the mean number of tokens of an expert, as a power of two at most.

  In turn, where tiles without tokens cost nothing, as many as let most experts
  fill one tile, or the fewest that are enough: 1.5 deviations above the mean of
  an even choice. These are odd multiples of eight, whose transposes were
  measured to be the fastest.
  """
  mean = tokens * active // experts
  if _fits_experts(mean):
    most = mean + 3 * math.isqrt(mean) // 2
    each = most // -(-most // _MOST_ROWS_IN_TURN)
    return each // 16 * 16 + 8
  return min(2 ** (max(mean // 2, 1).bit_length() - 1), _MOST_ROWS)


def tiles_of(tokens: int, experts: int, active: int) -> tuple[int, int]:
  """How many tiles there are, however tokens choose, and rows of each."""
  rows = rows_per_tile(tokens, experts, active)
  number = (tokens * active + experts * (rows - 1)) // rows
  if not execution.tiles_in_turn():
    number += number % 2  # Devices of a mesh share them.
  return number, rows


def computed_share(tokens: int | None, experts: int, active: int) -> float:
  """Rows that experts compute per token; with padding if `tokens` is given.

  Of tiles that fit experts those of an even choice, else all.
  """
  if tokens is None:
    return active
  number, rows = tiles_of(tokens, experts, active)
  if _fits_experts(tokens * active // experts):
    number = experts * -(-tokens * active // (experts * rows))
  return number * rows / tokens


def _fits_experts(mean: int) -> bool:
  return mean >= _LEAST_MEAN and execution.tiles_in_turn()


def tile(expert_NK: jax.Array, experts: int) -> expert_tiles.Tiles:
  """Sorts tokens by expert, each expert's padded to whole tiles."""
  tokens, active = expert_NK.shape
  number, rows = tiles_of(tokens, experts, active)
  expert_M = expert_NK.reshape(-1)
  if experts * expert_M.size < 2**31:
    # Sorted as one number, which is faster than by an order of the first.
    key_M = jnp.sort(expert_M * expert_M.size + jnp.arange(expert_M.size))
    sorted_M, order_M = jnp.divmod(key_M, expert_M.size)
  else:
    order_M = jnp.argsort(expert_M, stable=True)
    sorted_M = expert_M[order_M]
  count_E = jnp.bincount(expert_M, length=experts)
  tiles_E = -(-count_E // rows)
  end_E = jnp.cumsum(tiles_E)
  first_E = rows * (end_E - tiles_E) - (jnp.cumsum(count_E) - count_E)
  row_M = jnp.arange(expert_M.size) + first_E[sorted_M]
  token_SR = jnp.full((number * rows,), tokens).at[row_M].set(order_M // active)
  place_M = jnp.zeros_like(row_M).at[order_M].set(row_M)
  expert_S = jnp.searchsorted(
    end_E, jnp.arange(number), side='right', method='compare_all'
  )
  return expert_tiles.Tiles(
    token_SR.reshape(number, rows),
    # Tiles beyond the last are empty; any expert will do.
    jnp.minimum(expert_S, experts - 1),
    place_M.reshape(tokens, active),
    end_E[-1],
  )


class _Experts(nn.Module):
  """Kernels of experts of one structure, [experts, *shape] of every core."""

  expert: structured.Structured
  experts: int
  features: int
  gain: float
  dtype: str

  @nn.compact
  def __call__(self, width: int) -> list[jax.Array]:
    kernels = []
    shapes = self.expert.chain(width, self.features).shapes
    for i, shape in enumerate(shapes):
      size = structured.deviation(shape)
      if i == len(shapes) - 1:
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
    return kernels


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
    expert = self.expert.clone(parent=None)
    kernels = _Experts(
      expert,
      self.experts,
      self.features,
      self.gain,
      self.dtype,
      name='experts',
    )(x_ND.shape[1])
    chain = expert.chain(x_ND.shape[1], self.features)
    y_ND = expert_tiles.mix(
      lambda own, x_RD: _project(chain, own, x_RD),
      kernels,
      x_ND.astype(self.dtype),
      routes.weight_NK,
      tile(routes.expert_NK, self.experts),
    )
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
    expert = expert_of(self.linear)

    def kernels(name: str, d_in: int, features: int, gain: float) -> Any:
      layer = _Experts(
        expert, self.experts, features, gain, self.dtype, name=name
      )
      return layer(d_in)

    params = {
      'gate': kernels('gate', width, self.hidden, 1.0),
      'up': kernels('up', width, self.hidden, 1.0),
      'down': kernels('down', self.hidden, width, self.residual_gain),
    }
    wide = expert.chain(width, self.hidden)
    narrow = expert.chain(self.hidden, width)

    def run(own: Any, x_RD: jax.Array) -> jax.Array:
      hidden = nn.silu(_project(wide, own['gate'], x_RD))
      hidden *= _project(wide, own['up'], x_RD)
      return _project(narrow, own['down'], hidden)

    y_ND = expert_tiles.mix(
      run,
      params,
      x_ND.astype(self.dtype),
      routes.weight_NK,
      tile(routes.expert_NK, self.experts),
    )
    return y_ND.reshape(x_BTD.shape)


def _project(
  chain: core_chain.Chain, kernels: list[jax.Array], x_RD: jax.Array
) -> jax.Array:
  # Rows of a tile are few, and those of a batch of tiles are not.
  last = False if execution.tiles_in_turn() else None
  return core_chain.contract(chain, kernels, x_RD, tokens_last=last)


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
