"""The kernels for GPUs, interpreted, against all pairs in float64."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import attention
from models import execution
from models import fused_window
from models import masks
from models import positions
from tests.models import lambda_reference as reference
from tests.models import triton_modules

ROTARY = positions.Rotary(theta=100.0)
ALIBI = positions.Alibi()
AUTO = (jax.sharding.AxisType.Auto,) * 2
BATCH, LENGTH, HEADS, WIDTH = 2, 75, 4, 16
# Masks, positions, heads of keys. Tiles have 16 tokens.
CASES = {
  'grouped': (masks.Lambda(n_global=3, n_local=20), ROTARY, 2),
  'two tiles of sinks': (masks.Lambda(18, 16, sinks='cache'), ALIBI, 1),
  'limit': (masks.Lambda(n_global=2, n_local=33, limit=5), ALIBI, 4),
  'window': (masks.Causal(window=10), ROTARY, 4),
  'causal': (masks.Causal(), ALIBI, 2),
}


@pytest.fixture
def interpreted(monkeypatch):
  """Attention takes the kernels, with small tiles, and a CPU reads them."""
  monkeypatch.setattr(fused_window, '_MOST', 16 * 4)
  monkeypatch.setattr(execution, 'fuses_attention', lambda length: True)
  attend = functools.partial(fused_window.attend, interpret=True)
  monkeypatch.setattr(fused_window, 'attend', attend)


def passes(mask, position, arrays, documents, cotangent):
  """Outputs and gradients of whole rows."""
  tokens = masks.row_tokens(documents)
  width = arrays[0].shape[3]
  turn = position.turn(tokens.position_BT, width)
  heads = arrays[0].shape[2], arrays[1].shape[2]
  layer = attention.Attention(
    *heads, width, mask, False, 'float32', position=position
  )
  out, pull = jax.vjp(lambda *x: layer.mix(*x, tokens, turn)[0], *arrays)
  return out, *pull(cotangent)


def draw(seed, groups, length=LENGTH, width=WIDTH):
  """Queries, keys, values and the gradient of the output."""
  rng = np.random.default_rng(seed)
  shapes = [(BATCH, length, heads, width) for heads in (HEADS, groups)]
  arrays = [rng.normal(size=shapes[i]) for i in (0, 1, 1, 0)]
  arrays[0] *= 2
  return [x.astype(np.float32) for x in arrays]


def expected(mask, position, arrays, documents, cotangent):
  if type(mask) is masks.Causal:
    # One that has no sinks, as the reference reads it.
    mask = types.SimpleNamespace(
      **vars(masks.Lambda(n_local=mask.window or LENGTH)) | {'n_global': 0}
    )
  return reference.rows(arrays, documents, mask, position, cotangent)


def packed(seed):
  """A row of a short, a long and a padded part, and one of any others."""
  documents = reference.draw_documents(
    np.random.default_rng(seed), BATCH, LENGTH, 6
  )
  documents[0] = np.repeat([3, 0, 1, 2], [9, 4, 55, LENGTH - 68])
  return documents


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name == 'limit'))
    for name in CASES
  ],
)
def test_rows_and_their_gradients_are_those_of_all_pairs(name, interpreted):
  mask, position, groups = CASES[name]
  run = jax.jit(functools.partial(passes, mask, position))
  for seed, documents in enumerate(
    (np.ones((BATCH, LENGTH), np.int32), packed(1), packed(2))
  ):
    *arrays, cotangent = draw(seed, groups)
    found = run(arrays, documents, cotangent)
    wanted = expected(mask, position, arrays, documents, cotangent)
    for a, b in zip(found, wanted, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))
  if name != 'window':
    return
  # What tiles cannot see is not read: tile 2 needs nothing of tiles 0 and 4.
  whole = run(arrays, documents, cotangent)
  for x in (*arrays, cotangent):
    x[:, :16] = x[:, 64:] = np.nan
  for a, b in zip(run(arrays, documents, cotangent), whole, strict=True):
    np.testing.assert_array_equal(a[:, 32:48], b[:, 32:48])
    assert np.isnan(a[:, :16]).any()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['limit', 'causal'])
def test_devices_of_a_mesh_share_rows_and_heads(name, interpreted):
  mask, position, groups = CASES[name]
  *arrays, cotangent = draw(4, groups)
  documents = packed(4)
  run = jax.jit(functools.partial(passes, mask, position))
  with jax.set_mesh(jax.make_mesh((2, 2), ('fsdp', 'tensor'), axis_types=AUTO)):
    text = run.lower(arrays, documents, cotangent).as_text()
    found = run(arrays, documents, cotangent)
  assert 'manual_computation' in text or 'shard_map' in text
  wanted = expected(mask, position, arrays, documents, cotangent)
  for a, b in zip(found, wanted, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.slow
def test_bfloat16_rounds_to_what_is_near(interpreted):
  mask, position, groups = CASES['grouped']
  arrays = [jnp.asarray(x, jnp.bfloat16) for x in draw(6, groups)]
  documents = packed(3)
  *arrays, cotangent = arrays
  found = passes(mask, position, arrays, documents, cotangent)
  arrays = [np.asarray(x, np.float64) for x in arrays]
  wanted = expected(mask, position, arrays, documents, np.float64(cotangent))
  for a, b in zip(found, wanted, strict=True):
    assert a.dtype == jnp.bfloat16
    assert np.linalg.norm(np.float64(a) - b) < 2**-6 * np.linalg.norm(b)


LOWERED = [
  (masks.Lambda(n_global=10, n_local=256), ROTARY, 128, 4, 'bfloat16'),
  (masks.Lambda(100, 200, sinks='cache'), ALIBI, 64, 4, 'float32'),
  pytest.param(
    *(masks.Causal(), ROTARY, 64, 3, 'bfloat16'), marks=pytest.mark.slow
  ),
]


@pytest.mark.parametrize(
  ('mask', 'position', 'width', 'count', 'dtype'), LOWERED
)
def test_they_lower_to_triton_for_a_gpu(
  mask, position, width, count, dtype, monkeypatch
):
  monkeypatch.setattr(execution, 'fuses_attention', lambda length: True)
  shapes = [(1, 700, heads, width) for heads in (6, 2, 2, 6)]
  *arrays, cotangent = (jax.ShapeDtypeStruct(s, dtype) for s in shapes)
  documents = jax.ShapeDtypeStruct((1, 700), jnp.int32)
  run = jax.jit(functools.partial(passes, mask, position))
  traced = run.trace(arrays, documents, cotangent)
  lowered = traced.lower(lowering_platforms=('cuda',))
  # Forward, and gradients of queries, keys and, if there are any, sinks.
  assert triton_modules.count(lowered) == count


@pytest.mark.parametrize(
  ('mask', 'width', 'dtype', 'side'),
  [
    (masks.Causal(), 64, 'bfloat16', 64),
    (masks.Causal(), 128, 'bfloat16', 64),
    (masks.Causal(), 64, 'float32', 32),
    (masks.Causal(window=3), 256, 'float32', 16),
    (masks.Lambda(n_global=3, n_local=63), 32, 'bfloat16', 32),
    (masks.Lambda(n_global=3, n_local=16), 32, 'bfloat16', 16),
  ],
)
def test_tiles_have_sinks_of_one_document(mask, width, dtype, side):
  assert fused_window.side(mask, 4096, width, dtype) == side
  assert fused_window.side(mask, 20, width, dtype) == min(side, 32)


def test_attention_takes_them_on_a_gpu_where_they_are_of_use(monkeypatch):
  def fuses(mask, length=256, width=16):
    shape = (1, length, 2, width)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32)] * 3
    documents = jax.ShapeDtypeStruct(shape[:2], jnp.int32)
    run = functools.partial(passes, mask, ALIBI)
    return 'pallas_call' in str(
      jax.make_jaxpr(run)(arrays, documents, arrays[0])
    )

  assert not fuses(masks.Causal())
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert fuses(masks.Causal()) and fuses(masks.Lambda(n_local=16))
  assert not fuses(masks.Causal(), length=255)
  assert not fuses(masks.Causal(), width=24)
  assert not fuses(masks.Causal(), width=8)
  assert not fuses(masks.Lambda(n_local=15))
  assert not fuses(masks.Lambda(n_local=16, top_k=2))
  # One row for two devices, and parts of rows.
  for axis in ('data', 'sequence'):
    with jax.set_mesh(jax.make_mesh((2,), (axis,), axis_types=AUTO[:1])):
      assert not fuses(masks.Causal())
  with jax.set_mesh(jax.make_mesh((2,), ('tensor',), axis_types=AUTO[:1])):
    assert fuses(masks.Causal())
