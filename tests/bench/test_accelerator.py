"""The quick form of the accelerator's benchmark runs whole on a CPU."""

import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from bench import accelerator
from bench import accelerator_attention
from bench import accelerator_sizes
from models import flops
from training import estimate

QUICK = accelerator_sizes.QUICK


@pytest.fixture(autouse=True)
def without_compiling_long(monkeypatch):
  timing = accelerator.timing
  monkeypatch.setattr(timing, 'clock', timing.clock_once)


def cells(text, head):
  """Rows of the table whose first column is `head`, by the names of cells."""
  lines = [line.strip('| ').split(' | ') for line in text.splitlines()]
  (names,) = (line for line in lines if line[0] == head)
  start = lines.index(names) + 2
  rows = []
  for line in lines[start:]:
    if len(line) != len(names):
      break
    rows.append(dict(zip(names, line, strict=True)))
  return rows


def test_samplers_and_attention_are_timed_and_hardware_is_named():
  text = '\n'.join(
    accelerator.report(QUICK, ('samplers', 'attention'), rounds=1)
  )
  kind = jax.devices()[0].device_kind
  assert text.startswith(f'{kind}, jax {jax.__version__}; peak ')
  assert 'TFLOP/s in bf16 (measured)' in text
  assert [row['logits'] for row in cells(text, 'logits')] == [
    'text, 8 x 260',
    'flat, 8 x 260',
  ]
  rows = cells(text, 'attention')
  assert [row['attention'] for row in rows] == [
    'forward, 64',
    'forward and gradient, 64',
  ]
  assert all(float(row['Lambda'].split()[0]) > 0 for row in rows)


def test_a_gpu_has_its_kernels_compared_with_plain_forms(monkeypatch):
  def forms():
    return accelerator_attention.forms(accelerator_sizes.FULL, 512)

  assert list(forms()) == ['Lambda', 'full']
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  found = forms()
  # Traced, it would ask for the library.
  assert found.pop('full, cuDNN')
  arrays = [jax.ShapeDtypeStruct((1, 512, 16, 128), jnp.bfloat16)] * 3
  is_fused = {
    name: 'pallas_call' in str(jax.make_jaxpr(mix)(*arrays))
    for name, mix in found.items()
  }
  assert is_fused == {
    'Lambda': True,
    'full': True,
    'Lambda, plain': False,
    'full, plain': False,
  }


@pytest.mark.slow
def test_models_are_trained_and_decoded(tmp_path):
  text = '\n'.join(
    accelerator.report(
      QUICK, ('training', 'decoding'), rounds=1, profile=str(tmp_path)
    )
  )
  byte_lm, latent = cells(text, 'train step')
  assert byte_lm['bytes per patch'] == '-'
  assert 3 < float(latent['bytes per patch']) < 7
  for row in (byte_lm, latent):
    speed = 1e3 * 2 * 64 / float(row['ms'])
    assert float(row['bytes/s']) == pytest.approx(speed, rel=0.05)
    assert float(row['MFU'].rstrip('%')) > 0
  assert [row['greedy decoding'] for row in cells(text, 'greedy decoding')] == [
    'byte LM, batch 2',
    'BLT, batch 2',
  ]
  assert list(tmp_path.glob('BLT/**/*.xplane.pb'))


def test_chips_are_known_by_the_names_that_devices_have():
  kinds = {
    'NVIDIA H100 80GB HBM3': 'H100',
    'NVIDIA H200': 'H200',
    'NVIDIA A100-SXM4-80GB': 'A100',
    'TPU v5 lite': 'v5e',
    'TPU v6 lite': 'v6e',
    'TPU v5p': 'v5p',
    'cpu': None,
  }
  for kind, name in kinds.items():
    assert accelerator._chip(kind) == name
  device = types.SimpleNamespace(
    device_kind='NVIDIA H200', memory_stats=lambda: {'bytes_limit': 10**11}
  )
  peak = accelerator.peak_of(device, (8,))
  chip = estimate.CHIPS['H200']
  assert peak[:3] == (chip.flops, chip.bandwidth, 10**11)
  assert peak.source == 'data sheet of H200'


def test_the_full_latent_transformer_does_most_of_the_work():
  for model in accelerator_sizes.FULL.models.values():
    parts = flops.per_byte(model, length=8192)
    assert max(parts.latent, parts.decoder) > 0.6 * parts.total


@pytest.mark.slow
def test_rows_that_fill_a_device_are_found_on_paper():
  for model in accelerator_sizes.FULL.models.values():
    rows = [
      accelerator._rows_on_paper(model, accelerator_sizes.FULL, room)
      for room in (60e9, 120e9)
    ]
    assert 1 <= rows[0] <= rows[1] <= 64


def test_unknown_parts_are_refused():
  with pytest.raises(ValueError, match='--only=train is no part; choose among'):
    next(accelerator.report(QUICK, ('train',), rounds=1))


@pytest.mark.slow
def test_the_command_runs_on_a_cpu():
  command = [sys.executable, '-m', 'bench.accelerator', '--quick', '--rounds=1']
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  for head in ('train step', 'greedy decoding', 'logits', 'attention'):
    assert cells(done.stdout, head), done.stderr
