"""Mixtures of experts against all experts computed and masked, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import flops
from models import forward
from models import linear
from models import lm
from models import mixture
from models import structured
from training import objectives
from training import optimizer
from training import step as step_lib
from training import transfer

BTT = structured.BlockTensorTrain
N, D_IN, D_OUT = 21, 12, 20

route = jax.jit(mixture.route, static_argnums=2)


def random_params(layer, x, seed=0):
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x)['params']
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: rng.normal(0, 0.5, s.shape).astype(np.float32), shapes
  )


def gates(x, gate, active):
  """The sparse gate [N, E] and the auxiliary loss, from their definitions."""
  logits = np.asarray(x, np.float64) @ np.asarray(gate, np.float64)
  experts = logits.shape[1]
  weights, chosen = np.zeros_like(logits), np.zeros(experts)
  for row, out in zip(logits, weights, strict=True):
    kept = np.argsort(-row)[:active]
    out[kept] = np.exp(row[kept]) / np.exp(row[kept]).sum()
    chosen[kept] += 1 / (active * len(logits))
  sums = np.exp(logits).sum(axis=1, keepdims=True)
  mean = np.mean(np.exp(logits) / sums, axis=0)
  balance = experts * np.sum(mean * chosen) + 0.1 * np.mean(np.log(sums) ** 2)
  return weights, balance


def masked(expert, params, x, active):
  """All experts on all tokens [N, D], those that are not chosen times zero."""
  logits = x @ params['router']['kernel']
  least = jnp.sort(logits, axis=1)[:, -active, None]
  gate = jax.nn.softmax(jnp.where(logits >= least, logits, -jnp.inf))
  matrices = jax.vmap(
    lambda k: structured.to_dense(expert, k, d_in=D_IN, d_out=D_OUT)
  )(params['experts'])
  return jnp.einsum('ne,nd,edf->nf', gate, x, matrices)


@pytest.mark.parametrize(
  ('expert', 'experts', 'active', 'tokens'),
  [
    (BTT(), 4, 2, N),
    (BTT(rank=2), 5, 1, N),
    pytest.param(
      structured.LowRank(rank=2), 3, 3, N, marks=pytest.mark.slow
    ),
    (structured.Full(), 8, 2, N),
    # Tiles of 88 rows; 89 tokens choose the third expert.
    (BTT(), 4, 2, 147),
  ],
  ids=['btt', 'btt_2', 'low_rank', 'full', 'tiles_that_fit'],
)
def test_dispatch_is_the_masked_sum_of_all_experts(
  expert, experts, active, tokens
):
  layer = mixture.Mixture(
    expert=expert, experts=experts, active=active, features=D_OUT
  )
  x = np.random.default_rng(1).normal(0.4, size=(3, tokens // 3, D_IN))
  flat = x.reshape(tokens, D_IN).astype(np.float32)
  x = jax.device_put(x.astype(np.float32))
  params = random_params(layer, x)
  weight = np.random.default_rng(2).normal(size=(tokens, D_OUT))
  weight = weight.astype(np.float32)

  @jax.jit
  def reference(params):
    return jax.value_and_grad(
      lambda p: (out := masked(expert, p, flat, active), jnp.vdot(out, weight))[
        ::-1
      ],
      has_aux=True,
    )(params)

  @jax.jit
  def sparse(params):
    return jax.value_and_grad(
      lambda p: (
        out := layer.apply({'params': p}, x).reshape(tokens, D_OUT),
        jnp.vdot(out, weight),
      )[::-1],
      has_aux=True,
    )(params)

  (_, expected), expected_grads = jax.device_get(reference(params))
  (_, out), grads = jax.device_get(sparse(params))
  np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())
  for a, b in zip(
    jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=2e-5 * max(np.abs(b).max(), 1))
  # The gate and its loss, from their definitions.
  kernel = params['router']['kernel']
  weights, balance = gates(flat, kernel, active)
  routes = route(flat, kernel, active)
  found = np.zeros_like(weights)
  np.put_along_axis(
    found, np.asarray(routes.expert_NK), np.asarray(routes.weight_NK), axis=1
  )
  np.testing.assert_allclose(found, weights, atol=1e-5)
  assert float(routes.balance) == pytest.approx(balance, rel=1e-4)


def test_feed_forward_is_the_masked_sum_of_all_experts():
  layer = mixture.MixtureFeedForward(experts=4, active=2, hidden=16)
  x = np.random.default_rng(1).normal(size=(1, N, D_IN)).astype(np.float32)
  params = random_params(layer, x)
  weights, _ = gates(x[0], params['router']['kernel'], 2)
  gate, up, down = (
    np.asarray(params[name]['core_0_kernel'][:, 0], np.float64)
    for name in ('gate', 'up', 'down')
  )
  expected = np.zeros((N, D_IN))
  for e in range(4):
    z = x[0] @ gate[e]
    hidden = z / (1 + np.exp(-z)) * (x[0] @ up[e])
    expected += weights[:, e, None] * (hidden @ down[e])
  out = jax.jit(layer.apply)({'params': params}, x)
  np.testing.assert_allclose(
    out[0], expected, atol=1e-5 * np.abs(expected).max()
  )


def test_tiles_hold_every_choice_once_with_its_expert():
  rng = np.random.default_rng(0)
  tile = jax.jit(mixture.tile, static_argnums=1)
  cases = ((1, 8, 2), (5, 3, 2), (70, 4, 1), (600, 2, 2))
  for tokens, experts, active in cases:
    spread = rng.dirichlet(np.full(experts, 0.3))
    choices = rng.gumbel(size=(tokens, experts)) + np.log(spread + 1e-9)
    expert_NK = np.argsort(-choices)[:, :active].astype(np.int32)
    tiles = jax.device_get(tile(expert_NK, experts))
    rows = tiles.token_SR.shape[1]
    assert rows == mixture.rows_per_tile(tokens, experts, active)
    found = tiles.token_SR.reshape(-1)[tiles.place_NK]
    np.testing.assert_array_equal(found, np.arange(tokens)[:, None] + 0 * found)
    np.testing.assert_array_equal(
      tiles.expert_S[tiles.place_NK // rows], expert_NK
    )
    assert len(np.unique(tiles.place_NK)) == tokens * active
    assert np.sum(tiles.token_SR < tokens) == tokens * active


def test_a_gate_of_zeros_spreads_tokens_over_all_experts():
  x_ND = np.random.default_rng(0).normal(size=(512, 16)).astype(np.float32)
  routes = route(x_ND, np.zeros((16, 8), np.float32), 2)
  counts = np.bincount(np.asarray(routes.expert_NK).reshape(-1), minlength=8)
  assert counts.min() > 0.4 * 128, counts
  np.testing.assert_allclose(routes.weight_NK, 0.5, atol=1e-4)
  assert float(routes.balance) == pytest.approx(1 + 0.1 * np.log(8) ** 2)


def byte_lm(**fields):
  sizes = {'width': 16, 'layers': 2, 'heads': 2, 'key_value_heads': 1}
  return lm.ByteLM(**sizes, hidden=32, **fields)


MODELS = {
  'btt': byte_lm(linear=mixture.Mixture(experts=4), scan_layers=True),
  'feed_forward': byte_lm(feed_forward=mixture.MixtureFeedForward(experts=4)),
}


@pytest.mark.parametrize(
  'name', [pytest.param('btt', marks=pytest.mark.slow), 'feed_forward']
)
def test_a_model_learns_a_batch_and_balances_it(name):
  model = MODELS[name]
  ids = np.random.default_rng(0).integers(4, 30, (2, 17)).astype(np.int32)
  batch = {
    'ids': ids[:, :-1],
    'targets': ids[:, 1:],
    'documents': np.ones((2, 16), np.int32),
    'mask': np.ones((2, 16), np.float32),
  }
  params = jax.jit(model.init)(jax.random.key(0), batch['ids'])['params']
  adam = optimizer.AdamW(
    learning_rate=1e-2, warmup_steps=0, base=model.clone(linear=linear.Dense())
  ).build(15)
  step = jax.jit(
    functools.partial(
      step_lib.train_step,
      objective=objectives.NextToken(balance=0.01),
      apply=forward.counted(model),
      optimizer=adam,
    )
  )
  state, losses = step_lib.create(params, adam, jax.random.key(1)), []
  for _ in range(15):
    state, metrics = step(state, batch)
    losses.append(float(metrics.means['nats']))
  assert losses[-1] < 0.7 * losses[0], losses
  # One, and a tenth of the squared log of four experts, where all is even.
  assert abs(float(metrics.means['balance']) - 1.2) < 0.2
  paths = jax.tree_util.tree_leaves_with_path(jax.device_get(state.params))
  olds = jax.device_get(jax.tree.leaves(params))
  for (path, new), old in zip(paths, olds, strict=True):
    assert np.any(new != old) or 'embed' in str(path), path


def test_cached_decoding_is_the_full_forward():
  roles = linear.Roles(feed_forward=mixture.Mixture(experts=4))
  model = byte_lm(linear=roles).clone(layers=1)
  ids = np.random.default_rng(0).integers(4, 30, (2, 6)).astype(np.int32)
  params = random_params(model, ids)
  apply = jax.jit(
    lambda ids, cache: model.apply({'params': params}, ids, cache=cache)
  )
  full, _ = apply(ids, None)
  cache = jax.jit(lambda: model.init_cache(2, 6))()
  first, cache = apply(ids[:, :3], cache)
  last, _ = apply(ids[:, 3:], cache)
  found = np.concatenate([first, last], axis=1)
  np.testing.assert_allclose(found, full, atol=1e-4 * np.abs(full).max())


def test_counts_are_those_of_the_active_experts():
  # Rank one and widths 16 = 4 x 4: two experts of 128, a gate of 8 x 16.
  layer = mixture.Mixture(experts=8, active=2)
  assert layer.macs(16, 16) == 2 * 128 + 8 * 16
  # Of 512 tokens 128 choose an expert, whose tile has 152 rows.
  assert layer.macs(16, 16, 512) == 8 * 152 / 512 * 128 + 8 * 16
  dense = flops.per_byte(byte_lm(), length=8)
  mixed = flops.per_byte(
    byte_lm(feed_forward=mixture.MixtureFeedForward(experts=4)), length=8
  )
  extra = 2 * 2 * (3 * 16 * 32 + 4 * 16)
  assert mixed.total == pytest.approx(dense.total + extra)


def test_rates_of_experts_are_those_of_one():
  model = MODELS['btt'].clone(width=64, hidden=256)
  ids = jnp.zeros((1, 8), jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), ids)['params']
  base = transfer.base_shapes(byte_lm(scan_layers=True))
  found = transfer.rates(params, base)
  query = 'blocks/attention/query'
  assert found[f'{query}/experts/core_0_kernel'] == 16 / (2 * 8)
  assert found[f'{query}/router/kernel'] == 16 / 64


@pytest.mark.parametrize('kind', ['Mixture', 'MixtureFeedForward'])
def test_bad_fields_are_named(kind):
  with pytest.raises(ValueError, match=f'{kind} active=3 must be .* experts=2'):
    getattr(mixture, kind)(experts=2, active=3)


def test_a_balance_without_experts_is_named():
  objective = objectives.NextToken(balance=0.01)
  batch = dict.fromkeys(
    ('ids', 'targets', 'documents', 'mask'), jnp.ones((1, 1), int)
  )
  with pytest.raises(
    ValueError, match=r'balance=0\.01 needs a model of models\.m'
  ):
    objective(lambda *_: jnp.zeros((1, 1, 8)), {}, batch)


def test_no_expert_of_an_expert():
  layer = mixture.MixtureFeedForward(linear=mixture.Mixture(), hidden=8)
  with pytest.raises(ValueError, match='linear=Mixture can be no expert'):
    layer.init(jax.random.key(0), jnp.zeros((1, 2, 4)))
