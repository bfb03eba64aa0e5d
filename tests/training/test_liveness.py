"""Estimated memory of programs, by hand and against XLA's own plan."""

import jax
import jax.numpy as jnp
import pytest

from models import byte_latent
from models import forward
from models import lm
from models import masks
from models import ngrams
from models import stacks
from training import liveness
from training import objectives

X = jax.ShapeDtypeStruct((10, 100), jnp.float32)
SIZE = 4000


def chain(x):
  return jnp.tan(jnp.cos(jnp.sin(x)))


def kept(x):
  first = jnp.sin(x)
  return jnp.cos(jnp.tan(first)) + first


def views(x):
  y = jnp.broadcast_to(jnp.sin(x).reshape(1, 10, 100), (50, 10, 100))
  return jnp.sin(x) + jnp.sum(y.reshape(50, 10, 100), axis=0)


def scanned(x):
  def body(carry, _):
    return jnp.cos(jnp.sin(carry)), carry[0]

  return jax.lax.scan(body, x, None, length=30)


def nested(x):
  return jax.jit(kept)(jnp.sin(x))


@pytest.mark.parametrize(
  ('function', 'most'),
  [
    # One result is read while the next is written.
    (chain, 2 * SIZE),
    # sin and cos, and tan or the sum.
    (kept, 3 * SIZE),
    # A broadcast costs nothing: sin twice and the sum.
    (views, 3 * SIZE),
    # The results: the carry and 30 rows; inside: sin, cos, a row and a view.
    (scanned, SIZE + 30 * 400 + 2 * SIZE + 400),
    # As kept, with its input alive throughout.
    (nested, 4 * SIZE),
    (lambda x: x, 0),
  ],
)
def test_peak_is_that_by_hand(function, most):
  jaxpr = jax.make_jaxpr(function)(X).jaxpr
  assert liveness.peak_bytes(jaxpr) == pytest.approx(most, abs=500)


WINDOW = (masks.Causal(window=32),)
LOCAL = stacks.Stack(32, 1, 2, 96, masks=WINDOW)
LM = lm.ByteLM(32, 3, 2, 2, 96, masks=WINDOW)
BLT = byte_latent.ByteLatent(
  encoder=LOCAL,
  latent=stacks.Stack(48, 2, 2, 128, scan_layers=True, remat=True),
  decoder=LOCAL,
  ngrams=ngrams.NgramEmbedding((3,), rows=64),
)
LENGTH = 256
OBJECTIVE = objectives.NextToken()


def shapes_of(model):
  ids = jnp.ones((1, 8), jnp.int32)
  return jax.eval_shape(model.init, jax.random.key(0), ids)['params']


def estimated(model):
  return liveness.activation_bytes(
    OBJECTIVE, forward.pure(model), shapes_of(model), LENGTH
  )


def planned(model):
  """Bytes per row that XLA's CPU backend sets aside for the gradient."""

  def loss(params, batch):
    return OBJECTIVE(forward.pure(model), params, batch).loss

  def compiled(rows):
    ids = jax.ShapeDtypeStruct((rows, LENGTH), jnp.int32)
    mask = jax.ShapeDtypeStruct((rows, LENGTH), jnp.float32)
    batch = {'ids': ids, 'targets': ids, 'documents': ids, 'mask': mask}
    lowered = jax.jit(jax.grad(loss)).lower(shapes_of(model), batch)
    return lowered.compile().memory_analysis().temp_size_in_bytes

  return (compiled(8) - compiled(4)) / 4


@pytest.mark.parametrize(
  'model',
  [LM.copy(layers=2), LM.copy(scan_layers=True, remat=True)],
  ids=['unrolled', 'remat'],
)
def test_activations_are_about_what_xla_plans(model):
  assert 0.7 < estimated(model) / planned(model) < 1.5


def test_remat_and_windows_save_memory():
  deep = LM.copy(layers=5)
  assert estimated(deep.copy(remat=True)) < 0.5 * estimated(deep)
  everything = LM.copy(masks=(masks.Causal(),), layers=1)
  assert estimated(everything) > 1.15 * estimated(LM.copy(layers=1))
  again = BLT.copy(latent=BLT.latent.copy(remat=False))
  assert estimated(again) > 1.05 * estimated(BLT)


def test_a_part_that_gets_no_gradient_stores_nothing():
  frozen = LM.copy(layers=12, scan_layers=True)
  params = {'own': shapes_of(LM), 'frozen': shapes_of(frozen)}

  def apply(params, ids_BT, documents_BT):
    aside = forward.pure(frozen)(params['frozen'], ids_BT, documents_BT)
    logits_BTV = forward.pure(LM)(params['own'], ids_BT, documents_BT)
    return logits_BTV + jax.lax.stop_gradient(aside)

  more = liveness.activation_bytes(OBJECTIVE, apply, params, LENGTH)
  # The logits that it adds, and no layer of it.
  assert more < 1.2 * estimated(LM)
