"""FLOP counts against published numbers and against the traced programs."""

import math
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from configs import blt_1b
from configs import blt_8b
from models import byte_latent
from models import event_lm
from models import execution
from models import flops
from models import linear
from models import lm
from models import masks
from models import mixture
from models import ngrams
from models import patched
from models import patching
from models import stacks
from models import structured
from models import window_attention

NGRAMS = ngrams.NgramEmbedding(sizes=(3,), rows=32)
LM = lm.ByteLM(
  width=24,
  layers=3,
  heads=4,
  key_value_heads=2,
  hidden=40,
  masks=(masks.Causal(window=5), masks.Causal()),
  ngrams=NGRAMS,
)
LOCAL = stacks.Stack(
  width=16, layers=1, heads=2, hidden=40, masks=(masks.Causal(window=8),)
)
BLT = byte_latent.ByteLatent(
  encoder=LOCAL,
  latent=stacks.Stack(
    width=24, layers=3, heads=4, key_value_heads=2, hidden=56, scan_layers=True
  ),
  decoder=LOCAL.copy(layers=2),
  patching=patching.Patching(patching.Space(), max_length=6),
  slots=3,
  reserve=0.4,
  ngrams=NGRAMS,
)
WRAPPED = patched.Patched(entropy=patched.LMEntropy(lm=LM), model=BLT)
# Every role counts another number.
ROLES = linear.Roles(
  structured.LowRank(rank=2),
  attention=structured.BlockTensorTrain(),
  feed_forward=structured.LowRank(rank=3),
  head=structured.Monarch(),
)
LENGTH = 44


def matmul_flops(jaxpr):
  """Two per multiply-add of every dot_general, as often as it runs."""
  total = 0
  for equation in jaxpr.eqns:
    inner = sum(
      matmul_flops(getattr(value, 'jaxpr', value))
      for value in equation.params.values()
      if isinstance(value, core.ClosedJaxpr | core.Jaxpr)
    )
    total += inner * equation.params.get('length', 1)
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      left = equation.invars[0].aval.shape
      total += (
        2
        * math.prod(equation.outvars[0].aval.shape)
        * math.prod(left[axis] for axis in contracted)
      )
  return total


def traced(model, *, rows=1, length=LENGTH, gradient=False):
  """Matmul FLOPs per byte of the program that a model is."""
  ids = jnp.ones((rows, length), jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), ids)['params']

  def forward(params):
    return model.apply({'params': params}, ids)[0].sum()

  function = jax.grad(forward) if gradient else forward
  # How often a loop over tiles of experts runs is not told by the program.
  with mock.patch.object(execution, 'tiles_in_turn', lambda: False):
    jaxpr = jax.make_jaxpr(function)(params).jaxpr
  return matmul_flops(jaxpr) / (rows * length)


def weighted_sums(model):
  """The sums of an encoder's values, which are no dot_general but count."""
  latent = isinstance(model, byte_latent.ByteLatent)
  return 2 * model.slots * model.encoder.width if latent else 0


@pytest.mark.parametrize(
  'model',
  [
    LM,
    LM.copy(tie_head=True, query_key_norm=True),
    LM.copy(linear=structured.BlockTensorTrain(rank=2)),
    LM.copy(linear=structured.LowRank(rank=3), masks=(masks.Causal(),)),
    LM.copy(masks=(masks.Causal(window=40),)),
    BLT,
    BLT.copy(latent=BLT.latent.copy(width=48), reserve=0.9),
    BLT.copy(rows=2),
    BLT.copy(linear=structured.Monarch(blocks=4)),
    LM.copy(linear=ROLES),
    BLT.copy(linear=ROLES),
    LM.copy(linear=mixture.Mixture(experts=3)),
    LM.copy(feed_forward=mixture.MixtureFeedForward(experts=5, active=1)),
    BLT.copy(linear=mixture.Mixture(experts=3, active=1)),
  ],
  ids=lambda m: type(m).__name__,
)
def test_count_is_that_of_the_traced_program(model):
  # As `traced`: tiles that run in turn have rows of their own.
  with mock.patch.object(execution, 'tiles_in_turn', lambda: False):
    found = flops.computed(model, length=LENGTH, rows=2)
  expected = traced(model, rows=2) + weighted_sums(model)
  assert found.total == pytest.approx(expected, rel=1e-12)


