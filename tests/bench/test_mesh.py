"""Collectives of HLO texts, by hand and of a program; the compiled step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from bench import collectives
from bench import mesh as bench_mesh
from configs import tiny
from training import estimate
from training import sharding
from training import traffic

MESH = {'data': 2, 'fsdp': 4}
HLO = """\
HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p = (s32[], bf16[8,16]{1,0}) parameter(0)
  %x = bf16[8,16]{1,0} get-tuple-element(%p), index=1
  %gathered = bf16[32,16]{1,0} all-gather(%x), channel_id=1, \
replica_groups=[2,4]<=[8], dimensions={0}, metadata={op_name="layer"}
  %scattered = f32[2,16]{1,0} reduce-scatter(%y), channel_id=2, \
replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%sum
  ROOT %t = (s32[], bf16[8,16]{1,0}) tuple(%i, %x)
}

%condition (p: (s32[], bf16[8,16])) -> pred[] {
  %p.1 = (s32[], bf16[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p.1), index=0
  %limit = s32[] constant(7)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%outer (p: (s32[])) -> (s32[]) {
  %w = (s32[], bf16[8,16]{1,0}) while(%t0), condition=%condition, body=%body
  ROOT %r = (s32[]) tuple(%i)
}

%outer_condition (p: (s32[])) -> pred[] {
  ROOT %less.1 = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[4,4]) -> f32[4,4] {
  %w2 = (s32[]) while(%t1), condition=%outer_condition, body=%outer, \
backend_config={"known_trip_count":{"n":"3"}}
  %far = (f32[4,4]{1,0}, f32[2]{0}) all-reduce(%a, %b), channel_id=3, \
replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%sum
  %turned = f32[8]{0} all-to-all(%c), replica_groups=[4,2]<=[2,4]T(1,0)
  %started = (f32[2]{0}, f32[16]{0}) all-gather-start(%d), \
replica_groups=[1,8]<=[8], dimensions={0}
  %done = f32[16]{0} all-gather-done(%started)
  %next = f32[10]{0} collective-permute(%e), \
source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %named = f32[8]{0} all-reduce(%f), replica_groups=mesh['a'=4,'b'=1,'c'=2], \
device_ids=([2,4]T(1,0)) {'a'}, to_apply=%sum
  %part = f32[8]{0} all-reduce(%g), replica_groups=mesh['a'=8] {'a':(1)2}, \
to_apply=%sum
  %whole = bf16[8,4]{1,0} all-reduce(bf16[8,4]{1,0} %h), channel_id=4, \
replica_groups=[2,4]<=[8], to_apply=%sum
  %mine = bf16[2,4]{1,0} dynamic-slice(bf16[8,4]{1,0} %whole, s32[] %n, \
s32[] %z), dynamic_slice_sizes={2,4}
  %read = bf16[8,4]{1,0} all-reduce(%h), channel_id=5, \
replica_groups=[2,4]<=[8], to_apply=%sum
  %part.1 = bf16[2,4]{1,0} dynamic-slice(%read, %n, %z)
  %all = bf16[8,4]{1,0} add(%read, %h)
  ROOT %out = f32[4,4]{1,0} copy(%x)
}
"""


def test_bytes_of_a_ring_by_hand():
  found = collectives.find(HLO, MESH)
  assert [(c.kind, c.axes, c.times, c.loops) for c in found] == [
    ('all-gather', ('fsdp',), 21, 2),
    ('reduce-scatter', ('fsdp',), 21, 2),
    ('all-reduce', ('data',), 1, 0),
    ('all-to-all', ('data',), 1, 0),
    ('all-gather', ('data', 'fsdp'), 1, 0),
    ('collective-permute', ('fsdp',), 1, 0),
    ('all-reduce', ('fsdp',), 1, 0),
    ('all-reduce', ('data',), 1, 0),
    # Each device goes on with a part of the first, and with all of the second.
    ('reduce-scatter', ('fsdp',), 1, 0),
    ('all-reduce', ('fsdp',), 1, 0),
  ]
  assert [c.size for c in found] == [
    3 / 4 * 2 * 32 * 16,
    3 * 4 * 2 * 16,
    2 * 1 / 2 * 4 * (16 + 2),
    1 / 2 * 4 * 8,
    7 / 8 * 4 * 16,
    4 * 10,
    2 * 3 / 4 * 4 * 8,
    2 * 1 / 2 * 4 * 8,
    3 / 4 * 2 * 32,
    2 * 3 / 4 * 2 * 32,
  ]
  assert found[0].where == 'layer'
  assert found[0].number == 'bf16'
  assert found[0].total == 21 * found[0].size
  rows = list(bench_mesh.rows(found))
  assert sum(row['instructions'] for row in rows) == 10


def test_a_loop_without_a_count_is_refused():
  text = HLO.replace('backend_config={"known_trip_count":{"n":"3"}}', '')
  with pytest.raises(ValueError, match='does not say how often'):
    collectives.find(text, MESH)


def test_collectives_of_a_program_are_found_in_its_loop():
  mesh = sharding.MeshShape(data=2, fsdp=4).build()

  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=P('fsdp'), out_specs=P('fsdp')
  )
  def add(x):
    def step(x, _):
      return 0.5 * jax.lax.psum(x, 'fsdp') + x, None

    return jax.lax.scan(step, x, length=5)[0]

  text = jax.jit(add).lower(jnp.ones((4, 6))).compile().as_text()
  (one,) = collectives.find(text, dict(mesh.shape))
  assert (one.kind, one.axes, one.times, one.loops) == (
    'all-reduce', ('fsdp',), 5, 1
  )  # fmt: skip
  assert one.size == 2 * 3 / 4 * 4 * 6


def test_groups_of_an_unknown_form_are_refused():
  text = HLO.replace('replica_groups={{0,4},{1,5},{2,6},{3,7}}', 'groups=?')
  with pytest.raises(ValueError, match=r'a form that bench\.collectives does'):
    collectives.find(text, MESH)


@pytest.mark.slow
def test_matrices_are_gathered_and_their_gradients_scattered_in_bf16(tmp_path):
  config = tiny.get_config()
  config = dataclasses.replace(
    config,
    model=config.model.copy(
      width=256, hidden=512, layers=3, scan_layers=True, remat=True,
      dtype='bfloat16',
    ),
    accumulate=2,
    batch_size=16,
    mesh=sharding.MeshShape(data=2, fsdp=4),
  )  # fmt: skip
  mesh = config.mesh.build()
  bench_mesh.compile_step(config, mesh, tmp_path)
  found = collectives.find(bench_mesh.partitioned(tmp_path), dict(mesh.shape))
  params = jax.eval_shape(functools.partial(bench_mesh._init, config)).params
  paper = traffic.sent(estimate.planned(config, mesh), params)
  for expected in paper:
    sent = sum(
      one.total
      for one in found
      if (one.kind, one.axes) == (expected.kind, tuple(sorted(expected.axes)))
    )
    same = [x for x in paper if (x.kind, x.axes) == expected[1:3]]
    assert sent == pytest.approx(sum(x.size for x in same), rel=0.1), expected
  large = [one for one in found if one.loops == 2]
  assert {(one.kind, one.number) for one in large if one.size > 1e4} == {
    ('all-gather', 'bf16'), ('reduce-scatter', 'bf16'), ('all-reduce', 'bf16'),
  }  # fmt: skip


@pytest.mark.slow
def test_the_compiled_step_sends_what_paper_says(tmp_path):
  config = tiny.get_config()
  config = dataclasses.replace(
    config,
    model=config.model.copy(
      width=256, hidden=512, layers=4, scan_layers=True, ngrams=type(
        config.model.ngrams
      )(),
    ),
    mesh=sharding.MeshShape(data=8),
  )  # fmt: skip
  bench_mesh.compile_step(config, config.mesh.build(), tmp_path)
  found = collectives.find(bench_mesh.partitioned(tmp_path), {'data': 8})
  params = config.model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  # Gradients are summed over copies, and besides them a few scalars.
  total = sum(one.total for one in found)
  assert total == pytest.approx(2 * 7 / 8 * 4 * size, rel=0.01)
  text = '\n'.join(bench_mesh.report(config))
  assert 'data 8 x fsdp 1 x tensor 1 = 8 virtual devices' in text
  assert '| data |' in text
