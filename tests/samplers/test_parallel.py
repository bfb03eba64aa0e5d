"""Rows on several devices are the rows of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers import chain
from samplers import loop
from samplers import parallel
from samplers import truncation
from tests.models import small_lm

# A window, n-grams and recall, in one layer.
SIZES = small_lm.SIZES | {'layers': 1}
MODEL = small_lm.lm.ByteLM(
  **SIZES | small_lm.EXTRAS | {'masks': small_lm.EXTRAS['masks'][:1]}
)


def step(params, ids_BT, documents_BT, cache):
  return MODEL.apply({'params': params}, ids_BT, documents_BT, cache)


def make_rows(count):
  ids_BT = np.random.default_rng(0).integers(4, 260, (count, 7))
  return (
    jnp.asarray(ids_BT.astype(np.int32)),
    jnp.asarray(np.arange(count, dtype=np.int32) % 7 + 1),
    jax.random.split(jax.random.key(1), count),
  )


@pytest.mark.parametrize(
  ('count', 'devices'), [
    pytest.param(4, 4, marks=pytest.mark.slow),
    (6, 2),
    pytest.param(3, 1, marks=pytest.mark.slow),
  ],
)
def test_rows_apart_are_rows_together(count, devices):
  """A sampler that remembers; several calls; rows that end at other times."""
  params, rows = small_lm.draw(MODEL), make_rows(count)
  # Ids are an array, but not one with a row for each.
  sampler = chain.parse('deny(0-3)|repetition(1.3)|temperature(0.9)')
  stop_ids = tuple(range(4, 40))

  def init_cache(count):
    return MODEL.init_cache(count, 7 + 12)

  expected = loop.generate(
    step, params, init_cache(count), *rows, sampler,
    num_tokens=12, stop_ids=stop_ids,
  )  # fmt: skip
  assert len(set(np.asarray(expected.length_B).tolist())) > 1
  decoder = parallel.build(
    step, params, init_cache, rows, sampler,
    capacity=12, num_steps=4, stop_ids=stop_ids,
  )  # fmt: skip
  state = decoder.start(rows)
  assert len(state.done_B.sharding.device_set) == devices
  for _ in range(3):
    state = decoder.go_on(state)
  np.testing.assert_array_equal(state.ids_BN, expected.ids_BN)
  np.testing.assert_array_equal(state.length_B, expected.length_B)
  assert np.all(state.done_B)


def test_knobs_of_every_row_stay_with_their_rows():
  """Half of the rows are greedy: cut or repeated knobs would move that."""
  params, rows = small_lm.draw(MODEL), make_rows(4)
  sampler = chain.Chain(
    (truncation.Temperature(jnp.array([0.0, 3.0, 3.0, 0.0])),)
  )
  expected = loop.generate(
    step, params, MODEL.init_cache(4, 12), *rows, sampler, num_tokens=5
  )
  decoder = parallel.build(
    step, params, lambda count: MODEL.init_cache(count, 12), rows, sampler,
    capacity=5, num_steps=5,
  )  # fmt: skip
  found = decoder.go_on(decoder.start(rows))
  np.testing.assert_array_equal(found.ids_BN, expected.ids_BN)


def test_a_cache_with_rows_on_its_second_axis():
  """Stacked layers: the axis is found, not assumed."""
  model = small_lm.lm.ByteLM(**SIZES, scan_layers=True)
  params, rows = small_lm.draw(model), make_rows(4)

  def scanned(params, ids_BT, documents_BT, cache):
    return model.apply({'params': params}, ids_BT, documents_BT, cache)

  decoder = parallel.build(
    scanned, params, lambda count: model.init_cache(count, 9), rows,
    chain.parse('greedy'), capacity=2, num_steps=2,
  )  # fmt: skip
  state = decoder.start(rows)
  assert state.cache.layers.key_BGSK.sharding.spec[:2] == (None, 'rows')
  expected = loop.generate(
    scanned, params, model.init_cache(4, 9), *rows, chain.parse('greedy'),
    num_tokens=2,
  )  # fmt: skip
  np.testing.assert_array_equal(decoder.go_on(state).ids_BN, expected.ids_BN)