EVENTS = event_lm.EventLM(
  trunk=stacks.Stack(width=16, layers=1, heads=2, hidden=24),
  columns=(100, 6, 5, 4),
  stride=2,
  cell_width=8,
)


def test_cells_read_their_history_once_per_group():
  deeper = EVENTS.clone(trunk=EVENTS.trunk.copy(layers=3))
  # Two positions for four cells, of which a query sees half on average.
  positions = LENGTH // 2
  block = 4 * 16**2 + 3 * 16 * 24
  for count, keys in (
    (flops.per_byte, (positions + 1) / 2),
    (flops.computed, positions),
  ):
    parts, more = (count(m, length=LENGTH) for m in (EVENTS, deeper))
    added = 2 * 2 * 0.5 * (block + 2 * 16 * keys)
    assert more.total - parts.total == pytest.approx(added)
    assert parts.latent == pytest.approx(added / 2)
    assert more.decoder == parts.decoder > 0


def test_heads_of_cells_are_as_wide_as_their_columns():
  wide = EVENTS.clone(columns=(300, 6, 5, 4))
  parts, more = (flops.per_byte(m, length=LENGTH) for m in (EVENTS, wide))
  # One cell in four has 200 ids more.
  assert more.total - parts.total == pytest.approx(2 * 8 * 200 / 4)


@pytest.mark.parametrize('window', [40, None])
def test_count_is_nearly_that_of_xla(window):
  # XLA also counts what is no matmul: a tenth here, as widths are small. It
  # counts a loop once, so rows are a single block.
  model = LM.copy(masks=(masks.Causal(window),), width=128, hidden=320)
  ids = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), ids)
  lowered = jax.jit(model.apply).lower(params, ids)
  measured = lowered.cost_analysis()['flops'] / LENGTH
  found = flops.computed(model, length=LENGTH).total
  assert found < measured < 1.1 * found


def test_training_is_three_forward_passes():
  model = LM.copy(masks=(masks.Causal(), masks.Causal(40)))
  parts = flops.computed(model, length=LENGTH)
  assert flops.training(model, parts) == 3 * parts.total
  found = traced(model, gradient=True)
  assert found == pytest.approx(3 * parts.total, rel=1e-12)


@pytest.mark.parametrize(
  'mask',
  [masks.Causal(5), masks.Lambda(3, 5), masks.Lambda(3, 34), masks.Causal()],
)
def test_blocks_compute_their_logits_twice_in_training(mask, monkeypatch):
  monkeypatch.setattr(window_attention, '_MOST_AT_ONCE', 40)
  model = LM.copy(masks=(mask,))
  total = flops.computed(model, length=LENGTH).total
  assert traced(model) == pytest.approx(total, rel=1e-12)
  again = model.layers * model.width * flops.computed_keys(mask, LENGTH)
  found = traced(model, gradient=True)
  # The forward pass that is differentiated also lists what XLA then drops.
  assert found == pytest.approx(3 * total + 4 * again, rel=1e-12)


@pytest.mark.parametrize('scan', [False, True])
def test_remat_runs_blocks_once_more_but_for_their_last_matmul(scan):
  model = LM.copy(remat=True, scan_layers=scan, masks=(masks.Causal(),))
  parts = flops.computed(model, length=LENGTH)
  last = 2 * model.layers * model.width * model.hidden
  assert flops.training(model, parts) == 3 * parts.total + parts.decoder
  assert traced(model, gradient=True) == pytest.approx(
    3 * parts.total + parts.decoder - last, rel=1e-12
  )


def test_remat_of_one_stack_repeats_that_stack():
  parts = flops.computed(BLT, length=LENGTH)
  again = BLT.copy(latent=BLT.latent.copy(remat=True))
  more = flops.training(again, parts) - flops.training(BLT, parts)
  assert more == parts.latent > 0


def test_entropy_model_is_listed_apart():
  parts = flops.per_byte(WRAPPED, length=64, patch_bytes=4)
  assert parts[:-1] == flops.per_byte(BLT, length=64, patch_bytes=4)[:-1]
  assert parts.entropy == flops.per_byte(LM, length=64).total
  assert parts.total == sum(parts[:-1])
  assert flops.training(WRAPPED, parts) == 3 * parts.total
  bare = flops.per_byte(WRAPPED.copy(entropy=None), length=64, patch_bytes=4)
  assert bare == parts._replace(entropy=0.0)


