"""One training step: its loss, its gradients in parts, and what it refuses."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models import byte_latent
from models import forward
from models import lm
from models import patching
from models import stacks
from training import logger
from training import metrics
from training import objectives
from training import optimizer
from training import step as step_lib

MODEL = lm.ByteLM(width=16, layers=1, heads=2, key_value_heads=1, hidden=16)
APPLY = forward.pure(MODEL)


def make_batch(rows=8, length=12, seed=0):
  """Rows that hold from no target at all to a full row of them."""
  rng = np.random.default_rng(seed)
  ids_BT = rng.integers(4, 260, (rows, length + 1))
  kept_B = np.linspace(0, length, rows).astype(int)
  mask_BT = np.arange(length)[None] < kept_B[:, None]
  return {
    'ids': jnp.asarray(ids_BT[:, :-1], jnp.int32),
    'targets': jnp.asarray(ids_BT[:, 1:], jnp.int32),
    'documents': jnp.ones((rows, length), jnp.int32),
    'mask': jnp.asarray(mask_BT, jnp.float32),
  }


@pytest.fixture(scope='module')
def params():
  """Initial parameters, moved off the zeros that some of them begin with."""
  ids_BT = np.zeros((1, 4), np.int32)
  params = jax.jit(MODEL.init)(jax.random.key(0), ids_BT)['params']
  rng = np.random.default_rng(1)

  def moved(x):
    noise = 0.1 * rng.normal(size=x.shape)
    return jnp.asarray((np.asarray(x) + noise).astype(np.float32))

  return jax.tree.map(moved, params)


STATIC = ('objective', 'apply', 'accumulate')
ADAM = optimizer.AdamW(learning_rate=3e-3, warmup_steps=0).build(99)
OBJECTIVE = objectives.NextToken(z_loss=0.01)
gradients = jax.jit(step_lib.gradients, static_argnames=STATIC)
jitted_step = jax.jit(
  step_lib.train_step, static_argnames=(*STATIC, 'optimizer')
)


def train_step(state, batch, transformation, apply=APPLY):
  return jitted_step(
    state, batch, objective=OBJECTIVE, apply=apply, optimizer=transformation
  )


def assert_same(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize('z_loss', [0.0, 0.3])
def test_next_token_agrees_with_float64(z_loss):
  batch = make_batch()
  logits_BTV = np.random.default_rng(1).normal(0, 3, (8, 12, 260))

  def apply(params, ids_BT, documents_BT):
    np.testing.assert_array_equal(ids_BT, batch['ids'])
    np.testing.assert_array_equal(documents_BT, batch['documents'])
    return params

  sums = objectives.NextToken(z_loss=z_loss)(
    apply, jnp.asarray(logits_BTV, jnp.float32), batch
  )
  log_z_BT = np.log(np.exp(logits_BTV).sum(-1))
  nats = squares = count = 0.0
  for row, column in np.argwhere(np.asarray(batch['mask'])):
    target = int(batch['targets'][row, column])
    nats += log_z_BT[row, column] - logits_BTV[row, column, target]
    squares += log_z_BT[row, column] ** 2
    count += 1
  assert float(sums.count) == count == sum(np.linspace(0, 12, 8).astype(int))
  np.testing.assert_allclose(sums.metrics['nats'], nats, rtol=1e-6)
  np.testing.assert_allclose(sums.loss, nats + z_loss * squares, rtol=1e-6)


def test_next_token_reads_low_precision_logits_in_float32():
  batch = make_batch()
  low_BTV = jax.random.normal(jax.random.key(0), (8, 12, 260), jnp.bfloat16)
  objective = objectives.NextToken(z_loss=0.1)
  low = objective(lambda params, *_: params, low_BTV, batch)
  high = objective(
    lambda params, *_: params, low_BTV.astype(jnp.float32), batch
  )
  assert low.loss.dtype == jnp.float32
  np.testing.assert_array_equal(low.loss, high.loss)


@pytest.mark.parametrize('accumulate', [2, 8])
def test_accumulation_equals_the_big_batch(params, accumulate):
  batch = make_batch()
  sums, grads = gradients(OBJECTIVE, APPLY, params, batch, accumulate=1)
  part_sums, part_grads = gradients(
    OBJECTIVE, APPLY, params, batch, accumulate=accumulate
  )
  assert float(part_sums.count) == float(sums.count)
  np.testing.assert_allclose(part_sums.loss, sums.loss, rtol=1e-6)
  for a, b in zip(
    jax.tree.leaves(part_grads), jax.tree.leaves(grads), strict=True
  ):
    assert np.abs(b).max() > 1e-5, 'a gradient of zero proves nothing'
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_gradient_is_that_of_the_mean_over_targets(params):
  batch = make_batch()

  def mean(scale):
    scaled = jax.tree.map(lambda x: np.float32(scale) * np.asarray(x), params)
    sums, _ = gradients(OBJECTIVE, APPLY, scaled, batch, accumulate=1)
    return sums.loss / sums.count

  _, grads = gradients(OBJECTIVE, APPLY, params, batch, accumulate=1)
  products = jax.tree.map(
    lambda x, y: np.vdot(np.asarray(x), np.asarray(y)), params, grads
  )
  slope = (mean(1 + 1e-2) - mean(1 - 1e-2)) / 2e-2
  np.testing.assert_allclose(sum(jax.tree.leaves(products)), slope, rtol=1e-2)


def test_step_lowers_the_loss_and_reports_it(params):
  batch = make_batch()
  state = step_lib.create(params, ADAM, jax.random.key(0))
  state, first = train_step(state, batch, ADAM)
  state, second = train_step(state, batch, ADAM)
  assert float(second.loss) < float(first.loss)
  assert float(second.means['nats']) < float(first.means['nats'])
  assert int(state.step) == 2
  sums, grads = gradients(OBJECTIVE, APPLY, params, batch, accumulate=1)
  leaves = jax.tree.leaves(jax.device_get(grads))
  norm = np.sqrt(sum(np.sum(np.square(g)) for g in leaves))
  np.testing.assert_allclose(first.gradient_norm, norm, rtol=1e-5)
  np.testing.assert_allclose(first.loss, sums.loss / sums.count, rtol=1e-6)
  np.testing.assert_allclose(
    first.means['nats'], sums.metrics['nats'] / sums.count, rtol=1e-6
  )
  assert float(first.targets) == float(batch['mask'].sum())
  assert bool(first.finite)


@pytest.mark.parametrize('poison', [np.nan, np.inf])
def test_batch_that_is_not_finite_changes_nothing_but_the_count(params, poison):
  state = step_lib.create(params, ADAM, jax.random.key(0))
  good = make_batch(seed=1)
  state, _ = train_step(state, good, ADAM)
  bad = make_batch()
  bad['mask'] = bad['mask'].at[3, 2].set(poison)
  after, metrics = train_step(state, bad, ADAM)
  assert not metrics.finite
  assert_same(after.params, state.params)
  assert_same(after.optimizer, state.optimizer)
  assert int(after.step) == int(state.step) + 1
  # What comes next is as if the bad batch had never been.
  after, metrics = train_step(after, good, ADAM)
  state, _ = train_step(state, good, ADAM)
  assert metrics.finite
  assert_same(after.params, state.params)
  assert_same(after.optimizer, state.optimizer)


SGD = optax.sgd(0.1)


def test_gradient_that_is_not_finite_is_caught_though_the_loss_is():
  def apply(params, ids_BT, documents_BT):
    del documents_BT
    # The slope of the square root at 0 is infinite.
    return jnp.sqrt(params)[None, None] * jnp.ones((*ids_BT.shape, 1))

  params = jnp.zeros(260).at[5].set(1.0)
  state = step_lib.create(params, SGD, jax.random.key(0))
  after, metrics = train_step(state, make_batch(), SGD, apply)
  assert np.isfinite(metrics.loss)
  assert not metrics.finite
  assert_same(after.params, params)


def test_batch_without_targets_moves_nothing():
  batch = make_batch()
  batch['mask'] = jnp.zeros_like(batch['mask'])
  params = jax.random.normal(jax.random.key(0), (260, 260))
  state = step_lib.create(params, SGD, jax.random.key(0))
  after, metrics = train_step(
    state, batch, SGD, lambda params, ids_BT, _: params[ids_BT]
  )
  assert metrics.finite
  assert float(metrics.loss) == 0
  assert_same(after.params, params)


def test_what_a_model_counts_is_reported_per_target(tmp_path):
  """A patch per byte, and room for 16 of a row's 31, which is said once."""
  stack = stacks.Stack(16, 1, 2, 16)
  model = byte_latent.ByteLatent(
    encoder=stack,
    latent=stack,
    decoder=stack,
    patching=patching.Patching(patching.EveryByte()),
    reserve=0.5,
  )
  batch = make_batch(2, 31) | {'mask': jnp.ones((2, 31))}
  shapes = jax.eval_shape(model.init, jax.random.key(0), batch['ids'])
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape).astype(np.float32)),
    shapes['params'],
  )
  state = step_lib.create(params, ADAM, jax.random.key(0))
  _, found = train_step(state, batch, ADAM, forward.counted(model))
  fits = found._replace(means=found.means | {'overflow': jnp.float32(0.0)})
  said = []
  progress = types.SimpleNamespace(report=lambda *_: None, say=said.append)
  with metrics.Writer(tmp_path) as writer:
    log = logger.Logger(
      writer, lambda step: 0.1 * step,
      start=0, steps=9, every=1, bytes_per_step=62,
    )  # fmt: skip
    log.log((1, fits), progress)
    assert not said
    for number in (2, 3):
      log.log((number, found), progress)
  _, second, _ = metrics.read(tmp_path)
  assert second['train/patches'] == pytest.approx(16 / 31)
  assert second['train/overflow'] == pytest.approx(15 / 31)
  assert said == [
    'step 2: 48.4% of the bytes are in patches without room, as'
    " metrics' train/overflow counts; raise the reserve of the model or its"
    ' mean patch length (see patches.py).'
  ]
