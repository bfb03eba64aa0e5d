"""The quick form of the benchmark runs whole and compares equal models."""

import dataclasses
import importlib.util
import re
import types

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from bench import __main__ as bench
from bench import decoding
from bench import long
from bench import shapes
from bench import timing
from training import host


@pytest.fixture
def run(capsys, monkeypatch):
  """Runs the command with the quick flag and returns what it prints."""
  monkeypatch.setattr(host, 'keep_memory', lambda: None)

  def run(**values):
    with flagsaver.flagsaver(quick=True, rounds=1, **values):
      bench.main([])
    return capsys.readouterr().out

  return run


def test_the_quick_form_prints_every_row(run):
  text = run(only=['training', 'decoding'])
  rows = [line.split(' | ') for line in text.splitlines() if '| width' in line]
  assert [row[0].strip('| ') for row in rows] == [
    'width 16 x 1, 2 x 16 bytes',
    'width 16 x 1, batch 1',
    'width 16 x 1, batch 8',
  ]
  for row in rows:
    ratios = [cell for cell in row if re.match(r'\d+\.\d+ \(.*-.*\)', cell)]
    assert len(ratios) == (1 if 'bytes' in row[0] else 2)
    assert all(float(cell.split()[0]) >= 0 for cell in ratios)
  assert re.search(r'matmul \d+ GFLOP/s, memory \d+\.\d GB/s', text)


@pytest.mark.slow
def test_byte_latent_rows_compare_equal_models(run):
  """`_check_greedy` is inside: the bytes made are transformers' best ones."""
  text = run(only=['byte_latent'])
  lines = [line for line in text.splitlines() if ' bytes | ' in line]
  rows = [line.split(' | ') for line in lines]
  assert [row[0].strip('| ') for row in rows] == [
    '2 x 32 bytes',
    '2 x (8 + 4) bytes',
  ]
  assert all(float(cell.split()[0]) > 0 for row in rows for cell in row[2:4])


def test_only_leaves_the_other_table_out(run, monkeypatch):
  monkeypatch.setattr(decoding, 'rows', lambda *_: iter([{'decoding': 'x'}]))
  text = run(only=['decoding'])
  assert '| decoding |' in text
  assert '| training |' not in text


def test_unknown_part(run):
  with pytest.raises(flags.IllegalFlagValueError, match='training, decod'):
    run(only=['decode'])


def test_missing_torch_is_named_with_the_way_out(run, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(SystemExit, match=r"make bench.*'\.\[bench\]'"):
    run()


def test_unequal_models_are_refused():
  (shape,) = shapes.QUICK
  model, params = shapes.ours(shape)
  llama = shapes.theirs(shape, params, 'eager')
  shapes.check_equal(shape, model, params, llama)
  other = jax.tree.map(lambda x: x * 1.01, params)
  with pytest.raises(ValueError, match='equal work'):
    shapes.check_equal(shape, model, other, llama)


def test_bytes_that_are_not_the_best_are_refused():
  (shape,) = shapes.QUICK
  model, params = shapes.ours(shape)
  llama = shapes.theirs(shape, params, 'eager').eval()
  prompt = np.full((1, 4), 5)
  ids = decoding.our_decode(model, params, prompt, 3)()
  decoding._check_greedy(llama, prompt, ids)
  with pytest.raises(ValueError, match='below the best'):
    decoding._check_greedy(llama, prompt, ids - 1)


def test_flops_are_those_of_the_weights():
  (shape,) = shapes.QUICK
  _, params = shapes.ours(shape)
  kernels = sum(
    x.size
    for path, x in jax.tree_util.tree_leaves_with_path(params)
    if 'kernel' in jax.tree_util.keystr(path)
  )
  attention = 6 * shape.layers * shape.width * shape.length
  assert shape.flops_per_token == 6 * kernels + attention


def test_ratio_is_taken_round_by_round():
  ratio = timing.ratio([2.0, 8.0, 9.0], [1.0, 2.0, 9.0])
  assert ratio == (2.0, 1.0, 4.0)
  assert str(ratio) == '2.00 (1.00-4.00)'


def test_tuned_takes_the_fastest_choice_of_every_field(monkeypatch):
  @dataclasses.dataclass(frozen=True)
  class Setting:
    kind: str
    count: int

  now = 0.0

  def build(setting):
    def run():
      nonlocal now
      now += seconds[setting.kind, setting.count]

    return run

  clock = types.SimpleNamespace(perf_counter=lambda: now)
  monkeypatch.setattr(timing, 'time', clock)
  seconds = {('a', 1): 0.5, ('b', 1): 0.4, ('b', 2): 0.25, ('a', 2): 0.1}
  choices = {'kind': ('a', 'b'), 'count': (1, 2)}
  found = timing.tuned(Setting('a', 1), choices, build)
  assert found == Setting('b', 2)


@pytest.mark.slow
def test_long_rows_and_far_positions(run):
  text = run(only=['long'])
  lines = [line.strip('| ').split(' | ') for line in text.splitlines()]
  rows = [row for row in lines if row[0].startswith('forward')]
  assert [row[0] for row in rows] == [
    'forward, 64',
    'forward and gradient, 64',
    'forward, 128',
    'forward and gradient, 128',
  ]
  assert all(re.match(r'\d+ ms, \d+ MB', row[1]) for row in rows)
  assert rows[-1][2].startswith('not run')
  near, far, first, last = (row for row in lines if row[0].isdecimal())
  assert [near[0], far[0]] == ['64', '256']
  assert near[3] == far[3], 'the cache does not grow'
  assert [first[0], last[0]] == ['32', '64']
  assert int(first[1]) > 0 and int(last[1]) > 0
  # With JAX loaded it is hundreds of megabytes, in a process that is fresh.
  assert 100 < int(first[2]) < 2000
  assert first[3] == '0.0' and float(last[3]) < 30


def test_the_forms_of_full_attention_compute_the_same():
  forms = long._forms(long.QUICK)
  rng = np.random.default_rng(0)
  arrays = rng.normal(size=(3, 1, 256, 4, 8)).astype(np.float32)
  whole, scanned, near = (
    np.asarray(jax.jit(forms[name])(*arrays))
    for name in ('materialised', 'scanned', 'Lambda')
  )
  np.testing.assert_allclose(scanned, whole, atol=1e-5)
  np.testing.assert_allclose(near[:, :16], whole[:, :16], atol=1e-5)
  assert np.abs(near - whole).max() > 0.1
