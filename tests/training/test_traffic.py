"""What devices send, by hand, for every axis of a mesh."""

import jax
import jax.numpy as jnp
import pytest

from training import estimate
from training import sharding
from training import traffic

IDS = 64
# Widths of a block: 8 into 16 and back; queries and keys share their input.
MATRICES = 3 * 8 * 16
USES = (
  traffic.Use('block/query', 8, 16, 1.0),
  traffic.Use('block/key', 8, 16, 1.0),
  traffic.Use('block/output', 16, 8, 1.0),
)
REST = 8


def shapes(**more):
  params = {
    'block': {
      'query': {'kernel': (8, 16)},
      'key': {'kernel': (8, 16)},
      'output': {'kernel': (16, 8)},
      'norm': {'scale': (REST,)},
    }
  }
  return jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
    params | more,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def sent(params=None, *, uses=USES, parts=1, how=None, **mesh):
  devices = 1
  for size in mesh.values():
    devices *= size
  mesh = estimate.abstract_mesh(sharding.MeshShape(**mesh), devices)
  step = traffic.Step(mesh, sharding.EXPERTS, IDS, parts, **(how or {}))
  params = shapes() if params is None else params
  return {
    (one.what, one.kind, *one.axes): one.size
    for one in traffic.sent(step, params, uses)
  }


def test_one_device_sends_nothing():
  assert not sent(data=1)


def test_copies_sum_their_gradients():
  found = sent(data=4)
  expected = 2 * 3 / 4 * (2 * MATRICES + 4 * REST)
  assert found == {('gradients', 'all-reduce', 'data'): expected}


def test_split_weights_are_gathered_twice_and_scattered_once():
  assert sent(fsdp=4) == {
    ('weights', 'all-gather', 'fsdp'): 2 * 3 / 4 * 2 * MATRICES,
    ('gradients', 'reduce-scatter', 'fsdp'): 3 / 4 * 2 * MATRICES,
    ('gradients', 'all-reduce', 'fsdp'): 2 * 3 / 4 * 4 * REST,
  }
  # A quarter of the matrices on each device, over two copies.
  both = sent(fsdp=4, data=2)
  assert both['gradients', 'all-reduce', 'data'] == 2 * MATRICES / 4


def test_looked_up_rows_are_those_of_all_that_share_the_table():
  table = {'ngram_embed': {'table_3': (32, 8), 'table_4': (32, 8)}}
  plain, found = sent(fsdp=4, data=2), sent(shapes(**table), fsdp=4, data=2)
  rows = 4 * IDS / 2 * 8
  # The sums of all tables, not the rows of each.
  assert found['looked-up rows', 'reduce-scatter', 'fsdp'] == 3 / 4 * rows
  assert found['looked-up rows', 'all-gather', 'fsdp'] == 3 / 4 * rows
  more = (
    found['gradients', 'all-reduce', 'data']
    - plain['gradients', 'all-reduce', 'data']
  )
  assert more == 4 * 2 * 32 * 8 / 4


def test_megatron_layers_sum_twice():
  found = sent(tensor=2, data=2)
  # Forward after the output, backward before what queries and keys share.
  states = 2 * (IDS / 2) * 8
  expected = 2 * 2 * 1 / 2 * states
  assert found['hidden states', 'all-reduce', 'tensor'] == expected
  assert found['gradients', 'all-reduce', 'data'] == MATRICES + 4 * REST


def test_parts_of_rows_send_keys_and_sum_all_gradients():
  assert sent(sequence=4) == {
    ('gradients', 'all-reduce', 'sequence'): 3 * MATRICES + 6 * REST,
    ('keys, values', 'all-gather', 'sequence'): 3 / 4 * 2 * IDS * 16,
    ('keys, values', 'reduce-scatter', 'sequence'): 3 / 4 * 2 * IDS * 16,
  }


def test_experts_are_split_and_their_tokens_sorted():
  experts = {
    'layer': {
      'router': {'kernel': (8, 4)},
      'experts': {'core_0_kernel': (4, 1, 8, 16)},
    }
  }
  use = traffic.Use('layer', 8, 16, 0.5, copies=3)
  found = sent(shapes(**experts), uses=(use,), expert=4)
  size = 4 * 8 * 16
  assert found['weights', 'all-gather', 'expert'] == 2 * 3 / 4 * 2 * size
  assert found['gradients', 'reduce-scatter', 'expert'] == 3 / 4 * 2 * size
  tokens = 3 * 0.5 * IDS
  expected = 3 / 4 * 2 * 2 * tokens * (8 + 16)
  assert found['routed tokens', 'all-gather', 'expert'] == expected


def test_what_stands_still_has_no_gradient_and_unread_parts_send_nothing():
  frozen = sent(fsdp=4, how={'frozen': ('block/',)})
  assert frozen == {('weights', 'all-gather', 'fsdp'): 3 / 4 * 2 * MATRICES}
  assert not sent(fsdp=4, how={'unused': ('block/',)})


def test_every_part_of_a_batch_sends_all_that_weights_ask_for():
  once, twice = sent(fsdp=4), sent(fsdp=4, parts=2)
  assert twice == {key: 2 * size for key, size in once.items()}


def test_bytes_by_rings():
  assert traffic.gathered(8.0, 4) == pytest.approx(6.0)
  assert traffic.summed(8.0, 4) == pytest.approx(12.0)
