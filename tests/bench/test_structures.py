"""The passes that are timed, against NumPy; counts and the floor by hand."""

import re

import numpy as np
import pytest
from absl.testing import flagsaver

from bench import __main__ as bench
from bench import structures
from models import structured
from training import host

SIZE = structures.Size(16, 32)


def test_a_pass_gives_the_output_and_every_gradient():
  layer = structured.LowRank(rank=3)
  run, cost = structures.build(layer, SIZE)
  assert cost == structures.Cost(2 * 16 * 3, 2 * 16 * 3)
  y_TD, (of_params, of_x_TD) = run()
  params, x_TD, change_TD = structures.draw(layer, SIZE)
  first, second = (np.float64(params[f'core_{i}_kernel'][0]) for i in (0, 1))
  x_TD, change_TD = np.float64(x_TD), np.float64(change_TD)
  expected = (
    (y_TD, x_TD @ first @ second),
    (of_x_TD, change_TD @ second.T @ first.T),
    (of_params['core_0_kernel'][0], x_TD.T @ change_TD @ second.T),
    (of_params['core_1_kernel'][0], (x_TD @ first).T @ change_TD),
  )
  for found, wanted in expected:
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_floor_is_the_slower_of_matmuls_and_memory():
  cost = structures.Cost(macs=256, params=256)
  # 6 x 256 x 32 FLOPs; four arrays of 32 x 16 and two of 256, of four bytes.
  assert cost.floor(SIZE, 1.0, 1e9) == 49152
  assert cost.floor(SIZE, 1e9, 1.0) == 4 * (4 * 512 + 512)


def test_rows_compare_with_the_dense_layer(monkeypatch):
  layers = {name: structures.LAYERS[name] for name in ('dense', 'BTT, r=1')}
  monkeypatch.setattr(structures, 'LAYERS', layers)
  dense, btt = structures.rows((SIZE,), 1, 1e12, 1e12)
  assert dense['structure'] == 'dense'
  assert dense['MACs, dense over it'] == '1.00'
  assert dense['speed over dense'].median == 1
  # 16 = 4 x 4: two cores of 4 x 4 x 4.
  assert btt['MACs, dense over it'] == '2.00'
  speed = btt['speed over dense'].median
  slower = float(btt['time per MAC over dense'])
  assert slower == pytest.approx(2 / speed, abs=0.006)


@pytest.mark.slow
def test_the_command_prints_every_structure(capsys, monkeypatch):
  monkeypatch.setattr(host, 'keep_memory', lambda: None)
  with flagsaver.flagsaver(quick=True, rounds=1, only=['structures']):
    bench.main([])
  text = capsys.readouterr().out
  rows = re.findall(r'^\| d=16, T=32 \| (.*?) \|', text, re.M)
  assert rows == list(structures.LAYERS)


def test_a_gpu_has_rows_without_the_kernel():
  found = structures.plain(structures.LAYERS)
  added = [name for name in found if name not in structures.LAYERS]
  assert added == [
    'Monarch, 4 blocks, plain', 'BTT, r=1, plain', 'BTT, r=4, plain'
  ]  # fmt: skip
  for name in added:
    layer = structures.LAYERS[name.removesuffix(', plain')]
    assert layer.fused and found[name] == layer.clone(fused=False)


def test_numbers_of_two_bytes_halve_the_traffic_of_activations():
  cost = structures.Cost(macs=0, params=256)
  size = structures.Size(16, 32, 'bfloat16')
  assert cost.floor(size, 1.0, 1.0) == 2 * 4 * 512 + 4 * 2 * 256


@pytest.mark.slow
def test_the_command_alone_prints_a_table_per_width(capsys, monkeypatch):
  monkeypatch.setattr(host, 'keep_memory', lambda: None)
  layers = {name: structures.LAYERS[name] for name in ('dense', 'BTT, r=1')}
  monkeypatch.setattr(structures, 'LAYERS', layers)
  monkeypatch.setattr(structures, 'rates', lambda *_: (1e12, 1e12))
  structures.main(['16', '32'], 8, 1)
  text = capsys.readouterr().out
  rows = re.findall(r'^\| d=(\d+), T=8 \| (.*?) \|', text, re.M)
  assert rows == [(d, name) for d in ('16', '32') for name in layers]
  with pytest.raises(SystemExit, match='--widths=a must be widths'):
    structures.main(['a'], None, 1)