def test_entropy_model_adds_its_forward_pass_to_the_program():
  rule = patching.Patching(patching.Entropy(1.0), max_length=6)
  wrapped = WRAPPED.copy(model=BLT.copy(patching=rule))
  parts = flops.computed(wrapped, length=LENGTH)
  expected = traced(wrapped) + weighted_sums(BLT)
  assert parts.total + parts.entropy == pytest.approx(expected, rel=1e-12)


class Odd(masks.Causal):
  """Sees every second key and itself."""

  def allows(self, query_position, key_position):
    same = (query_position - key_position) % 2 == 0
    return super().allows(query_position, key_position) & same


@pytest.mark.parametrize('length', [1, 7, 8, 9, 600])
@pytest.mark.parametrize(
  'mask',
  [
    masks.Causal(),
    masks.Causal(8),
    masks.Causal(1),
    masks.Lambda(3, 8),
    masks.Lambda(9, 1),
    Odd(8),
    Odd(),
  ],
)
def test_visible_keys_are_those_of_the_mask(mask, length):
  query, key = np.arange(length)[:, None], np.arange(length)[None]
  seen = np.mean(np.sum(mask.allows(query, key), axis=1))
  assert flops.visible_keys(mask, length) == pytest.approx(seen, rel=1e-12)


def test_each_query_sees_as_many_keys_between_as_there_are():
  mask, length = masks.Lambda(n_global=2, n_local=3, top_k=4), 50
  seen = sum(
    min(i + 1, 3) + min(max(i - 2, 0), 2) + min(max(i - 4, 0), 4)
    for i in range(length)
  )
  assert flops.visible_keys(mask, length) == seen / length


def published(size, patch_bytes, length=8192, window=512):
  """The paper's formula: hidden widths of 8/3, means of windows as of rows."""

  def stack(layers, width, context):
    return (24 * width + 2 * (context + 1)) * layers * width

  d, k = size.local_width, size.slots
  context = length / patch_bytes
  latent = stack(size.latent_layers, size.latent_width, context) / patch_bytes
  local = stack(1 + size.decoder_layers, d, window) + 2 * d * 256
  crosses = (1 + size.decoder_layers) * 4 * d**2 * (1 + k / patch_bytes)
  pairs = 2 * d * k * (patch_bytes + 1) / patch_bytes
  return (
    latent + local + crosses + pairs + size.decoder_layers * 2 * d * (k + 1)
  )


def sizes_of(model):
  return SimpleNamespace(
    local_width=model.encoder.width,
    decoder_layers=model.decoder.layers,
    latent_width=model.latent.width,
    latent_layers=model.latent.layers,
    slots=model.slots,
  )


@pytest.mark.parametrize(
  ('preset', 'patch_bytes', 'gflops'),
  [(blt_8b, 4.5, 3.34), (blt_1b, 4.5, 0.92), (blt_1b, 6, 0.76),
   (blt_1b, 8, 0.64)],
)  # fmt: skip
def test_count_is_the_published_one(preset, patch_bytes, gflops):
  model = preset.get_config().model
  parts = flops.per_byte(model, length=8192, patch_bytes=patch_bytes)
  formula = published(sizes_of(model.model), patch_bytes)
  assert formula / 1e9 == pytest.approx(gflops, rel=0.006)
  # Hidden widths are rounded up, windows are full but at a row's start.
  counted = parts.total - parts.patch_projections
  assert 0 <= counted / formula - 1 < 0.04
  assert parts.patch_projections < 0.012 * parts.total
  # Twice its weights, and its attention to 496 keys on average.
  weights = 2 * (99.5e6 - 260 * 768)
  assert parts.entropy == pytest.approx(
    weights + 4 * 768 * 14 * (512 - 512 * 511 / 2 / 8192), rel=1e-3
  )


def test_bad_lengths_and_unknown_parts_say_so():
  with pytest.raises(ValueError, match=r'patch_bytes=0\.5 must be at least 1'):
    flops.per_byte(BLT, length=8, patch_bytes=0.5)
  with pytest.raises(ValueError, match='SimpleNamespace has no FLOP count'):
    flops.per_byte(SimpleNamespace(), length=8)
  with pytest.raises(ValueError, match='linear=Stack has no FLOP count'):
    flops.per_byte(LM.copy(linear=LOCAL), length=8)
